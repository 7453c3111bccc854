"""llama.cpp's programs, and how they are called."""

import argparse
import json
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile

from tools.parts.llama_cpp import figures
from tools.parts.llama_cpp.figures import BENCHED, LONG, NEW, PROMPT, QUESTION, SHORT, TOGETHER, Figure
from tools.parts.llama_cpp.process import Ran, find, run

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

# What llama-bench is to do for a figure, and the flags of which the best are sought, the usual ones first.
ATTENTION, REPACK = {"-fa": ["off", "on"]}, {"--repack": ["1", "0"]}
SHAPES = {
    figures.DECODE: (f"-p 0 -n {NEW} -d {SHORT - NEW // 2}", ATTENTION | REPACK),
    # Reading its prompt takes a minute each time.
    figures.DECODE_LONG: (f"-p 0 -n {NEW} -d {LONG - NEW // 2}", ATTENTION),
    figures.READ: (f"-p {PROMPT} -n 0", ATTENTION | REPACK | {"-ub": ["512", "128", "64"]}),
    figures.LOAD: ("-p 0 -n 1 --no-warmup", {"-lm": ["mmap", "none"]}),
}
VARIANTS = ["-fa on", "-fa off", "-lm none", "--no-repack", "--no-warmup"]  # likewise for llama-mtmd-cli
CLIENTS, STARTS = 4, 120  # of llama-server: clients at once, and seconds in which it starts
REPEATS = {figures.READ: 3}  # what a process measures more than once


