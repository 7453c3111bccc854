"""What the SOURCE of a call means, and the programs of the usual cameras."""

import os
import shutil
import stat
import sys

from mvlm_np.errors import UserError
from mvlm_np.inputs.picture_file import open_file
from mvlm_np.paths import local
from mvlm_np.watch.clock import Clock
from mvlm_np.watch.process import printable, require, words
from mvlm_np.watch.snapshots import Snapshots
from mvlm_np.watch.sources import PICTURES, Command, Files, Source, Stream

CAMERAS = ("rpicam", "usb", "rtsp")


def open_source(text: str, camera: str | None, every: float, clock: Clock) -> Source:
    """The source that is meant.

    text    "-", an address, a folder, a file, a command; or what `camera` is to open, "" for its usual one
    camera  one of CAMERAS, or None
    every   seconds between looks at an address, a folder or a file

    UserError: it is none of these.
    """
    scheme = text.partition("://")[0].lower() if "://" in text.split(" ")[0] else ""
    if camera is None and scheme in ("rtsp", "rtsps"):
        camera = "rtsp"
    if camera is not None:
        return Command(command(camera, text))
    if text == "-":
        return Stream(sys.stdin.buffer)
    if scheme in ("http", "https"):
        return Snapshots(text, every, clock)
    path = local(text, "SOURCE")
    if os.path.exists(path):
        return _files(path, every, clock)
    if scheme:
        raise UserError(printable(text), "is an address of another kind", "http, https or rtsp")
    if len(text.split()) == 1 and (os.sep in text or shutil.which(text) is None):
        found = "there is no such file, folder or program"
        raise UserError(text, found, fix="check its name; mvlm watch --help shows all kinds of sources")
    return Command(words(text, "SOURCE"))


def command(camera: str, which: str) -> list[str]:
    """The command that shows a usual camera.

    which  rpicam: its number, usb: its device, rtsp: its address; "" for the first one

    UserError: there is no such camera, or its program is not installed.
    """
    option = f"--camera {camera}"
    if camera == "rpicam":
        if which and not which.isdecimal():
            raise UserError(option, f"found {which!r}", "a camera's number: 0, or nothing for the first one")
        program = "rpicam-vid"
        if shutil.which(program) is None and shutil.which("libcamera-vid"):
            program = "libcamera-vid"  # as it was called until 2024
        require(program, option)
        size = ["--width", "1296", "--height", "972", "--framerate", "5"]
        return [program, "-t", "0", "-n", "--codec", "mjpeg", *size, "--camera", which or "0", "-o", "-"]
    if camera == "usb":
        device = which or "/dev/video0"
        require("v4l2-ctl", option)
        if not os.path.exists(device):
            raise UserError(option, f"there is no {device}", fix="v4l2-ctl --list-devices lists them")
        form = "--set-fmt-video=width=1280,height=720,pixelformat=MJPG"
        return ["v4l2-ctl", f"--device={device}", form, "--stream-mmap", "--stream-to=-"]
    if camera == "rtsp":
        if not which.lower().startswith(("rtsp://", "rtsps://")):
            raise UserError(
                option, f"found {printable(which)!r}", "its address: rtsp://user:password@camera/..."
            )
        require("ffmpeg", option)
        ask = ["-rtsp_transport", "tcp", "-i", which]
        give = ["-an", "-vf", "fps=2", "-q:v", "3", "-c:v", "mjpeg", "-f", "image2pipe", "-"]
        return ["ffmpeg", "-nostdin", "-loglevel", "error", *ask, *give]
    raise UserError("--camera", f"found {camera!r}", f"one of {', '.join(CAMERAS)}")


def _files(path: str, every: float, clock: Clock) -> Source:
    mode = os.stat(path).st_mode
    if stat.S_ISCHR(mode):
        raise UserError(path, "is a device", fix=f"a camera: mvlm watch --camera usb {path} ...")
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise UserError(path, "is neither a file nor a folder", fix=f"mvlm watch - ... < {path} reads it")
    # On a card or a stick of Windows, everything may be run.
    if stat.S_ISREG(mode) and os.access(path, os.X_OK) and not path.lower().endswith(PICTURES):
        return Command([os.path.abspath(path)])
    if stat.S_ISREG(mode) and os.path.getsize(path):
        open_file(path).close()  # says what it is, if it is no picture
    return Files(path, every, clock)
