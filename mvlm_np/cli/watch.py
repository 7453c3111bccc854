"""Watches a camera: asks the question when something has changed, and prints each answer as a line of JSON.

SOURCE is a command that writes JPEGs, the address of a snapshot, a folder (its newest picture), a file, or -
for JPEGs on standard input. With --camera it is what that camera needs: nothing or a number (rpicam), nothing
or a device (usb), an address (rtsp).

examples:
  mvlm watch --camera rpicam "What is in front of the door?"
  mvlm watch --camera rtsp rtsp://user:password@camera/stream "Is the gate open?" --yes-no --mqtt mqtt://broker
  mvlm watch http://camera/snapshot.jpg "What does the meter show?" --number --max-step 5 --at-most 1m
  mvlm watch "ffmpeg -loglevel error -f v4l2 -i /dev/video2 -c:v mjpeg -f image2pipe -" "Who is there?" --say
"""

import argparse
import os
import sys
from contextlib import ExitStack
from math import inf
from typing import TYPE_CHECKING

from mvlm_np import demo
from mvlm_np.cli import options
from mvlm_np.cli.calls import number, place, whole
from mvlm_np.errors import UserError

if TYPE_CHECKING:
    from mvlm_np.watch.asking import Asker
    from mvlm_np.watch.notes import Notes
    from mvlm_np.watch.outputs import Output
    from mvlm_np.watch.readings import Reader
    from mvlm_np.watch.sources import Source
    from mvlm_np.watch.stopping import Stopper

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
VOICE = "espeak-ng --stdin"
LOADING = ("precision", "threads", "cache", "vision_tower", "mmproj")  # options about a model that is loaded


def describe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="where pictures come from")
    parser.add_argument("question", nargs="?", metavar="QUESTION", help="comes last")
    group = parser.add_argument_group("pictures")
    group.add_argument("--camera", metavar="KIND", help="rpicam, usb or rtsp: the usual program for it")
    group.add_argument(
        "--every", metavar="T", type=seconds, default=1.0, help="look so often at an address or files (1s)"
    )
    group.add_argument("--save", metavar="FILE", type=place, help="keep the last picture asked about")
    group = parser.add_argument_group("when to ask")
    group.add_argument(
        "--change",
        metavar="PERCENT",
        type=number,
        help="of the picture that must differ; 0: each is a change (2; of files 0)",
    )
    group.add_argument(
        "--settle", metavar="T", type=seconds, help="ask when nothing has moved for so long (1s; of files 0)"
    )
    group.add_argument("--at-most", metavar="T", type=seconds, default=5.0, help="no sooner than that (5s)")
    group.add_argument(
        "--at-least",
        metavar="T",
        type=seconds,
        default=600.0,
        help="so often even if nothing changes, or never (10m)",
    )
    group.add_argument("--count", metavar="N", type=whole, help="end after N questions")
    group = parser.add_argument_group("answer")
    group.add_argument("--yes-no", action="store_true", help="the answer is yes, no, or null")
    group.add_argument("--number", action="store_true", help="the answer is a number, or null")
    group.add_argument("--min", metavar="X", type=number, help="smaller numbers are not believed")
    group.add_argument("--max", metavar="X", type=number, help="larger numbers are not believed")
    group.add_argument("--max-step", metavar="X", type=number, help="nor are numbers farther off")
    group.add_argument("--unit", metavar="U", help="of the number, for Home Assistant")
    group.add_argument("--sure", metavar="P", type=number, default=0.0, help="nor are answers less probable")
    group.add_argument("--only-if-answer-changes", action="store_true", help="no answer twice running")
    group.add_argument("--max-new-tokens", metavar="N", type=whole, default=64, help="at most this many (64)")
    group.add_argument("--conv-mode", metavar="NAME", default="v1", help="prompt template (v1)")
    group = parser.add_argument_group("where answers go, besides standard output")
    group.add_argument("--say", metavar="CMD", nargs="?", const=VOICE, help=f"read it out ({VOICE})")
    group.add_argument("--exec", metavar="CMD", help="run this with the line of JSON as its input")
    group.add_argument(
        "--mqtt",
        metavar="URL",
        default=os.environ.get("MVLM_MQTT") or None,
        help="publish it at mqtt://user:password@broker, and tell Home Assistant (default: $MVLM_MQTT)",
    )
    group.add_argument("--name", metavar="NAME", help="of this watch, for MQTT (mvlm watch)")
    options.add_model(parser, "$MVLM_MODEL, else the model in the box")
    parser.add_argument("--server", metavar="URL", help="ask a running mvlm serve; its key: $MVLM_API_KEY")


def seconds(text: str) -> float:
    """`type=` of an option that is a time: 500ms, 5s, 10m, 2h, a number of seconds, or never."""
    if text == "never":
        return inf
    digits = text.rstrip("hms")
    try:
        value = float(digits) * UNITS[text[len(digits) :] or "s"]
    except (ValueError, KeyError):
        value = -1.0
    if not 0 <= value < inf:
        raise argparse.ArgumentTypeError(f"found {text[:80]!r}, wanted a time, such as 500ms, 5s, 10m or 2h")
    return value


