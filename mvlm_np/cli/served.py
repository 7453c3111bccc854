"""`mvlm bench --serve`: what those who ask `mvlm serve` wait for.

The server is a process of its own, as it is in use, and is asked over HTTP. The same engine is asked without
HTTP in this process; all take turns in each round. What a client measures here it can measure with any server
that speaks OpenAI's dialect.
"""

import http.client
import json
import os
import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from threading import Event, Thread
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from mvlm_np.errors import UserError

CLIENTS = 4  # at once
NEW = 3  # tokens of an answer of which only the first counts
PATIENCE = 600.0  # seconds in which a server says something
EACH = 0.05  # seconds between two questions after its health
QUESTION = "This is question {}: describe the picture."
NUMBERS = count(1)  # no question is asked twice


@dataclass(frozen=True)
class Heard:
    """What a client has heard of an answer, and when, by `perf_counter`.

    asked   when the request was sent
    pieces  when each piece of the text came
    tokens  how many the answer has; some pieces may hold several
    read    how many tokens of the prompt were read, that is, not found in a cache; 0 where nobody says so
    """

    asked: float
    pieces: tuple[float, ...]
    tokens: int
    read: int = 0

    @property
    def first(self) -> float:
        """Seconds to the first of the text."""
        return self.pieces[0] - self.asked


def ask(url: str, picture: bytes, new: int, question: str | None = None) -> Heard:
    """Asks a server about a JPEG, in OpenAI's dialect. A new question, unless there is one.

    UserError: it refuses, or answers nothing.
    """
    image = {"url": "data:image/jpeg;base64," + b64encode(picture).decode()}
    text = question or QUESTION.format(next(NUMBERS))
    content = [{"type": "image_url", "image_url": image}, {"type": "text", "text": text}]
    body: dict[str, Any] = {"messages": [{"role": "user", "content": content}], "max_tokens": new}
    body |= {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE)
    pieces, usage = list[float](), dict[str, Any]()
    try:
        asked = perf_counter()
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        reply = connection.getresponse()
        if reply.status != 200:
            raise UserError(url, f"answers {reply.status}: {reply.read().decode(errors='replace').strip()}")
        for line in reply:  # others than these are empty, or comments that say that it still computes
            if line.startswith(b"data: {"):
                part = json.loads(line.removeprefix(b"data: "))
                if "error" in part:
                    raise UserError(url, f"says {part['error']}")
                if any(choice["delta"].get("content") for choice in part.get("choices", ())):
                    pieces.append(perf_counter())
                usage = part.get("usage") or usage
    except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
        raise UserError(url, f"cannot be understood ({error})", "an answer in OpenAI's dialect") from None
    finally:
        connection.close()
    tokens = usage.get("completion_tokens", 0)
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    if not pieces:
        raise UserError(url, f"gives an answer of {tokens} tokens without text", "an answer to time")
    return Heard(asked, tuple(pieces), tokens, usage.get("prompt_tokens", 0) - cached)


def tokens_per_second(answers: Sequence[Heard]) -> float:
    """Of all answers together, in the time in which all of them were being written."""
    begin, end = max(heard.pieces[0] for heard in answers), min(heard.pieces[-1] for heard in answers)
    if begin >= end:
        raise UserError("--new", "found an answer that ended before the others began", "more tokens for each")
    written = 0.0
    for heard in answers:
        within = sum(begin < at <= end for at in heard.pieces)
        written += within * (heard.tokens - 1) / (len(heard.pieces) - 1)
    return written / (end - begin)


def together(url: str, pictures: Sequence[bytes], new: int) -> list[Heard]:
    """As many clients as there are pictures, all of them at once."""
    with ThreadPoolExecutor(len(pictures)) as clients:
        return [*clients.map(lambda picture: ask(url, picture, new), pictures)]


def photo(seed: int) -> bytes:
    """A JPEG of 640 x 480 that is like no other one."""
    small = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


