"""Trains the demo model, from nothing, in three stages.

    python tools/train_demo.py runs/demo                  # goes on where an earlier call was stopped
    python tools/train_demo.py runs/try --recipe minute   # a minute's worth, which learns a little
    python tools/train_demo.py runs/demo --lora 8         # stage 2 as an adapter: runs/demo/adapter
    python tools/train_demo.py runs/data --write-data 100 # pictures and conversations in upstream's format
    python tools/train_demo.py mvlm_np/demo/pictures --write-pictures   # those of `mvlm demo`

Stage 0 teaches the vision tower with dense labels, patch by patch; stages 1 and 2 are upstream's, captions
and then instructions, with the tower frozen. The model appears in FOLDER/model, a folder like any other,
beside the checkpoints and the loss curves. It needs torch and transformers (the extra "test"); a GPU is
used if there is one. docs/demo.md tells the whole story.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

from tools.demo.recipe import RECIPES, train, write_data, write_pictures
from tools.parts.arguments import at_least_1
from tools.parts.command import ended

# Two processes of one thread each wait for each other once a step; two threads, after every matrix product.
PROCESSES = "train with N processes of cores/N threads; on a busy machine quicker than one (1)"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("folder", type=Path, metavar="FOLDER", help="where checkpoints and model are kept")
    top.add_argument("--recipe", choices=[*RECIPES], default="demo")
    top.add_argument("--pictures", type=Path, metavar="FOLDER", help="where to keep rendered pictures")
    top.add_argument("--workers", type=at_least_1, default=1, metavar="N", help="processes that render (1)")
    top.add_argument("--processes", type=at_least_1, default=1, metavar="N", help=PROCESSES)
    top.add_argument(
        "--threads", type=at_least_1, metavar="N", help="torch threads of each process (all cores)"
    )
    top.add_argument("--lora", type=int, default=0, metavar="RANK", help="stage 2 as an adapter of this rank")
    top.add_argument(
        "--write-data", type=at_least_1, metavar="N", help="only write N scenes, in upstream's form"
    )
    top.add_argument(
        "--turns", type=at_least_1, metavar="N", help="questions in each conversation written (all)"
    )
    top.add_argument("--write-pictures", action="store_true", help="only write the pictures of `mvlm demo`")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        args.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"train_demo: {args.folder}: cannot be made ({error.strerror}); name another", file=sys.stderr)
        return 2

    def work() -> None:
        if args.write_data:
            write_data(args.folder, "train", args.write_data, args.turns)
        elif args.write_pictures:
            write_pictures(args.folder)
        else:
            train_as_asked(args)

    return ended("train_demo", work, "stopped; the same command goes on")


def train_as_asked(args: argparse.Namespace) -> None:
    if args.processes == 1:
        print(run(args))
        return
    from torch.multiprocessing import spawn

    with TemporaryDirectory() as meeting:
        spawn(run_together, (args, f"file://{meeting}/point"), args.processes)


def run(args: argparse.Namespace) -> Path:
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    recipe = RECIPES[args.recipe]
    return train(recipe, args.folder, pictures=args.pictures, workers=args.workers, lora=args.lora)


def run_together(rank: int, args: argparse.Namespace, meeting: str) -> None:
    """One of several processes, which have a part of every batch each and take the same steps."""
    import torch.distributed as ranks

    args.threads = args.threads or max(1, (os.cpu_count() or 1) // args.processes)
    this, all_ = ("RANK", "LOCAL_RANK"), ("WORLD_SIZE", "LOCAL_WORLD_SIZE")  # by these accelerate knows them
    os.environ |= dict.fromkeys(this, str(rank)) | dict.fromkeys(all_, str(args.processes))
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # else accelerate sets a number of its own
    patience = timedelta(hours=4)  # one of them may be paused, or render
    ranks.init_process_group("gloo", meeting, patience, args.processes, rank)
    run(args)
    ranks.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
