"""Debian packages unpacked into a folder of their own: of another processor, or of another release.

apt is told to work in that folder too, so the machine's own packages, architectures and lists stay as they
are, and no root is needed. Packages come from the archive that this machine's apt is set up for, and apt
checks their signatures.
"""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mvlm_np.errors import UserError

KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def unpack(packages: Sequence[str], folder: Path, architecture: str, suite: str | None = None) -> Path:
    """Packages and all that they need, in `folder/root`, which is returned; one that is there is kept.

    architecture  as Debian calls it: arm64, amd64
    suite         of Debian, such as sid; None: the releases that this machine's apt is set up for

    UserError: apt-get or dpkg-deb is missing, or one of them failed; what it said is on stderr.
    """
    root, apt, partial = folder / "root", folder / "apt", folder / "root.partial"
    if root.exists():
        return root
    for program in ("apt-get", "dpkg-deb"):
        if not shutil.which(program):
            fix = f"on Debian and Ubuntu: apt-get install {program.removesuffix('-get').removesuffix('-deb')}"
            raise UserError(program, "is not installed", None, fix)
    for part in ("lists/partial", "archives/partial", "no-more-sources"):
        (apt / part).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()  # nothing is installed
    settings: dict[str, object] = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "",  # another user may have no access to this folder
        "Dir::State": apt,
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt,
        "Dir::Log": apt,
    }
    if suite:
        settings["Dir::Etc::sourcelist"] = _sources(suite, apt / "debian.sources")
        settings["Dir::Etc::sourceparts"] = apt / "no-more-sources"
    options = [f"-o{name}={value}" for name, value in settings.items()]
    fix = f"this machine's package sources must have {suite or architecture} too"
    must("apt-get", [*options, "update"], fix)
    must("apt-get", [*options, "install", "--yes", "--download-only", *packages], fix)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name in ("bin", "lib", "lib64", "sbin"):
        (partial / "usr" / name).mkdir(parents=True)
        (partial / name).symlink_to(f"usr/{name}")
    for package in sorted((apt / "archives").glob("*.deb")):
        # Not dpkg -x, which replaces a link by the folder that an older package has in its place.
        tar = subprocess.run(
            ["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE, check=True
        ).stdout
        subprocess.run(["tar", "-x", "--keep-directory-symlink", "-C", partial], input=tar, check=True)
    partial.rename(root)
    return root


def _sources(suite: str, file: Path) -> Path:
    """Writes apt's list of sources for a suite, from the archive that this machine takes Debian from."""
    known = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(LABEL)"],
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    archives = [line.split()[0] for line in known.splitlines() if line.split()[1:] == ["Debian", "Debian"]]
    if not archives or not KEYS.exists():
        raise UserError(
            "apt", "knows no archive of Debian", "one, and its keys", f"to unpack {suite} from it"
        )
    lines = {"Types": "deb", "URIs": archives[0], "Suites": suite, "Components": "main", "Signed-By": KEYS}
    file.write_text("".join(f"{name}: {value}\n" for name, value in lines.items()))
    return file


def must(program: str, arguments: Sequence[str], fix: str) -> None:
    """Runs a program. UserError: it failed; what it said is on stderr."""
    done = subprocess.run([program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        raise UserError(Path(program).name, f"ended with {done.returncode}", "0", fix)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """What a program said last, on stderr if it said anything there."""
    said = (done.stderr or "").strip() or done.stdout.strip() or f"ended with {done.returncode}"
    return said.splitlines()[-1]