def run(args: argparse.Namespace) -> int:
    check(args)
    import signal

    from mvlm_np.cli.progress import lose_what_cannot_be_said
    from mvlm_np.watch.cameras import open_source
    from mvlm_np.watch.clock import Clock
    from mvlm_np.watch.gate import Gate
    from mvlm_np.watch.loop import Loop, Pace
    from mvlm_np.watch.notes import Notes
    from mvlm_np.watch.stopping import Stopped, Stopper

    lose_what_cannot_be_said()
    clock, stopper = Clock(), Stopper()
    notes = Notes(clock)
    with ExitStack() as stack:
        source = open_source(args.source or "", args.camera, args.every, clock)
        outputs = make_outputs(args, source, stopper, notes, stack)
        asker = make_asker(args)
        change, settle = (2.0, 1.0) if source.live else (0.0, 0.0)
        loop = Loop(
            source,
            Gate(
                (change if args.change is None else args.change) / 100,
                settle if args.settle is None else args.settle,
            ),
            asker,
            make_reader(args),
            outputs,
            Pace(args.at_most, args.at_least, args.count),
            sure=args.sure,
            only_changes=args.only_if_answer_changes,
            clock=clock,
            stopper=stopper,
            notes=notes,
        )
        stack.enter_context(stopper.listening())
        stack.callback(source.close)
        try:
            loop.run()
        except Stopped:
            return 130 if stopper.signal == signal.SIGINT else 0
    return 0


def check(args: argparse.Namespace) -> None:
    """UserError: the call is not as it should be. What can be seen before anything is loaded."""
    if args.question is None and args.camera:  # whose SOURCE may be left out
        args.source, args.question = None, args.source
    if args.question is None or not (args.source or args.camera):
        if args.say not in (None, VOICE):
            fix = f"has --say taken it? Put --say last, or write --say={VOICE!r}"
        else:
            fix = 'mvlm watch SOURCE "What has changed?"; mvlm watch --help shows all kinds of sources'
        raise UserError("the question or the source", "is missing", fix=fix)

    def require(ok: bool, option: str, wanted: str) -> None:
        if not ok:
            value = getattr(args, option.removeprefix("--").replace("-", "_"))
            raise UserError(option, f"found {value:g}", wanted)

    require(args.every > 0, "--every", "a time above 0")
    require(args.change is None or 0 <= args.change <= 100, "--change", "a percentage from 0 to 100")
    require(args.at_most <= args.at_least, "--at-most", f"no more than --at-least, {args.at_least:g} s")
    require(args.at_most < inf, "--at-most", "a time, not never")
    require(args.settle is None or args.settle < inf, "--settle", "a time, not never")
    require(args.count is None or args.count > 0, "--count", "at least 1")
    require(0 <= args.sure <= 1, "--sure", "a probability from 0 to 1")
    require(args.max_new_tokens > 0, "--max-new-tokens", "at least 1")
    require(args.max_step is None or args.max_step >= 0, "--max-step", "a number from 0")
    for option in ("min", "max", "max_step"):
        value = getattr(args, option)
        require(value is None or -inf < value < inf, f"--{option.replace('_', '-')}", "a finite number")
    if args.number and args.yes_no:
        raise UserError("--number", "stands beside --yes-no", "one of them")
    for option in ("min", "max", "max_step", "unit"):
        if getattr(args, option) is not None and not args.number:
            raise UserError(f"--{option.replace('_', '-')}", "is about a number", "--number too")
    if None not in (args.min, args.max) and args.min > args.max:
        raise UserError("--min", f"found {args.min:g}", f"no more than --max, which is {args.max:g}")
    if args.server:
        named = [name for name in LOADING if getattr(args, name)]
        if args.model != (os.environ.get("MVLM_MODEL") or None):
            named.insert(0, "model")
        if named:
            option = f"--{named[0].replace('_', '-')}"
            raise UserError(option, "stands beside --server", "one of them: the server has loaded its model")


def make_asker(args: argparse.Namespace) -> "Asker":
    """Who answers."""
    from mvlm_np.watch.asking import Local, Server

    if args.server:
        return Server(args.server, args.question, args.max_new_tokens)
    from mvlm_np.cli.progress import load_with_bar
    from mvlm_np.generation import Settings

    named = args.model
    arguments = options.model_arguments(args, or_demo=True)
    model = load_with_bar(**arguments)
    if not named:
        print(f"mvlm: note: {demo.NOTE}", file=sys.stderr)
    return Local(model, args.question, Settings(max_new_tokens=args.max_new_tokens), args.conv_mode)


def make_reader(args: argparse.Namespace) -> "Reader":
    """What of an answer is wanted."""
    from mvlm_np.watch import readings

    if args.number:
        return readings.Number(args.min, args.max, args.max_step)
    return readings.yes_no if args.yes_no else readings.text


def make_outputs(
    args: argparse.Namespace, source: "Source", stopper: "Stopper", notes: "Notes", stack: ExitStack
) -> "list[Output]":
    """Where answers go; `stack` closes it."""
    from mvlm_np.watch.outputs import Exec, Lines, Save, Say
    from mvlm_np.watch.process import words

    outputs: list[Output] = [Lines(sys.stdout)]
    if args.save:
        outputs.insert(0, Save(args.save, notes))  # so that the file is there when the line says so
    if args.mqtt:
        outputs.append(make_mqtt(args, source, notes))
    if args.exec is not None:
        outputs.append(Exec(words(args.exec, "--exec"), stopper, notes))
    if args.say is not None:
        outputs.append(Say(words(args.say, "--say"), stopper, notes))
    for output in outputs:
        stack.callback(output.close)
    return outputs


def make_mqtt(args: argparse.Namespace, source: "Source", notes: "Notes") -> "Output":
    """A connection to the broker."""
    from mvlm_np.watch.mqtt import Mqtt, discovery, identity
    from mvlm_np.watch.process import printable

    id = identity(args.name, source.name, args.question)
    kind = "number" if args.number else "yes_no" if args.yes_no else "text"
    model = os.path.basename(os.path.abspath(args.model or demo.MODEL))
    shown = args.name or "mvlm watch", args.question, kind, args.unit, printable(args.server or model)
    return Mqtt(args.mqtt, id, lambda base: discovery(id, base, *shown), notes)