class LlamaCpp:
    """llama.cpp's programs, their model files, and the best flags for each figure."""

    def __init__(self, args: argparse.Namespace):
        needed_for = {"llama-batched-bench": "together", "llama-server": "serve"}
        programs = ["llama-bench", "llama-mtmd-cli", *needed_for]
        found = {name: find(name, args.llama_cpp) for name in programs}
        for name, path in found.items():
            if path is None and (name not in needed_for or needed_for[name] in args.only):
                sys.exit(f"{name} is neither on the PATH nor where --llama-cpp or $LLAMA_CPP points")
        threads = ["-t", str(args.threads)]
        self._bench = [str(found["llama-bench"]), "-m", args.gguf, *threads, "-o", "json"]
        self._batched = [str(found["llama-batched-bench"]), "-m", args.gguf, *threads, "-c", "2048"]
        self._batched += ["-npp", str(SHORT), "-ntg", str(NEW), "-pps", "--output-format", "jsonl"]
        self._batched += ["-npl", ",".join(map(str, (1, *TOGETHER)))]
        picture = ["--image", args.image, "-p", QUESTION, "-sys", SYSTEM]
        sampling = ["--temp", "0", "-c", "2048", "--chat-template", "vicuna"]
        self._cli = [str(found["llama-mtmd-cli"]), "-m", args.gguf, *threads, *picture, *sampling]
        self._server = [str(found["llama-server"]), "-m", args.gguf, *threads]
        self._server += [
            "--chat-template",
            "vicuna",
            "--no-jinja",
            "-np",
            str(CLIENTS),
            "-c",
            str(2048 * CLIENTS),
        ]
        self._mmprojs = args.mmproj
        self.flags: dict[Figure, list[str]] = {}  # the best ones

    def rate(self, figure: Figure) -> float:
        """Tokens per second with the best flags, the mean of llama-bench's repeats."""
        return self.bench(self.flags[figure], REPEATS.get(figure, 1))

    def bench(self, flags: Sequence[str], repeats: int = 1) -> float:
        """Tokens per second of llama-bench with these flags."""
        (test,) = json.loads(run([*self._bench, *flags, "-r", str(repeats)]).out)
        return test["avg_ts"]

    def load(self, flags: Sequence[str]) -> float:
        """Seconds of a process that loads the language model and computes one token, less that token.

        Weights are repacked, as they are by default; without that it would load faster, and be slower then.
        """
        ran = run([*self._bench, *flags, "-r", "1"])
        return ran.seconds - json.loads(ran.out)[0]["avg_ns"] / 1e9

    def cli(self, new: int, flags: Sequence[str]) -> tuple[Ran, float]:
        """A whole run, and the seconds that its encoder took."""
        ran = run([*self._cli, "-n", str(new), *flags])
        found = re.search(r"(?:slice encoded|encoding done) in (\d+) ms", ran.out + ran.err)
        assert found, f"llama-mtmd-cli does not say how long it encoded:\n{(ran.out + ran.err)[-2000:]}"
        return ran, int(found[1]) / 1000

    def together(self) -> list[float]:
        """Tokens per second of several sequences, divided by those of one. They share the prompt's cache."""
        lines = run(self._batched).out.splitlines()
        tests = [json.loads(line) for line in lines if line.startswith("{")]
        rates = {test["pl"]: test["speed_tg"] for test in tests}
        return [rates[n] / rates[1] for n in TOGETHER]

    def serve(self) -> list[float]:
        """What `through.measure` gives for llama-server, with the flags that are best for a question."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        flags = [flag for flag in self.flags[figures.VQA] if flag != "--no-warmup"]
        command = [*self._server, *flags, "--host", "127.0.0.1", "--port", str(port)]
        url = f"http://127.0.0.1:{port}"
        with TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
            try:
                for _ in range(STARTS):
                    time.sleep(1)
                    if process.poll() is not None:
                        log.seek(0)
                        last = log.read().decode(errors="replace")[-2000:]
                        sys.exit(f"{shlex.join(command)}\nfailed with {process.returncode}:\n{last}")
                    if answers(f"{url}/health"):
                        break
                return json.loads(run([sys.executable, "-m", "tools.parts.llama_cpp.through", url]).out)
            finally:
                process.kill()

    # ------------------------------------------------------------ the best flags

    def tune(self, only: Sequence[str], quick: bool) -> None:
        """Finds the best flags for each figure that has none yet, one flag after another.

        quick  take the first of each
        """
        for what, figure in (BENCHED | {"load": figures.LOAD}).items():
            if what in only and figure not in self.flags:
                self._tune_bench(figure, quick)
        if {"encode", "ask", "first", "serve"} & {*only} and figures.VQA not in self.flags:
            self._tune_cli(quick)

    def _tune_bench(self, figure: Figure, quick: bool) -> None:
        shape, choices = SHAPES[figure]

        def words(flags: Mapping[str, str]) -> list[str]:
            return [*shape.split(), *chain(*flags.items())]

        def how_good(flags: Mapping[str, str]) -> float:
            found = (self.bench if figure.more_is_better else self.load)(words(flags))
            print(f"  {found:6.1f} {figure.unit}  {shlex.join(words(flags))}", file=sys.stderr)
            return found if figure.more_is_better else -found

        best = {flag: usual for flag, (usual, *_) in choices.items()}
        most = how_good(best)
        for flag, (_, *others) in () if quick else choices.items():
            for value in others:
                if (found := how_good(best | {flag: value})) > most:
                    best, most = best | {flag: value}, found
        self.flags[figure] = words(best)

    def _tune_cli(self, quick: bool) -> None:
        encode, whole = dict[tuple[str, ...], float](), dict[tuple[str, ...], float]()

        def seconds(mmproj: str, variant: str = "") -> float:
            flags = ("--mmproj", mmproj, *variant.split())
            ran, encode[flags] = self.cli(NEW, flags)
            whole[flags] = ran.seconds
            told = f"{ran.seconds:6.2f} s, {encode[flags]:.2f} s of it encode"
            print(f"  {told}  {shlex.join(flags)}", file=sys.stderr)
            return ran.seconds

        best = min(self._mmprojs, key=seconds)
        for variant in () if quick else VARIANTS:
            seconds(best, variant)
        self.flags[figures.ENCODE] = [*min(encode, key=encode.__getitem__)]
        self.flags[figures.VQA] = [*min(whole, key=whole.__getitem__)]

    def remember(self, path: Path) -> None:
        """Takes the flags that an earlier run left in a file."""
        if path.exists():
            found = json.loads(path.read_text())
            self.flags = {f: found[f.name] for f in figures.TUNED if f.name in found}

    def keep(self, path: Path) -> None:
        """Leaves the flags in a file for `remember`."""
        path.write_text(json.dumps({f.name: flags for f, flags in self.flags.items()}, indent=1) + "\n")

    def commands(self) -> dict[str, str]:
        """The whole commands, by the name of their figure."""
        found = {}
        for figure, flags in self.flags.items():
            program, count = (self._bench, ["-r", str(REPEATS.get(figure, 1))])
            if figure in (figures.ENCODE, figures.VQA):
                program, count = (self._cli, ["-n", str(1 if figure is figures.ENCODE else NEW)])
            found[figure.name] = shlex.join([*program, *flags, *count])
        return found


def answers(url: str) -> bool:
    """Whether a server says that all is well."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False
