"""Runs mvlm-np and llama.cpp on the same work in alternation, and prints how many times faster we are.

    python tools/make_checkpoint.py MobileVLM_V2-1.7B V2-1.7B --tokenizer tokenizer.model
    mvlm convert V2-1.7B V2-int4 --precision int4
    python tools/bench_llama_cpp.py V2-int4 --gguf model-q4_0.gguf --mmproj mmproj-f16.gguf mmproj-q8_0.gguf

The GGUF files may come from llama.cpp's own converters or from `mvlm convert --to gguf`; its llama-quantize
makes the Q8_0 of an mmproj. Its programs llama-bench, llama-mtmd-cli and llama-batched-bench are looked for
in the folder --llama-cpp or $LLAMA_CPP names, and on the PATH. Ours is the mvlm_np that this Python imports:
a wheel's if one is installed, else this checkout's.

First every figure is taken with each mmproj and each of llama.cpp's flags that may matter, and the best
are kept. Then come the rounds: each measures everything once, ours and theirs in turn, every time in a
new process. The table has medians; ours go through `model.stream`, `model.encode_image` and `mvlm ask`, so
the tokenizer, the embedding, lm_head and sampling are in them. llama-bench samples nothing.

"of the limit" is what our figure reaches of what the machine can do, measured in the same process: reading
memory for decode, multiplying bytes in registers for the prompt and the picture. "Never run here" is the
question with an empty cache of machine code, where kernels that are not prebuilt have to be compiled.
"With a draft" is `mvlm bench --speculate`: a draft model of 68M whose tokens are right that often.
--neighbour takes the figures of both once more while another program keeps one core busy.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory, TemporaryFile, gettempdir
from time import perf_counter
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # the checkout, if none is installed
OURS_LIES_IN = Path(find_spec("mvlm_np").origin or "").parents[1]  # type: ignore[union-attr]

# Nothing heavy is imported here: the memory of a process starts from that of the one that starts it.
from mvlm_np.cli.neighbour import neighbour  # noqa: E402

PROMPT, NEW, SHORT, LONG = 200, 32, 200, 1900  # tokens to read, to generate; positions behind which they are
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
QUESTION = "What animal is this?"


class Figure(NamedTuple):
    """One line of the table."""

    name: str
    unit: str
    more_is_better: bool = True

    def beside_a_neighbour(self) -> "Figure":
        return self._replace(name=f"{self.name}, busy neighbour")


class Measured(NamedTuple):
    """A figure in one round. theirs: None where llama.cpp has no like; of_limit: see above."""

    ours: float
    theirs: float | None = None
    of_limit: float | None = None


DECODE, DECODE_LONG = (Figure(f"decode behind {n} positions", "tokens/s") for n in (SHORT, LONG))
READ = Figure(f"prompt of {PROMPT}", "tokens/s")
ENCODE = Figure("image encode", "s", False)
VQA = Figure(f"one question about a picture, {NEW} tokens, whole process", "s", False)
MEMORY = Figure("peak memory of that", "GB", False)
FIRST = Figure("the question, never run here", "s", False)
TOGETHER = {n: Figure(f"{n} sequences together, behind {SHORT}", "times one") for n in (4, 8)}
DRAFTS = {rate: Figure(f"decode with a draft, {rate:.0%} right", "times plain") for rate in (0.6, 0.8)}
LOAD = Figure("load", "s", False)
TUNED = (DECODE, DECODE_LONG, READ, ENCODE, VQA, LOAD)  # those that llama.cpp's flags are sought for
# What is measured, in this order; the first ones beside a neighbour, too.
BESIDE = ("decode", "long", "prompt", "encode", "ask")
ALL = (*BESIDE, "first", "together", "drafts", "load")


class Ran(NamedTuple):
    seconds: float
    peak: int  # bytes
    out: str
    err: str


def run(command: Sequence[str], **environment: str) -> Ran:
    """Runs a program to its end. The peak of its memory is VmHWM, mapped pages included."""
    with TemporaryFile() as out, TemporaryFile() as err:
        start = perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=gettempdir(),
            env={**os.environ, "PYTHONPATH": str(OURS_LIES_IN), **environment},
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    if process.returncode:
        sys.exit(f"{shlex.join(command)}\nfailed with {process.returncode}:\n{texts[1][-2000:]}")
    return Ran(seconds, usage.ru_maxrss * 1024, *texts)


# ---------------------------------------------------------------- ours


def ours_in_a_process(what: str, args: argparse.Namespace) -> list[float]:
    """The result of one of the functions below, in a Python of its own."""
    command = [sys.executable, __file__, args.folder, "--ours", what, "--image", args.image]
    return json.loads(run(command).out)


def ours_load(folder: str, image: str) -> list[float]:
    import mvlm_np

    mvlm_np.load(folder)  # imports the engine
    return [timed(lambda: mvlm_np.load(folder), 1)]


def ours_decode(folder: str, image: str, positions: int = SHORT) -> list[float]:
    import mvlm_np
    from mvlm_np.cli.bench import bytes_of_a_token, decode, question_of

    model = mvlm_np.load(folder)
    question = question_of(model, positions - NEW // 2)  # compiles, and brings the weights into memory
    before, seconds, after = read_rate(), decode(model, question, NEW), read_rate()
    return [1 / seconds, bytes_of_a_token(model, positions) / seconds / median((before, after))]


def ours_long(folder: str, image: str) -> list[float]:
    return ours_decode(folder, image, LONG)


def ours_prompt(folder: str, image: str) -> list[float]:
    import mvlm_np
    from mvlm_np.cli.bench import decoder_operations

    model = mvlm_np.load(folder)
    ids = [1, *range(100, 100 + PROMPT - 1)]
    model.generate(ids, max_new_tokens=1)  # compiles
    before = dot_rate()
    seconds = timed(lambda: model.generate(ids, max_new_tokens=1))
    rate = median((before, dot_rate()))
    return [PROMPT / seconds, decoder_operations(model.config.decoder, PROMPT) / seconds / rate]


def ours_encode(folder: str, image: str) -> list[float]:
    import mvlm_np
    from mvlm_np.cli.bench import encoder_operations

    model = mvlm_np.load(folder)
    model.encode_image(image)
    before = dot_rate()
    seconds = timed(lambda: model.encode_image(image))
    return [seconds, encoder_operations(model.config) / seconds / median((before, dot_rate()))]


def ours_together(folder: str, image: str) -> list[float]:
    import mvlm_np
    from mvlm_np.cli.together import Together

    ids = [1, *range(100, 100 + SHORT - NEW // 2 - 1)]
    together = Together(mvlm_np.load(folder), (1, *TOGETHER), ids, NEW)
    for count in together.seconds:
        together.step(count)  # compiles
    for _ in range(3):
        together.measure()
    rates = together.tokens_per_second()
    return [rates[count] / rates[1] for count in TOGETHER]


def ours_drafts(folder: str, image: str) -> list[float]:
    """Nothing, where the model cannot use drafts."""
    import numpy as np

    import mvlm_np
    from mvlm_np.cli import speculate
    from mvlm_np.drafts import draft_for
    from mvlm_np.errors import UserError

    model = mvlm_np.load(folder)
    try:
        draft_for(model, "ngrams")
    except UserError:
        return []
    ids = np.random.default_rng(0).integers(3, model.config.decoder.vocab_size, SHORT).tolist()
    measured, small = speculate.Measured(model, ids, 2 * NEW), speculate.llama_68m(model)
    cost = small.decoder.nbytes / model.decoder.nbytes
    drafts = [None, *(speculate.Controlled(small, cost, measured.answer, rate) for rate in DRAFTS)]
    rounds = [[measured.decode(draft)[0] for draft in drafts] for _ in range(4)][1:]  # the first one warms up
    plain, *seconds = map(median, zip(*rounds, strict=True))
    return [plain / taken for taken in seconds]


def timed(work: Callable[[], object], times: int = 3) -> float:
    """Seconds that it takes, the median of some times."""
    seconds = []
    for _ in range(times):
        start = perf_counter()
        work()
        seconds.append(perf_counter() - start)
    return median(seconds)


def read_rate() -> float:
    """Bytes a second of plainly reading memory."""
    import numpy as np

    from mvlm_np.kernels import limits

    large = np.ones(1 << 26, np.float32)  # 268 MB, more than any cache holds
    limits.read(large)  # compiles
    return large.nbytes / timed(lambda: limits.read(large))


def dot_rate() -> float:
    """Operations a second of multiplying bytes in registers."""
    from mvlm_np.cli.bench import GROUPS
    from mvlm_np.kernels import limits

    limits.multiply(1)  # compiles
    return limits.operations(GROUPS) / timed(lambda: limits.multiply(GROUPS))


OURS: dict[str, Callable[[str, str], list[float]]] = {
    "load": ours_load,
    "decode": ours_decode,
    "long": ours_long,
    "prompt": ours_prompt,
    "encode": ours_encode,
    "together": ours_together,
    "drafts": ours_drafts,
}


def ask(args: argparse.Namespace, **environment: str) -> Ran:
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


# ---------------------------------------------------------------- theirs


class LlamaCpp:
    """llama.cpp's programs, their model files, and the best flags for each figure."""

    def __init__(self, args: argparse.Namespace):
        folders = os.pathsep.join(filter(None, (args.llama_cpp, os.environ.get("PATH"))))
        programs = ["llama-bench", "llama-mtmd-cli", "llama-batched-bench"]
        found = {name: shutil.which(name, path=folders) for name in programs}
        for name, path in found.items():
            if path is None and (name != "llama-batched-bench" or "together" in args.only):
                sys.exit(f"{name} is neither on the PATH nor where --llama-cpp or $LLAMA_CPP points")
        threads = ["-t", str(args.threads)]
        self._bench = [str(found["llama-bench"]), "-m", args.gguf, *threads, "-o", "json"]
        self._batched = [str(found["llama-batched-bench"]), "-m", args.gguf, *threads, "-c", "2048"]
        self._batched += ["-npp", str(SHORT), "-ntg", str(NEW), "-pps", "--output-format", "jsonl"]
        picture = ["--image", args.image, "-p", QUESTION, "-sys", SYSTEM]
        sampling = ["--temp", "0", "-c", "2048", "--chat-template", "vicuna"]
        self._cli = [str(found["llama-mtmd-cli"]), "-m", args.gguf, *threads, *picture, *sampling]
        self._mmprojs = args.mmproj
        self.commands: dict[Figure, list[str]] = {}

    def bench(self, flags: Sequence[str]) -> float:
        """Tokens per second, the mean of llama-bench's repetitions."""
        (test,) = json.loads(run([*self._bench, *flags]).out)
        return test["avg_ts"]

    def together(self) -> list[float]:
        """Tokens per second of several sequences, divided by those of one. They share the prompt's cache."""
        counts = [1, *TOGETHER]
        lines = run([*self._batched, "-npl", ",".join(map(str, counts))]).out.splitlines()
        tests = [json.loads(line) for line in lines if line.startswith("{")]
        rates = {test["pl"]: test["speed_tg"] for test in tests}
        return [rates[n] / rates[1] for n in TOGETHER]

    def cli(self, new: int, flags: Sequence[str]) -> tuple[Ran, float]:
        """A whole run, and the seconds that its encoder took."""
        ran = run([*self._cli, "-n", str(new), *flags])
        found = re.search(r"(?:slice encoded|encoding done) in (\d+) ms", ran.out + ran.err)
        assert found, f"llama-mtmd-cli does not say how long it encoded:\n{(ran.out + ran.err)[-2000:]}"
        return ran, int(found[1]) / 1000

    def tune(self, only: Sequence[str], quick: bool) -> None:
        """Finds the best flags for each figure that has none yet; quick: takes the first ones."""
        attention, repack = {"-fa": ["off", "on"]}, {"--repack": ["1", "0"]}
        grids: list[tuple[str, Figure, str, dict[str, list[str]]]] = [
            ("decode", DECODE, f"-p 0 -n {NEW} -d {SHORT - NEW // 2}", attention | repack),
            # The prompt takes a minute each time.
            ("long", DECODE_LONG, f"-p 0 -n {NEW} -d {LONG - NEW // 2}", attention),
            ("prompt", READ, f"-p {PROMPT} -n 0", attention | repack | {"-ub": ["512", "128", "64"]}),
            ("load", LOAD, "-p 0 -n 1 --no-warmup", {"-lm": ["mmap", "none"]}),
        ]
        for what, figure, shape, choices in grids:
            if what not in only or figure in self.commands:
                continue
            rates = {}
            for values in product(*(tried[:1] if quick else tried for tried in choices.values())):
                flags = shape.split() + [word for pair in zip(choices, values, strict=True) for word in pair]
                rate = -self.load(flags) if figure is LOAD else self.bench([*flags, "-r", "1"])
                rates[tuple(flags)] = rate
                print(f"  {abs(rate):6.1f} {figure.unit}  {shlex.join(flags)}", file=sys.stderr)
            self.commands[figure] = [*max(rates, key=rates.__getitem__)]
        if not {"encode", "ask", "first"} & set(only) or VQA in self.commands:
            return
        encode, whole = {}, {}
        variants = ["", "-fa on", "-fa off", "-lm none", "--no-repack", "--no-warmup"]
        for mmproj, variant in product(self._mmprojs, variants[:1] if quick else variants):
            words = ("--mmproj", mmproj, *variant.split())
            ran, encode[words] = self.cli(NEW, words)
            whole[words] = ran.seconds
            told = f"{ran.seconds:6.2f} s, {encode[words]:.2f} s of it encode"
            print(f"  {told}  {shlex.join(words)}", file=sys.stderr)
        self.commands[ENCODE] = [*min(encode, key=encode.__getitem__)]
        self.commands[VQA] = [*min(whole, key=whole.__getitem__)]

    def remember(self, path: Path) -> None:
        """Takes the flags that an earlier run left in a file."""
        if path.exists():
            found = json.loads(path.read_text())
            self.commands = {f: found[f.name] for f in TUNED if f.name in found}

    def keep(self, path: Path) -> None:
        path.write_text(json.dumps({f.name: flags for f, flags in self.commands.items()}, indent=1) + "\n")

    def load(self, flags: Sequence[str]) -> float:
        """Seconds of a process that loads the language model and computes one token, less that token.

        Weights are repacked, as they are by default; without that it would load faster, and be slower then.
        """
        ran = run([*self._bench, *flags, "-r", "1"])
        return ran.seconds - json.loads(ran.out)[0]["avg_ns"] / 1e9

    def shown(self, figure: Figure) -> str:
        """The whole command of a figure."""
        program = self._cli if figure in (ENCODE, VQA) else self._bench
        more = ["-n", str(1 if figure is ENCODE else NEW)] if figure in (ENCODE, VQA) else ["-r", "1"]
        return shlex.join([*program, *self.commands[figure], *more])


