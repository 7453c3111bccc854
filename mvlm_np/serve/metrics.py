"""What the server has done so far, as Prometheus reads it."""

from collections import Counter
from collections.abc import Iterator

import mvlm_np
from mvlm_np.serve.requests import Status

TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Counts:
    """Replies by path and status. Paths that are not ours count as one, for there is no end to them."""

    def __init__(self) -> None:
        self.replies: Counter[tuple[str, int]] = Counter()

    def add(self, path: str, status: int) -> None:
        self.replies[path if status not in (403, 404) else "other", status] += 1


def text(status: Status, counts: Counts) -> str:
    """The page at /metrics."""
    lines = [
        *_family("mvlm_info", "gauge", "This program's version.", {f'version="{mvlm_np.__version__}"': 1}),
        *_family("mvlm_running", "gauge", "Requests that are being answered.", {"": status.running}),
        *_family("mvlm_queued", "gauge", "Requests that wait.", {"": status.queued}),
        *_family(
            "mvlm_idle_seconds",
            *("gauge", "How long ago the worker last came round.", {"": status.idle_seconds}),
        ),
        *_family(
            "mvlm_http_replies_total",
            *("counter", "Replies by path and status; status 0: the client left before."),
            {f'path="{path}",status="{code}"': n for (path, code), n in sorted(counts.replies.items())},
        ),
        *_family(
            "mvlm_seconds_total",
            *("counter", "Time that finished requests spent in each part."),
            {f'part="{part}"': value for part, value in status.seconds.items()},
        ),
    ]
    for name, value in status.counts.items():
        words = f"{name.replace('_', ' ')} so far.".capitalize()
        lines += _family(f"mvlm_{name}_total", "counter", words, {"": value})
    caches = {'cache="pictures"': status.pictures, 'cache="prefixes"': status.prefixes}
    for field, kind, words in (
        ("entries", "gauge", "What a cache holds."),
        ("bytes", "gauge", "Memory that a cache takes."),
        ("budget", "gauge", "Bytes that a cache may take."),
        ("hits", "counter", "Look-ups that found something."),
        ("misses", "counter", "Look-ups that found nothing."),
    ):
        end = "_total" if kind == "counter" else ""
        values = {label: getattr(cache, field) for label, cache in caches.items()}
        lines += _family(f"mvlm_cache_{field}{end}", kind, words, values)
    return "\n".join(lines) + "\n"


def _family(name: str, kind: str, words: str, values: dict[str, float]) -> Iterator[str]:
    """values  {labels: value}"""
    yield f"# HELP {name} {words}"
    yield f"# TYPE {name} {kind}"
    for labels, value in values.items():
        yield f"{name}{{{labels}}} {value}" if labels else f"{name} {value}"
