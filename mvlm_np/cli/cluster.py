"""Who answers rows: this process, several on this machine (--workers), or a Dask cluster (--dask)."""

import argparse
import logging
import os
import socket
import sys
from asyncio import CancelledError
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from mvlm_np.cli.calls import whole
from mvlm_np.errors import UserError
from mvlm_np.paths import local

if TYPE_CHECKING:
    from mvlm_np.config import Config
    from mvlm_np.rows.row import Answered

LOOKED_FOR = 1000  # pictures, at most, that each worker is asked whether it sees


class Answerer(NamedTuple):
    """answer: as `rows.answering.answer`, but for the model, whose `config` it is."""

    answer: "Callable[..., Iterator[Answered]]"
    config: "Config"


def add(parser: argparse.ArgumentParser) -> None:
    """Where rows are answered."""
    group = parser.add_argument_group("many processes or machines (pip install 'mvlm-np[dask]')")
    group.add_argument("--workers", metavar="N", type=whole, help="so many processes on this machine")
    group.add_argument("--dask", metavar="ADDRESS", help="a Dask scheduler, say tcp://192.168.1.5:8786")


@contextmanager
def answerer(
    args: argparse.Namespace, arguments: dict[str, Any], pictures: Sequence[str] = ()
) -> Iterator[Answerer]:
    """Loads the model, here or at workers, and says on stderr what is to be known.

    arguments  those of `load`
    pictures   that will be asked about

    UserError: the model cannot be loaded; or a cluster cannot be had, or one of its workers cannot work.
    """
    if args.workers is None and args.dask is None:
        from mvlm_np.cli.progress import load_with_bar
        from mvlm_np.rows.answering import answer

        model = load_with_bar(**arguments)
        yield Answerer(partial(answer, model), model.config)
        return
    from mvlm_np import cores
    from mvlm_np.rows import at_worker
    from mvlm_np.rows.spread import Spread, checked

    for name in ("path_or_name", "vision_tower", "mmproj"):
        path = arguments[name] and local(arguments[name])
        if path and os.path.exists(path):
            arguments = arguments | {name: os.path.abspath(path)}
    with client(args.workers, args.dask) as cluster:
        workers = len(cluster.nthreads())
        print(f"mvlm: {workers} workers; the dashboard: {cluster.dashboard_link}", file=sys.stderr)
        share = None if args.workers is None else max(1, len(cores.usable()[0]) // args.workers)
        load = partial(at_worker.load, share, **arguments)
        config, notes = checked(cluster, load, pictures[:: len(pictures) // LOOKED_FOR + 1])
        for note in notes:
            print(f"mvlm: note: {note}", file=sys.stderr)

        def spread(rows: Any, **options: Any) -> "Iterator[Answered]":
            return Spread(cluster, load, **options).answer(rows)

        yield Answerer(spread, config)


@contextmanager
def client(workers: int | None, address: str | None) -> Iterator[Any]:
    """A Dask client: of a scheduler, or of a cluster on this machine that ends with it."""
    try:
        from distributed import Client, LocalCluster
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "mvlm_np":
            raise
        option, found = "--dask" if address else "--workers", f"needs {error.name}, which is not installed"
        raise UserError(option, found, fix="pip install 'mvlm-np[dask]'") from None
    if address is not None and workers is not None:
        raise UserError(
            "--workers", "stands beside --dask", "one of them", "the cluster has workers of its own"
        )
    if address is not None:
        try:
            _knock(address)  # Dask's client would try for long, and say much
            found = Client(address, timeout=20, set_as_default=False)
        except (OSError, ValueError) as error:
            fix = "start it: dask scheduler, and on each machine: dask worker ADDRESS"
            raise UserError(address, f"no scheduler answers ({error})", fix=fix) from None
        try:
            yield found
        finally:
            with suppress(Exception, CancelledError):  # the scheduler may have gone
                found.close()
        return
    assert workers is not None
    if workers < 1:
        raise UserError("--workers", f"found {workers}", "at least 1")
    # Dask counts the pages of the model's file, which can be given up at any time, as memory that is taken.
    how: dict[str, Any] = {"threads_per_worker": 1, "memory_limit": 0, "dashboard_address": "127.0.0.1:0"}
    how["silence_logs"] = logging.CRITICAL  # what goes wrong shows in the rows
    with (
        LocalCluster(n_workers=workers, processes=True, host="127.0.0.1", **how) as cluster,
        Client(cluster, set_as_default=False) as here,
    ):
        yield here


def _knock(address: str) -> None:
    """OSError, ValueError: nobody listens there, or it is no address."""
    parts = urlsplit(address)
    if parts.scheme not in ("tcp", "tls") or not parts.hostname or parts.port is None:
        raise ValueError("wanted tcp://HOST:PORT")
    socket.create_connection((parts.hostname, parts.port), timeout=10).close()