# ---------------------------------------------------------------- the rounds


def measure(what: str, args: argparse.Namespace, llama: LlamaCpp) -> dict[Figure, Measured]:
    """One of `ALL`, ours and theirs in turn."""
    match what:
        case "decode" | "long" | "prompt":
            figure = {"decode": DECODE, "long": DECODE_LONG, "prompt": READ}[what]
            ours, of_limit = ours_in_a_process(what, args)
            repeats = "3" if what == "prompt" else "1"
            return {figure: Measured(ours, llama.bench([*llama.commands[figure], "-r", repeats]), of_limit)}
        case "encode":
            ours, of_limit = ours_in_a_process(what, args)
            return {ENCODE: Measured(ours, llama.cli(1, llama.commands[ENCODE])[1], of_limit)}
        case "ask":
            asked, (answered, _) = ask(args), llama.cli(NEW, llama.commands[VQA])
            memory = Measured(asked.peak / 1e9, answered.peak / 1e9)
            return {VQA: Measured(asked.seconds, answered.seconds), MEMORY: memory}
        case "first":
            (asked, compiled), (answered, _) = ask_first(args), llama.cli(NEW, llama.commands[VQA])
            how = "kernels compiled" if compiled else "kernels prebuilt"
            figure = FIRST._replace(name=f"{FIRST.name} ({how})")
            return {figure: Measured(asked.seconds, answered.seconds)}
        case "together":
            both = zip(TOGETHER.values(), ours_in_a_process(what, args), llama.together(), strict=True)
            return {figure: Measured(ours, theirs) for figure, ours, theirs in both}
        case "drafts":
            if not (rates := ours_in_a_process(what, args)):
                print("note: with this model nothing can be drafted", file=sys.stderr)
                return {}
            return {f: Measured(rate) for f, rate in zip(DRAFTS.values(), rates, strict=True)}
        case _:
            (ours,) = ours_in_a_process("load", args)
            return {LOAD: Measured(ours, llama.load(llama.commands[LOAD]))}