class Health:
    """Asks after a server's health all the time, and takes the seconds of each reply."""

    def __init__(self, url: str):
        self.seconds: list[float] = []
        self._netloc = urlsplit(url).netloc

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While the block runs."""
        over = Event()
        thread = Thread(target=self._watch, args=(over,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _watch(self, over: Event) -> None:
        while True:
            connection = http.client.HTTPConnection(self._netloc, timeout=PATIENCE)
            start = perf_counter()
            connection.request("GET", "/health")
            connection.getresponse().read()
            self.seconds.append(perf_counter() - start)
            connection.close()
            if over.wait(EACH):
                return


# ---------------------------------------------------------------- ours


class Server:
    """`mvlm serve` in a process of its own, on a free port of this machine. url: its address."""

    def __init__(self, process: "subprocess.Popen[str]", url: str):
        self.process, self.url = process, url

    @property
    def peak(self) -> int:
        """Bytes of memory that it has taken, at most."""
        from mvlm_np import memory

        return memory.peak(self.process.pid) or 0

    @property
    def own(self) -> int:
        """Bytes of memory that it takes now, without what is mapped from files, as weights are."""
        from mvlm_np import memory

        return memory.own(self.process.pid) or 0


@contextmanager
def serving(arguments: Sequence[str]) -> Iterator[Server]:
    """While the block runs, `mvlm serve` with these arguments does. UserError: it does not start."""
    command = [sys.executable, "-m", "mvlm_np", "serve", "--port", "0", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "MVLM_API_KEY"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        reader = Thread(target=process.stderr.read, daemon=True)  # a full pipe would stop it
        try:
            said = ""
            for said in process.stderr:
                if found := re.search(r" answers at (\S+);", said):
                    reader.start()
                    yield Server(process, found[1])
                    return
            raise UserError("--serve", f"mvlm serve did not start: {said.strip().removeprefix('mvlm: ')}")
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
            if reader.ident is not None:
                reader.join()


def measure(model: dict[str, Any], new: int, rounds: int) -> dict[str, Any]:
    """Medians over the rounds.

    model  the keyword arguments of `load`
    new    tokens of each answer
    UserError: the server does not start, or cannot be asked about pictures.
    """
    given = {"model": model["path_or_name"], **model}
    del given["path_or_name"]
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]
    asked = _peak_of_ask(arguments, new)
    with serving(arguments) as server:
        engine, health, found = Directly(model), Health(server.url), dict[str, list[float]]()
        own = 0
        seen = [photo(number) for number in range(CLIENTS)]
        for picture in seen * 2:  # unmeasured: what is asked about twice is kept
            ask(server.url, picture, NEW)
            engine.ask([picture], NEW)
        for number in range(rounds):
            new_one = photo(CLIENTS + number)
            with health.watched():
                cold = ask(server.url, new_one, NEW)
            again = ask(server.url, new_one, NEW)
            taken = {
                "cold": cold.first,
                "again": again.first,
                "one": tokens_per_second([ask(server.url, seen[0], new)]),
                "engine": tokens_per_second(engine.ask(seen[:1], new)),
                "together": tokens_per_second(together(server.url, seen, new)),
                "engine together": tokens_per_second(engine.ask(seen, new)),
            }
            for name, value in taken.items():
                found.setdefault(name, []).append(value)
            own = max(own, server.own)
        peak = server.peak
    times = {name: median(values) for name, values in found.items()}
    return {
        "first_token_cold_seconds": times["cold"],
        "read_cold": cold.read,
        "read_same_picture": again.read,
        "first_token_same_picture_seconds": times["again"],
        "tokens_per_second": times["one"],
        "tokens_per_second_without_http": times["engine"],
        "clients": CLIENTS,
        "together_tokens_per_second": times["together"],
        "together_without_http": times["engine together"],
        "health_p99_seconds": float(np.percentile(health.seconds, 99)),
        "peak_memory_gb": peak / 1e9,
        "own_memory_gb": own / 1e9,
        "peak_memory_of_ask_gb": asked / 1e9,
        "rounds": found,
    }


class Directly:
    """The engine of a server, in this process and without HTTP. model: the keyword arguments of `load`."""

    def __init__(self, model: dict[str, Any]):
        from mvlm_np.loading import load
        from mvlm_np.serve.engine import Engine

        self._engine = Engine(load(**model))
        self._engine.start()

    def ask(self, pictures: Sequence[bytes], new: int) -> list[Heard]:
        """A request about each picture, all of them at once."""
        from mvlm_np.generation import Settings
        from mvlm_np.inputs.conversation import Message
        from mvlm_np.serve.requests import Failed, Finished, Piece, Request

        heard: list[list[tuple[float, Any]]] = [[] for _ in pictures]
        asked = perf_counter()
        for number, (picture, events) in enumerate(zip(pictures, heard, strict=True)):
            message = Message("user", QUESTION.format(next(NUMBERS)), (Image.open(BytesIO(picture)),))

            def listen(event: Any, events: list[tuple[float, Any]] = events) -> None:
                events.append((perf_counter(), event))

            self._engine.submit(Request((message,), Settings(new), client=str(number)), listen)
        while self._engine.step():
            pass
        answers = []
        for events in heard:
            _, end = events[-1]
            if isinstance(end, Failed):
                raise end.error
            assert isinstance(end, Finished)
            pieces = tuple(at for at, event in events if isinstance(event, Piece))
            answers.append(Heard(asked, pieces, end.completion_tokens))
        return answers


# Runs a program, and prints the most kilobytes of memory that it took. The count of a process begins with the
# size of the one that starts it, so a small one does.
_PEAK = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
"""


