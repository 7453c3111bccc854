"""The comparison with llama.cpp, run against programs that only say how fast they would be."""

import json
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

TOOL = ROOT / "tools" / "bench_llama_cpp.py"

# llama-bench is faster with flash attention for one token and without for many, and best in batches of 128.
BENCH = f"""#!{sys.executable}
import json, sys
words = [word for word in sys.argv[1:] if word != "--no-warmup"]
flags = dict(zip(words[::2], words[1::2]))
if flags["-n"] == "0":
    rate = 40 + 2 * (flags["-fa"] == "off") + (flags["-ub"] == "128")
else:
    rate = 10 + (flags.get("-fa") == "on")
print(json.dumps([{{"avg_ts": rate, "avg_ns": 1e6}}]))
"""
# llama-batched-bench gains by every other sequence.
BATCHED = f"""#!{sys.executable}
import json, sys
for count in sys.argv[sys.argv.index("-npl") + 1].split(","):
    print(json.dumps({{"pl": int(count), "speed_tg": 5.0 + 5 * int(count)}}))
"""
# llama-mtmd-cli encodes in half the time with the other mmproj.
CLI = f"""#!{sys.executable}
import sys
assert sys.argv[sys.argv.index("--image") + 1].endswith(".jpg")
print("Hello.")
print("mtmd batch encoding done in", 500 if "q8" in " ".join(sys.argv) else 1000, "ms", file=sys.stderr)
"""
# llama-server says two words, the first one sooner if the picture was there before.
SERVER = f"""#!{sys.executable}
import json, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
seen = set()
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        picture = body["messages"][0]["content"][0]["image_url"]["url"]
        time.sleep(0.02 if picture in seen else 0.2)
        seen.add(picture)
        self.send_response(200)
        self.end_headers()
        for word in range(body["max_tokens"]):
            part = {{"choices": [{{"delta": {{"content": "word "}}}}]}}
            self.wfile.write(b"data: " + json.dumps(part).encode() + b"\\n\\n")
            time.sleep(0.01)
        usage = {{"choices": [], "usage": {{"completion_tokens": body["max_tokens"]}}}}
        self.wfile.write(b"data: " + json.dumps(usage).encode() + b"\\n\\ndata: [DONE]\\n\\n")
    def log_message(self, *what):
        pass
port = int(sys.argv[sys.argv.index("--port") + 1])
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    programs = {"llama-bench": BENCH, "llama-mtmd-cli": CLI, "llama-batched-bench": BATCHED}
    programs["llama-server"] = SERVER
    for name, program in programs.items():
        (folder / name).write_text(program)
        (folder / name).chmod(stat.S_IRWXU)
    return folder


def run(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TOOL, *map(str, args)], capture_output=True, text=True)


def test_it_finds_their_best_flags_and_tells_how_much_faster_we_are(
    llama_cpp: Path, tiny: Path, tmp_path: Path
) -> None:
    files = ("--gguf", "m.gguf", "--mmproj", "f16.gguf", "q8.gguf")
    one = ("--llama-cpp", llama_cpp, "--rounds", 1, "--tuned", tmp_path / "flags")
    done = run(tiny, *files, *one, "--json", "--neighbour")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    rows = {row["figure"]: row for row in result["figures"]}
    decode = rows["decode behind 200 positions"]
    assert decode["theirs"] == [11]
    assert decode["ratio"] == pytest.approx(decode["ours"][0] / 11)
    encode = rows["image encode"]
    assert encode["theirs"] == [0.5]
    assert encode["ratio"] == pytest.approx(0.5 / encode["ours"][0])
    assert all(value > 0 for row in rows.values() for value in [*row["ours"], *row["theirs"]])
    assert decode["of_limit"][0] > 0
    beside = {name for name in rows if name.endswith(", busy neighbour")}
    assert len(beside) == 5 and {name.removesuffix(", busy neighbour") for name in beside} <= rows.keys()
    assert all(row["theirs"] == [] for name, row in rows.items() if "draft" in name)
    assert rows["4 sequences together, behind 200"]["theirs"] == [2.5]
    new, again, *_ = (rows[name]["theirs"] for name in rows if name.startswith("server: "))
    assert new[0] >= 0.2 and again[0] >= 0.02
    (first,) = (name for name in rows if name.startswith("the question, never run here"))
    assert first.endswith(("(kernels compiled)", "(kernels prebuilt)"))
    commands = {name: shlex.split(command) for name, command in result["commands"].items()}
    assert "on" in commands["decode behind 200 positions"]
    assert {"off", "128"} <= set(commands["prompt of 200"])
    assert any(word.endswith("q8.gguf") for word in commands["image encode"])
    # One float32 position takes as much as a few weights here, so a long context leaves only a part.
    assert 0 < result["long_context"]["bytes_leave"] < 1

    again = run(tiny, *files, *one, "--only", "load")
    told = again.stderr.splitlines()
    assert told[:2] == ["llama.cpp's flags, one by one:", "round 1 of 1"]  # and not one flag tried
    assert "| load | s |" in again.stdout


def test_without_llama_cpp_it_says_what_is_missing(tiny: Path, tmp_path: Path) -> None:
    done = run(tiny, "--gguf", "m", "--mmproj", "p", "--llama-cpp", tmp_path)
    if "llama-bench is neither" not in done.stderr:
        pytest.skip("llama.cpp is on the PATH")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
