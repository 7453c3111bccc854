"""Runs mvlm-np and llama.cpp on the same work in alternation, and prints how many times faster we are.

    python tools/make_checkpoint.py MobileVLM_V2-1.7B V2-1.7B --tokenizer tokenizer.model
    mvlm convert V2-1.7B V2-int4 --precision int4-symmetric
    python tools/bench_llama_cpp.py V2-int4 --gguf model-q4_0.gguf --mmproj mmproj-f16.gguf mmproj-q8_0.gguf

The GGUF files may come from llama.cpp's own converters or from `mvlm convert --to gguf`; its llama-quantize
makes the Q8_0 of an mmproj. Its programs llama-bench, llama-mtmd-cli and llama-batched-bench are looked for
in the folder --llama-cpp or $LLAMA_CPP names, and on the PATH. Ours is the mvlm_np that this Python imports:
a wheel's if one is installed, else this checkout's.

First llama.cpp's best flags are sought for every figure: each mmproj, and one flag after another that may
matter. Then come the rounds: each measures everything once, ours and theirs in turn, every time in a new
process. The table has medians; ours go through `model.stream`, `model.encode_image` and `mvlm ask`, so the
tokenizer, the embedding, lm_head and sampling are in them. llama-bench samples nothing.

For a model of 1.7B on two cores, a round takes about 5 minutes, with --neighbour 10, and the search for flags
5 before that. --tuned keeps the flags, so that the next run has them.

"of the limit" is what our figure reaches of what the machine can do, measured in the same process: reading
memory for decode, multiplying bytes in registers for the prompt and the picture. "Never run here" is the
question with an empty cache of machine code, where kernels that are not prebuilt have to be compiled.
"With a draft" is `mvlm bench --speculate`: a draft model of 68M whose tokens are right that often.
"server" is `mvlm serve` against llama-server, which is built with -DLLAMA_BUILD_SERVER=ON; both keep what
they have read.
--neighbour takes the figures of both once more while another program keeps one core busy.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # behind the others: an installed mvlm_np comes first

# Nothing heavy is imported here: the memory of a process starts from that of the one that starts it.
from mvlm_np.cli.neighbour import neighbour  # noqa: E402
from tools.parts.arguments import at_least_1  # noqa: E402
from tools.parts.llama_cpp import figures  # noqa: E402
from tools.parts.llama_cpp.figures import ALL, BESIDE, LONG, NEW, QUESTION, SHORT, Figure, Measured  # noqa: E402
from tools.parts.llama_cpp.process import Ran, run  # noqa: E402
from tools.parts.llama_cpp.table import print_json, print_table  # noqa: E402
from tools.parts.llama_cpp.theirs import LlamaCpp  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="an int4 model that `mvlm convert` wrote")
    parser.add_argument("--gguf", help="the language model in Q4_0")
    parser.add_argument(
        "--mmproj", nargs="+", help="its vision tower and projector; of several, the best one counts"
    )
    parser.add_argument("--llama-cpp", default=os.environ.get("LLAMA_CPP"), help="folder of its programs")
    parser.add_argument("--image", default=str(ROOT / "examples" / "chelsea.jpg"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of llama.cpp")
    parser.add_argument("--rounds", type=at_least_1, default=3, help="rounds (3, of 5 minutes each)")
    parser.add_argument("--neighbour", action="store_true", help="once more while another program is busy")
    parser.add_argument("--only", nargs="+", choices=ALL, default=ALL, help="some of the figures alone")
    parser.add_argument("--tuned", type=Path, help="file that keeps the best flags")
    parser.add_argument("--quick", action="store_true", help="seek no flags: take the usual ones")
    parser.add_argument(
        "--json", action="store_true", help="print every figure of every round, and the commands"
    )
    args = parser.parse_args()
    args.folder = str(Path(args.folder).resolve())
    args.image = str(Path(args.image).resolve())
    if not (args.gguf and args.mmproj):
        parser.error("--gguf and --mmproj are needed")
    args.gguf, args.mmproj = str(Path(args.gguf).resolve()), [str(Path(p).resolve()) for p in args.mmproj]

    llama = LlamaCpp(args)
    print("llama.cpp's flags, one by one:", file=sys.stderr)
    if args.tuned:
        llama.remember(args.tuned)
    llama.tune(args.only, args.quick)
    if args.tuned:
        llama.keep(args.tuned)
    ask(args)  # unmeasured: compiles, and fills the page cache
    rounds = []
    for i in range(args.rounds):
        print(f"round {i + 1} of {args.rounds}", file=sys.stderr)
        rounds.append(one_round(args, llama))
        for figure, (ours, theirs, _) in rounds[-1].items():
            told = f"our {ours:.4g}" if theirs is None else f"{theirs:.4g} against our {ours:.4g}"
            print(f"  {told} {figure.unit}, {figure.name}", file=sys.stderr)
    found = {figure: [each[figure] for each in rounds] for figure in rounds[0]}
    show = print_json if args.json else print_table
    show(found, bytes_leave(args), llama.commands())


# ---------------------------------------------------------------- a round


def one_round(args: argparse.Namespace, llama: LlamaCpp) -> dict[Figure, Measured]:
    """Everything once, and once more beside a busy neighbour, if that was asked for."""
    found: dict[Figure, Measured] = {}
    for what in args.only:
        found |= measure(what, args, llama)
        if args.neighbour and what in BESIDE:
            with neighbour():
                beside = measure(what, args, llama)
            for figure, (ours, theirs, _) in beside.items():
                if figure is not figures.MEMORY:
                    found[figure.beside_a_neighbour()] = Measured(ours, theirs)
    return found


def measure(what: str, args: argparse.Namespace, llama: LlamaCpp) -> dict[Figure, Measured]:
    """One of `ALL`, ours and theirs in turn."""
    match what:
        case "decode" | "long" | "prompt":
            figure = figures.BENCHED[what]
            ours, of_limit = ours_in_a_process(what, args)
            return {figure: Measured(ours, llama.rate(figure), of_limit)}
        case "encode":
            ours, of_limit = ours_in_a_process(what, args)
            return {figures.ENCODE: Measured(ours, llama.cli(1, llama.flags[figures.ENCODE])[1], of_limit)}
        case "ask":
            asked, (answered, _) = ask(args), llama.cli(NEW, llama.flags[figures.VQA])
            memory = Measured(asked.peak / 1e9, answered.peak / 1e9)
            return {figures.VQA: Measured(asked.seconds, answered.seconds), figures.MEMORY: memory}
        case "first":
            (asked, compiled), (answered, _) = ask_first(args), llama.cli(NEW, llama.flags[figures.VQA])
            how = "kernels compiled" if compiled else "kernels prebuilt"
            figure = figures.FIRST._replace(name=f"{figures.FIRST.name} ({how})")
            return {figure: Measured(asked.seconds, answered.seconds)}
        case "together":
            both = zip(ours_in_a_process(what, args), llama.together(), strict=True)
            return dict(zip(figures.TOGETHER.values(), (Measured(*rates) for rates in both), strict=True))
        case "drafts":
            if not (rates := ours_in_a_process(what, args)):
                print("note: with this model nothing can be drafted", file=sys.stderr)
                return {}
            return dict(zip(figures.DRAFTS.values(), map(Measured, rates), strict=True))
        case "serve":
            both = zip(ours_in_a_process(what, args), llama.serve(), strict=True)
            return dict(zip(figures.SERVED, (Measured(*pair) for pair in both), strict=True))
        case _:
            (ours,) = ours_in_a_process("load", args)
            return {figures.LOAD: Measured(ours, llama.load(llama.flags[figures.LOAD]))}


# ---------------------------------------------------------------- ours


def ours_in_a_process(what: str, args: argparse.Namespace) -> list[float]:
    """What `tools.parts.llama_cpp.ours` measures, in a Python of its own."""
    program = [sys.executable, "-m", "tools.parts.llama_cpp.ours"]
    return json.loads(run([*program, what, args.folder, args.image]).out)


def ask(args: argparse.Namespace, **environment: str) -> Ran:
    """The question, asked with `mvlm ask`."""
    command = [sys.executable, "-m", "mvlm_np", "ask", args.image, QUESTION, "--json"]
    ran = run([*command, "--model", args.folder, "--max-new-tokens", str(NEW)], **environment)
    if (new := json.loads(ran.out)["new_tokens"]) != NEW:
        print(f"note: our answer ended after {new} tokens", file=sys.stderr)
    return ran


def ask_first(args: argparse.Namespace) -> tuple[Ran, bool]:
    """The question with an empty cache of machine code, and whether something had to be compiled."""
    with TemporaryDirectory() as folder:
        ran = ask(args, XDG_CACHE_HOME=folder)
        return ran, any(path.is_file() for path in Path(folder).rglob("*"))


def bytes_leave(args: argparse.Namespace) -> float:
    """The part of the decoding rate that the bytes leave: (weights + cache) at SHORT positions / at LONG."""
    out = run([sys.executable, "-m", "mvlm_np", "inspect", args.folder, "--json"]).out
    report = json.loads(out)
    weights = sum(
        t["bytes"]
        for t in report["tensors"]
        if re.search(r"layers\.|lm_head", t["name"]) and "vision" not in t["name"]
    )
    d = report["config"]["decoder"]
    position = 2 * d["num_hidden_layers"] * d["num_key_value_heads"]
    position *= d["hidden_size"] // d["num_attention_heads"] * 2  # float16, unless told otherwise
    return (weights + SHORT * position) / (weights + LONG * position)


if __name__ == "__main__":
    main()