def _peak_of_ask(arguments: Sequence[str], new: int) -> int:
    """The most bytes of memory that `mvlm ask` takes for a picture."""
    with TemporaryDirectory() as folder:
        picture = Path(folder, "photo.jpg")
        picture.write_bytes(photo(0))
        command = [sys.executable, "-m", "mvlm_np", "ask", str(picture), QUESTION.format(next(NUMBERS))]
        command += ["--max-new-tokens", str(new), *arguments]
        done = subprocess.run([sys.executable, "-S", "-c", _PEAK, *command], capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().rpartition("\n")[2].removeprefix("mvlm: ")
        raise UserError("--serve", f"mvlm ask failed: {said}")
    return int(done.stdout) * 1024


def show(figures: dict[str, Any]) -> None:
    """Prints the figures."""

    def line(name: str, value: float, unit: str, more: str = "") -> None:
        print(f"{name:40} {value:9.3f} {unit:9} {more}".rstrip())

    one, engine = figures["tokens_per_second"], figures["tokens_per_second_without_http"]
    many, clients = figures["together_tokens_per_second"], figures["clients"]
    read = "{} tokens of the prompt were read"
    new, again = read.format(figures["read_cold"]), read.format(figures["read_same_picture"])
    line("first token, a new picture", figures["first_token_cold_seconds"], "s", new)
    line("first token, a picture asked about before", figures["first_token_same_picture_seconds"], "s", again)
    line("one client", one, "tokens/s", f"{one / engine:.3f} of the engine's without HTTP, {engine:.2f}")
    without = figures["together_without_http"]
    times = f"{many / one:.2f} ×; the engine's {without / engine:.2f} ×"
    line(f"{clients} clients at once, in all", many, "tokens/s", times)
    line("health while it computes, 99 % within", 1e3 * figures["health_p99_seconds"], "ms")
    more = figures["peak_memory_gb"] - figures["peak_memory_of_ask_gb"]
    line("peak memory", figures["peak_memory_gb"], "GB", f"{1e3 * more:+.0f} MB to that of mvlm ask")
    line("of it not mapped from files", figures["own_memory_gb"], "GB")
