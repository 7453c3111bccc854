"""Fuzzes the readers of weights and tokenizers: a file is read, or refused as a UserError, soon and cheaply.

    python -m tests.checkpoints.fuzz                    # ten minutes, shared by all targets
    python -m tests.checkpoints.fuzz --seconds 60 --target gguf
    python -m tests.checkpoints.fuzz --target gguf --replay .cache/fuzz/gguf/crash-0123456789abcdef

With atheris installed (extra "fuzz") the search follows coverage; without it, files are mutated at
random from the same seeds. Each target runs in a process of its own. A finding is any exception but
UserError, a crash of the interpreter, a file that takes more than ten seconds or 1 GB, or a tensor
that is not what its reader says. Findings are kept, and the exit status is 1.
"""

import argparse
import importlib.util
import json
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path

from mvlm_np.checkpoints.tensors import Tensor
from mvlm_np.errors import UserError

OUT = Path(".cache/fuzz")
SCRATCH = "/dev/shm" if Path("/dev/shm").is_dir() else None  # in memory: a disk would be the bottleneck
SECONDS_A_FILE = 10
MEMORY = 1 << 30
SMALL = 1 << 20  # bytes of a tensor that is worth converting here


@dataclass(frozen=True)
class Target:
    """A reader under test. `wrap` makes a file of what the fuzzer invents; `words` are worth inventing."""

    read: Callable[[Path], Iterable[object]]  # tensors, which are then read too, or anything
    seeds: Callable[[], list[bytes]]
    wrap: Callable[[bytes], bytes] = bytes
    words: tuple[bytes, ...] = ()


def _pickle(path: Path) -> Iterable[Tensor]:
    from mvlm_np.checkpoints.pickles import read_pickle

    return read_pickle(path).values()


def _safetensors(path: Path) -> Iterable[Tensor]:
    from mvlm_np.checkpoints.safetensors import read_safetensors

    return read_safetensors(path).values()


def _gguf(path: Path) -> Iterable[Tensor]:
    from mvlm_np.checkpoints.gguf import read_gguf

    return read_gguf(path).tensors.values()


def _tokenizer_json(path: Path) -> list[int]:
    """Ids of a text by this tokenizer; decoding must give the same text at once and piece by piece."""
    from mvlm_np.checkpoints.checkpoint import StoredTokenizer
    from mvlm_np.checkpoints.tokenizer_json import read_tokenizer_json
    from mvlm_np.inputs.tokenizer import make

    tokenizer = make(StoredTokenizer(read_tokenizer_json(path), where=path))
    ids = tokenizer.encode("ab a  b\n<x> \u00e9abcd </s>e\u2581 <x>\U0001f600 cd" * 3)
    stream = tokenizer.stream()
    assert "".join([stream.push(i) for i in ids]) + stream.finish() == tokenizer.decode(ids)
    tokenizer.decode(range(tokenizer.vocab_size), skip_special_tokens=False)
    return ids


def _tokenizer_jsons() -> list[bytes]:
    from tests.tokenizer_jsons import VARIANTS, small, variant

    return [json.dumps(variant(small(), name, more)).encode() for more in range(8) for name in VARIANTS]


def _torch_file() -> bytes:
    import torch

    out = BytesIO()
    values = torch.arange(6).reshape(2, 3)
    state = {str(dtype): values.to(dtype) for dtype in (torch.float32, torch.bfloat16, torch.int8)}
    parameter, tagged = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    tagged.tag, tagged.sizes = ["a"], torch.Size([2])
    torch.save(state | {"view": values.T, "parameter": parameter, "tagged": tagged}, out)
    return out.getvalue()


def _torch_files() -> list[bytes]:
    from tests.checkpoints.hostile_pickles import CASES, checkpoint

    return [_torch_file(), checkpoint(), *(data for data, _ in CASES.values())]


def _torch_programs() -> list[bytes]:
    import zipfile

    from tests.checkpoints.hostile_pickles import GOOD

    archive = zipfile.ZipFile(BytesIO(_torch_file()))
    return [GOOD, *(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))]


def _with_storages(program: bytes) -> bytes:
    from tests.checkpoints.hostile_pickles import Entry, checkpoint

    return checkpoint(program, *(Entry(b"m/data/%d" % key, bytes(24)) for key in range(1, 4)))


def _safetensors_files() -> list[bytes]:
    import numpy as np
    from safetensors.numpy import save

    from tests.checkpoints.hostile_safetensors import CASES, packed

    values = np.arange(6).reshape(2, 3)
    kinds = ("float32", "float16", "int8", "int64", "bool")
    good = [
        save({kind: values.astype(kind) for kind in kinds}, {"format": "np"}),
        packed("int8 16 32"),
        save({}),
    ]
    return good + [data for data, _ in CASES.values()]


def _safetensors_headers() -> list[bytes]:
    return [file[8 : 8 + int.from_bytes(file[:8], "little")] for file in _safetensors_files()]


def _with_data(header: bytes) -> bytes:
    """A file of the header's length, with as many bytes of data as the largest number in the header."""
    size = max(map(int, re.findall(rb"\d{1,4}", header)), default=0)
    return len(header).to_bytes(8, "little") + header + bytes(size)


def _gguf_files() -> list[bytes]:
    from tests.checkpoints.hostile_gguf import CASES, GOOD

    return [GOOD, *(data for data, _ in CASES.values())]


_JSON = (
    *(b'"dtype":"F32"', b'"BF16"', b'"shape":[', b'"data_offsets":[', b'"__metadata__":{', b"1e999", b"NaN"),
    *(b'"mvlm_np.packed":"1"', b"int4 16 32"),
)
TARGETS = {
    "pickle": Target(_pickle, _torch_files, words=(b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"\xff" * 4)),
    "pickle-program": Target(
        _pickle,
        _torch_programs,
        _with_storages,
        (
            b"ctorch\nFloatStorage\n",
            b"ccollections\nOrderedDict\n",
            b"ctorch._utils\n_rebuild_tensor_v2\n",
            b"ctorch._tensor\n_rebuild_from_type_v2\n",
            b"\x8a\x08",
        ),
    ),
    "safetensors": Target(_safetensors, _safetensors_files, words=_JSON),
    "safetensors-header": Target(_safetensors, _safetensors_headers, _with_data, _JSON),
    "tokenizer.json": Target(
        _tokenizer_json,
        _tokenizer_jsons,
        words=(b'"id":5,"content":"a"', b'"normalized":true', b'{"type":"Prepend","prepend":"a"}', b"null"),
    ),
    "gguf": Target(_gguf, _gguf_files, words=(b"GGUF", b"general.alignment", b"\xff" * 8)),
}


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

    with atheris.instrument_imports(include=["mvlm_np.checkpoints", "mvlm_np.inputs"]):
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
        command = [sys.executable, "-m", "tests.checkpoints.fuzz", "--child", scratch, "--target", name]
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