def one_round(args: argparse.Namespace, llama: LlamaCpp) -> dict[Figure, Measured]:
    """Everything once, and once more beside a busy neighbour, if that was asked for."""
    found: dict[Figure, Measured] = {}
    for what in args.only:
        found |= measure(what, args, llama)
        if args.neighbour and what in BESIDE:
            with neighbour():
                beside = measure(what, args, llama)
            for figure, (ours, theirs, _) in beside.items():
                if figure is not MEMORY:
                    found[figure.beside_a_neighbour()] = Measured(ours, theirs)
    return found


def kept(args: argparse.Namespace) -> float:
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="an int4 model that `mvlm convert` wrote")
    parser.add_argument("--gguf", help="the language model in Q4_0")
    parser.add_argument(
        "--mmproj", nargs="+", help="its vision tower and projector; of several, the best counts"
    )
    parser.add_argument("--llama-cpp", default=os.environ.get("LLAMA_CPP"), help="folder of its programs")
    parser.add_argument("--image", default=str(ROOT / "examples" / "chelsea.jpg"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of llama.cpp")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--neighbour", action="store_true", help="once more while another program is busy")
    parser.add_argument("--only", nargs="+", choices=ALL, default=ALL, help="some of the figures alone")
    parser.add_argument("--tuned", type=Path, help="file that keeps llama.cpp's best flags for the next run")
    parser.add_argument("--quick", action="store_true", help="take llama.cpp's flags as they are, untuned")
    parser.add_argument(
        "--json", action="store_true", help="print every figure of every round, and the commands"
    )
    parser.add_argument("--ours", choices=OURS, help=argparse.SUPPRESS)  # what a process of ours measures
    args = parser.parse_args()
    args.folder = str(Path(args.folder).resolve())
    args.image = str(Path(args.image).resolve())
    if args.ours:
        print(json.dumps(OURS[args.ours](args.folder, args.image)))
        return
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
    report({f: [found[f] for found in rounds] for f in rounds[0]}, kept(args), llama, args.json)


def report(
    figures: Mapping[Figure, Sequence[Measured]], bytes_leave: float, llama: LlamaCpp, as_json: bool
) -> None:
    def column(figure: Figure, name: str) -> list[float]:
        """ours, theirs, or of_limit in all rounds; empty where there is none."""
        return [value for found in figures[figure] if (value := getattr(found, name)) is not None]

    def ratio(f: Figure) -> float | None:
        if not (theirs := column(f, "theirs")):
            return None
        quotient = median(column(f, "ours")) / median(theirs)
        return quotient if f.more_is_better else 1 / quotient

    both = DECODE in figures and DECODE_LONG in figures
    keeps = median(column(DECODE_LONG, "ours")) / median(column(DECODE, "ours")) if both else None
    if as_json:
        rows = [
            {"figure": f.name, "unit": f.unit, "ratio": ratio(f)}
            | {name: column(f, name) for name in ("ours", "theirs", "of_limit")}
            for f in figures
        ]
        long = {"kept": keeps, "bytes_leave": bytes_leave}
        commands = {f.name: llama.shown(f) for f in llama.commands}
        json.dump({"figures": rows, "long_context": long, "commands": commands}, sys.stdout, indent=1)
        print()
        return
    print("| | unit | llama.cpp | mvlm-np | times better | of the limit |")
    print("| --- | --- | --- | --- | --- | --- |")
    for f in figures:
        values = column(f, "theirs"), column(f, "ours")
        cells = [f"{median(v):.3g} ({min(v):.3g}–{max(v):.3g})" if v else "–" for v in values]
        times, limit = ratio(f), column(f, "of_limit")
        cells += [f"{times:.2f}" if times else "–", f"{median(limit):.0%}" if limit else ""]
        print(f"| {f.name} | {f.unit} | {' | '.join(cells)} |")
    print("\nMedians of the rounds, and the range.", end="")
    if keeps is not None:
        print(f" Behind {LONG} positions we keep {keeps:.0%} of the rate behind {SHORT};", end="")
        print(f" the bytes to be read leave {bytes_leave:.0%}.", end="")
    print(" llama.cpp's commands:\n")
    for f in llama.commands:
        print(f"    {llama.shown(f)}")


if __name__ == "__main__":
    main()
