"""Fuzzes what reads what others wrote, files of weights and requests: it is read, or refused as a UserError.

    python -m tests.fuzz                                # ten minutes, shared by all targets
    python -m tests.fuzz --seconds 600 --target openai --target ollama-chat
    python -m tests.fuzz --target gguf --replay .cache/fuzz/gguf/crash-0123456789abcdef

With atheris installed (extra "fuzz") the search follows coverage; without it, files are mutated at
random from the same seeds. Each target runs in a process of its own. A finding is any exception but
UserError, a crash of the interpreter, a file that takes more than ten seconds or 1 GB, or a tensor
that is not what its reader says. Findings are kept, and the exit status is 1.
"""

import argparse
import importlib.util
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from hashlib import sha256
from pathlib import Path

from mvlm_np.checkpoints.tensors import Tensor
from mvlm_np.errors import UserError
from tests.checkpoints import fuzz_targets as weights
from tests.fuzz_target import Target
from tests.serve import fuzz_targets as requests

TARGETS = weights.TARGETS | requests.TARGETS
OUT = Path(".cache/fuzz")
SCRATCH = "/dev/shm" if Path("/dev/shm").is_dir() else None  # in memory: a disk would be the bottleneck
SECONDS_A_FILE = 10
MEMORY = 1 << 30
SMALL = 1 << 20  # bytes of a tensor that is worth converting here


def try_file(target: Target, path: Path, data: bytes) -> None:
    """Reads one invented file, and each small tensor in it. Raises if anything is wrong with that."""
    path.write_bytes(target.wrap(data))
    try:
        for tensor in target.read(path):
            if isinstance(tensor, Tensor) and tensor.nbytes <= SMALL:
                values = tensor.float32()
                assert values.dtype == "float32" and values.shape == tensor.shape, tensor.name
                values.tobytes()  # reads every value: a process that reads outside the file is killed
    except UserError:
        pass


def fuzz_by_coverage(target: Target, seconds: int, folder: Path, scratch: Path) -> None:
    """Does not return: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=list(target.instrument)):
        for seed in target.seeds()[:1]:
            try_file(target, scratch / "file", seed)  # imports the reader
    corpus, words = scratch / "corpus", scratch / "words"
    corpus.mkdir()
    for i, seed in enumerate(target.seeds()):
        (corpus / str(i)).write_bytes(seed)
    words.write_text(
        "".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in target.words)
    )
    options = {
        "max_total_time": seconds,
        "timeout": SECONDS_A_FILE,
        "rss_limit_mb": MEMORY >> 20,
        "max_len": 1 << 14,
        "artifact_prefix": f"{folder}/",
        "dict": words,
        "print_final_stats": 1,
    }
    atheris.Setup(
        [sys.argv[0], *(f"-{key}={value}" for key, value in options.items()), str(corpus)],
        lambda data: try_file(target, scratch / "file", data),
    )
    atheris.Fuzz()


def fuzz_at_random(target: Target, seconds: int, folder: Path, scratch: Path) -> None:
    """Mutates the seeds until the time is up; goes on after a finding, but keeps one for each place."""
    seeds, rng, places, count = target.seeds(), random.Random(0), set(), 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutated(rng, seeds, target.words)
        count += 1
        signal.alarm(SECONDS_A_FILE)
        try:
            try_file(target, scratch / "file", data)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            if (place.filename, place.lineno) not in places:
                places.add((place.filename, place.lineno))
                (folder / f"crash-{sha256(data).hexdigest()[:16]}").write_bytes(data)
                traceback.print_exc()
        signal.alarm(0)
    print(f"stat::number_of_executed_units: {count}")
    sys.exit(bool(places))


def _too_slow(*_: object) -> None:
    raise TimeoutError(f"one file took more than {SECONDS_A_FILE} s")


def mutated(rng: random.Random, seeds: list[bytes], words: tuple[bytes, ...]) -> bytes:
    """A seed after one to eight changes: bytes set, cut out, or taken from another seed or from `words`."""
    data = bytearray(rng.choice(seeds)[: 1 << 14])
    for _ in range(rng.randint(1, 8)):
        at, length = rng.randint(0, len(data)), rng.choice([0, 1, 2, 4, 8, rng.randint(1, 64)])
        other = rng.choice(seeds)
        start = rng.randint(0, len(other))
        new = rng.choice(
            [
                rng.randbytes(length),
                bytes([rng.choice([0, 1, 0x7F, 0x80, 0xFF])]) * length,
                rng.getrandbits(rng.randint(1, 64)).to_bytes(8, "little")[: length or 1],
                other[start : start + length],
                rng.choice(words),
                b"",
            ]
        )
        data[at : at + rng.choice([0, length, len(new)])] = new
    return bytes(data)


def run(name: str, seconds: int, engine: str, out: Path) -> bool:
    """One target in a process of its own; says how it went, and whether it went well."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log"
    with open(log, "w") as file, tempfile.TemporaryDirectory(dir=SCRATCH) as scratch:
        command = [sys.executable, "-m", "tests.fuzz", "--child", scratch, "--target", name]
        command += ["--seconds", str(seconds), "--engine", engine, "--out", str(out)]
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
        last = Path(scratch) / "file"
        if status < 0 and last.exists():  # killed by a signal: what it was reading is the finding
            (folder / f"killed-by-signal-{-status}").write_bytes(last.read_bytes())
    text = log.read_text(errors="replace")
    files = text.partition("stat::number_of_executed_units:")[2].split()[:1] or ["?"]
    verdict = "clean" if status == 0 else f"FOUND SOMETHING, see {log}"
    print(f"{name}: {files[0]} files in {seconds} s: {verdict}", flush=True)
    return status == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=600, help="for all targets together (default: 600)")
    parser.add_argument(
        "--target", choices=TARGETS, action="append", help="one target alone; may be repeated"
    )
    parser.add_argument("--engine", choices=["atheris", "random"], help="default: atheris if it is installed")
    parser.add_argument("--out", type=Path, default=OUT, help=f"for logs and findings (default: {OUT})")
    parser.add_argument("--replay", type=Path, help="read one finding again, without catching anything")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    names = args.target or list(TARGETS)
    engine = args.engine or ("atheris" if importlib.util.find_spec("atheris") else "random")
    if args.child:
        fuzz = fuzz_by_coverage  # which has limits of its own
        if engine == "random":
            fuzz = fuzz_at_random
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            signal.signal(signal.SIGALRM, _too_slow)
        fuzz(TARGETS[names[0]], args.seconds, args.out / names[0], args.child)
    if args.replay:
        with tempfile.TemporaryDirectory(dir=SCRATCH) as scratch:
            try_file(TARGETS[names[0]], Path(scratch) / "file", args.replay.read_bytes())
        return 0
    kind = "guided by coverage (atheris)" if engine == "atheris" else "at random (without atheris)"
    print(f"Fuzzing {', '.join(names)}: {kind}, {args.seconds} s in all.", flush=True)
    return (
        0 if all([run(name, max(1, args.seconds // len(names)), engine, args.out) for name in names]) else 1
    )


if __name__ == "__main__":
    sys.exit(main())
