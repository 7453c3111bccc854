"""Which known mistakes reproduce what a candidate computed.

Each stage is judged alone: the reference computes it from the candidate's own earlier stages, so that a
fault shows where it is made and nowhere else, and a second one further down shows as well. Where the two
differ, the mistakes that act between the stages given are tried, alone, in pairs, and then more at a time as
long as each brings the result closer.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from math import exp, inf, log

import numpy as np

from mvlm_np.golden.explain.findings import GAIN, Cause, Finding, Unseen
from mvlm_np.golden.explain.mistake import Dial, Mistake, known_mistakes
from mvlm_np.golden.explain.parts import Parts
from mvlm_np.golden.explain.replay import Replay
from mvlm_np.golden.explain.scene import Scene
from mvlm_np.golden.explain.steps import CannotReplay, independent, layer_of, step_of
from mvlm_np.golden.measure import cosine, relative_error
from mvlm_np.golden.precision import HALVES, Round, held_in
from mvlm_np.golden.stages import order

HEALTHY = 6.0  # times the reference's own rounding: another order of summation stays below it
LEVEL = 0.05 / 255 / 0.27  # a twentieth of a grey level: a few pixels may be rounded the other way
LEAST = 2.0**-24  # the rounding of a stage that is only copied or scaled
TIE = 4.0  # two explanations are as good as each other if their errors differ by no more
PAIRS = 3000  # pairs that are tried at most
STRANGE = 3  # wrong stages in a row that are like nothing that is known: there the search ends
BEAM, DEPTH = 4, 5  # explanations that are taken further, and how far

GOLDEN_RATIO = (5**0.5 - 1) / 2

Progress = Callable[[], object]


@dataclass(frozen=True)
class Node:
    """A node of the search: some mistakes, the reference under them, and its distance from the candidate."""

    causes: tuple[Cause, ...]
    replay: Replay
    error: float


class Search:
    """Explains a candidate, stage by stage.

    scene     the reference and what there is to make mistakes with; `scene.stages` are the candidate's
    roots     the golden's own input, for stages that the candidate does not have: pixel values, ids
    yardstick the reference in the candidate's precision, where that is not float32
    """

    def __init__(
        self,
        scene: Scene,
        roots: Mapping[str, np.ndarray],
        yardstick: Parts | None = None,
        progress: Progress = lambda: None,
    ):
        self.scene, self.progress = scene, progress
        self.given = dict(scene.stages)
        self.stages = [name for name in sorted(self.given, key=order) if _staged(name)]
        self.limits: dict[str, float] = {}
        self.known = {name: value for name, value in roots.items() if name not in self.given}
        if "generated_ids" in self.known:
            self.given["generated_ids"] = self.known.pop("generated_ids")
        self.plain = Replay(scene.parts, self.given, self.known)
        wide = dict(self.known) if yardstick else {n: _wide(v) for n, v in self.known.items()}
        dtype = np.float32 if yardstick else np.float64
        self.fine = Replay(yardstick or scene.parts, self.given, wide, dtype=dtype)
        self.causes = [Cause(m, v) for m in known_mistakes().values() for v in m.variants(scene)]
        self.active: dict[tuple[str, str], Cause] = {}  # what has been found, by mistake and step
        self.strange, self.ended = 0, ""  # see `findings`
        self._chains: dict[tuple[object, ...], Replay] = {}

    # ------------------------------------------------------------ all stages

    def findings(self) -> list[Finding]:
        """Everything that is wrong, in the order of the stages. Where `STRANGE` wrong ones in a row are like
        nothing that is known, it ends, and `ended` says with which."""
        found = list[Finding]()
        for stage in self.stages:
            with suppress(CannotReplay), np.errstate(all="ignore"):
                if (finding := self.judge(stage)) is not None:
                    found.append(finding)
                    self.strange = self.strange + 1 if finding.strange else 0
                    if self.strange == STRANGE and stage != self.stages[-1]:
                        self.ended = stage
                        break
        return found

    def invisible(self) -> list[Unseen]:
        """Mistakes, or ways to make them, that the candidate's stages would not show, as they change none
        beyond rounding. For a candidate that is right. Ways that differ in a number or a layer are one."""
        unseen = []
        for mistake in known_mistakes().values():
            ways: dict[object, list[Cause]] = {}
            for cause in (c for c in self.causes if c.mistake is mistake):
                v = cause.variant
                ways.setdefault(v.dial or (v.step, v.detail if v.layer is None else None), []).append(cause)
            hidden = [causes for causes in ways.values() if not any(map(self._shows, causes))]
            if hidden and len(hidden) == len(ways):
                unseen.append(Unseen(mistake))
            elif hidden:
                details = dict.fromkeys(causes[0].variant.detail for causes in hidden)
                unseen.append(Unseen(mistake, tuple(details)))
        return unseen

    def _shows(self, cause: Cause) -> bool:
        v = cause.variant
        self.progress()
        given = {n: x for n, x in self.given.items() if not _staged(n) or independent(n, v.step, v.layer)}
        replay = Replay(self.scene.parts, given, self.known).child(v.change, v.step, v.layer)
        later = [n for n in self.stages if not independent(n, v.step, v.layer)]
        own = [n for n in later if step_of(n) == v.step and v.layer in (None, layer_of(n))]
        for stage in own or later[:1]:
            try:
                with np.errstate(all="ignore"):
                    moved = relative_error(self._of(replay, stage), self.given[stage])
            except CannotReplay:
                return True
            if stage not in self.limits:
                self.limits[stage] = self.allowed(stage, Node((), self.plain, 0.0))
            if moved > self.limits[stage]:
                return True
        return False

    # ------------------------------------------------------------ one stage

    def allowed(self, stage: str, node: "Node", half: Cause | None = None) -> float:
        """The relative error that rounding explains, measured on this step from this input.

        half  rounding to 16 bits instead, as a mistake
        """
        value = self._of(node.replay, stage)
        if value.dtype.kind == "i":
            return 0.0
        if stage == "pixel_values":
            return LEVEL / float(np.sqrt(np.square(value).mean()))
        to: Round = lambda x: x  # noqa: E731
        if half is not None:
            to = HALVES[half.variant.half]
            exact = self._chain(tuple(c for c in node.causes if not c.variant.half))
            runs = [(exact.child(half.variant.change, "pixels"), exact)]
        else:  # what rounding does without a mistake, where that cannot be made in the yardstick
            runs = [(self._chain(node.causes, fine=True), node.replay), (self.fine, self.plain)]
        floor = 0.0
        for rounded, exact in runs:
            with suppress(CannotReplay):
                floor = relative_error(to(self._of(rounded, stage)), self._of(exact, stage))
                break
        return HEALTHY * max(floor if floor < inf else 0.0, LEAST)

    def limit(self, stage: str, node: "Node", limit: float) -> float:
        """The error up to which a hypothesis explains a stage: `limit`, or a tenth of what its rounding does:
        where two implementations differ by a little, a few results are rounded the other way."""
        others = tuple(c for c in node.causes if not c.variant.rounds)
        if len(others) == len(node.causes) or node.error <= limit:
            return limit
        with suppress(CannotReplay):
            rounding = relative_error(self._of(self._chain(others), stage), self._of(node.replay, stage))
            return max(limit, rounding / 10) if rounding < inf else limit
        return limit

    def half(self, stage: str) -> Cause | None:
        """Rounding to a type of 16 bits, as a mistake, where a stage's numbers are all of that type or an
        earlier stage has shown it; None elsewhere. Pixels are as they are in every type."""
        if stage == "pixel_values":
            return None
        shown = (c.variant.half for c in self.active.values() if c.variant.half)
        wanted = held_in(self.given[stage]) or next(shown, None), step_of(stage)
        return next((c for c in self.causes if (c.variant.half, c.variant.step) == wanted), None)

    def judge(self, stage: str) -> Finding | None:
        """What is wrong with a stage, given the stages before it; None if nothing is."""
        wanted, nodes = self.given[stage], list[Node]()
        for causes in self._hypotheses():
            replay = self._chain(causes)
            with suppress(CannotReplay):
                nodes.append(Node(causes, replay, relative_error(self._of(replay, stage), wanted)))
            if nodes and nodes[-1].error <= LEAST:
                return None
        if not nodes:
            return None
        plain, best = nodes[0], min(nodes, key=lambda n: n.error)
        limit = self.allowed(stage, best)
        if best.error <= limit:
            return None
        half = self.half(stage)
        if half is not None:
            limit = self.allowed(stage, best, half)
            if best.error <= limit:
                reached = cosine(self._of(best.replay, stage), wanted)
                self.active |= {half.place: half}
                return Finding(stage, best.error, best.error, reached, limit, (half,))
        blank = wanted.dtype.kind == "f" and not (np.isfinite(wanted) & (wanted != 0)).any()
        bases = [plain] if best is plain else [plain, best]
        chosen, *others = self._blank(stage, bases[-1]) if blank else self.explain(stage, bases, limit)
        if wanted.dtype.kind == "i" and chosen.error > 0:  # ids are reproduced, or they are not
            chosen, others = plain, []
        reached = cosine(self._of(chosen.replay, stage), wanted)
        limit = self.limit(stage, chosen, limit)
        finding = Finding(stage, plain.error, chosen.error, reached, limit, chosen.causes, blank=blank)
        finding.alternatives += [n.causes for n in others]
        if finding.believed:
            self.active |= {cause.place: cause for cause in finding.causes}
        if half is not None and finding.exact and not any(c.mistake is half.mistake for c in finding.causes):
            finding.causes += (half,)
        return finding

    def _hypotheses(self) -> Iterator[tuple[Cause, ...]]:
        """What a stage may show of the mistakes that were found before it: none, all of them, each alone."""
        found = tuple(self.active.values())
        yield ()
        if found:
            yield found
        if len(found) > 1:
            yield from ((cause,) for cause in found)

    def _chain(self, causes: Sequence[Cause], fine: bool = False) -> Replay:
        """The reference under some mistakes; `fine`: that rounding is measured by."""
        key = (fine, *causes)
        if key not in self._chains:
            replay = self.fine if fine else self.plain
            for cause in causes:
                replay = replay.child(cause.variant.change, cause.variant.step, cause.variant.layer)
            self._chains[key] = replay
        return self._chains[key]

    def _of(self, replay: Replay, stage: str) -> np.ndarray:
        """A stage as a replay computes it; of logits as many rows, the last ones, as the candidate has."""
        value = replay.compute(stage)
        return value[-len(self.given[stage]) :] if stage == "logits" else value

    # ------------------------------------------------------------ mistakes

    def explain(self, stage: str, bases: Sequence[Node], limit: float) -> list[Node]:
        """The best explanation of a stage, and others that are as good; the base itself if there is none."""
        tried = list(bases)

        def exact(nodes: Sequence[Node]) -> list[Node]:
            closer = [n for n in nodes if n.error < bases[-1].error]
            return _exact([n for n in closer if n.error <= self.limit(stage, n, limit)])

        for base in bases:
            singles = self._singles(stage, base)
            if found := exact(singles):
                return found
            tried += singles
        if self.strange:  # the stage before was like nothing: these are other weights, most likely
            return [_simplest(tried)]
        base = bases[-1]  # of which the singles are
        moving = [n for n in [*singles, *self._tuned(stage, base, singles)] if n.error < inf]
        if found := exact(moving):
            return found
        tried += moving
        long = len({step for step, _ in base.replay.trail[stage]}) > 1
        if long:
            moving = _best_variants(moving)
        else:
            pairs = self._pairs(stage, moving)
            pairs += [self._retuned(stage, node) for node in sorted(pairs, key=_error)[:BEAM]]
            if found := exact(pairs):
                return found
            tried += pairs
        beam = sorted(moving, key=lambda n: n.error)[:BEAM]
        for _ in range(2, DEPTH + 1):
            longer = [n for node in beam for n in self._extended(stage, node, moving)]
            if longer:
                closest = min(longer, key=_error)
                longer.append(self._retuned(stage, self._polished(stage, closest) if long else closest))
            if found := exact(longer):
                return found
            best = min(n.error for n in beam) if beam else 0.0
            beam = sorted(longer, key=_error)[:BEAM]
            tried += beam
            if not beam or beam[0].error > GAIN * best:
                break
        return [_simplest(tried)]

    def _blank(self, stage: str, base: Node) -> list[Node]:
        """For a stage without numbers: a mistake that leaves none either, or the base itself."""
        singles = self._singles(stage, base) if base.error > LEAST else []
        return _exact([n for n in singles if n.error <= LEAST]) or [base]

    def _singles(self, stage: str, base: Node) -> list[Node]:
        """One more mistake each: those that act between the stages given and this one, and change it."""
        before, places = self._of(base.replay, stage), base.replay.trail[stage]
        steps, taken = {step for step, _ in places}, {c.place for c in base.causes}
        nodes = []
        for cause in self.causes:
            v = cause.variant
            if v.step not in steps or (v.layer is not None and (v.step, v.layer) not in places):
                continue
            if v.rare and len(places) > 1:
                continue
            if cause.place in taken and not _many(cause):
                continue
            node = self._node(stage, base, cause)
            if node is not None and relative_error(self._of(node.replay, stage), before) > LEAST:
                nodes.append(node)
        return nodes

    def _node(self, stage: str, base: Node, cause: Cause) -> Node | None:
        """A hypothesis with one more mistake; None if it cannot be."""
        self.progress()
        v = cause.variant
        replay = base.replay.child(v.change, v.step, v.layer)
        try:
            with np.errstate(all="ignore"):
                error = relative_error(self._of(replay, stage), self.given[stage])
        except CannotReplay:
            return None
        return Node((*base.causes, cause), replay, error)

    def _tuned(self, stage: str, base: Node, singles: Sequence[Node]) -> Iterator[Node]:
        """The mistakes that depend on a number, each with the number that fits best."""
        steps = {step for step, _ in base.replay.trail[stage]}
        dials = {c.variant.dial: c.mistake for c in self.causes if c.variant.dial and c.variant.step in steps}
        tried = {(v.dial, v.value): n for n in singles if (v := n.causes[-1].variant).dial}
        for dial, mistake in dials.items():
            known = [tried.get((dial, value), base) for value in dial.values]
            i = int(np.argmin([node.error for node in known]))
            marks = [dial.values[0] / 10, *dial.values, dial.values[-1] * 10]
            best = self._golden_section(stage, base, mistake, dial, known[i], marks[i], marks[i + 2])
            if best.error < base.error:
                yield best

    def _golden_section(
        self, stage: str, base: Node, mistake: Mistake, dial: Dial, best: Node, low: float, high: float
    ) -> Node:
        """Golden-section search between two numbers, on a logarithmic scale; `best` if none is better."""

        def error(x: float) -> float:
            nonlocal best
            node = self._node(stage, base, Cause(mistake, dial.at(exp(x))))
            if node is not None and node.error < best.error:
                best = node
            return node.error if node is not None else inf

        start, stop = log(low), log(high)
        a, b = stop - GOLDEN_RATIO * (stop - start), start + GOLDEN_RATIO * (stop - start)
        at_a, at_b = error(a), error(b)
        while stop - start > (1e-6 if best.error < base.error / 2 else 0.05):
            if at_a < at_b:
                stop, b, at_b = b, a, at_a
                at_a = error(a := stop - GOLDEN_RATIO * (stop - start))
            else:
                start, a, at_a = a, b, at_b
                at_b = error(b := start + GOLDEN_RATIO * (stop - start))
        return best

    def _retuned(self, stage: str, node: Node) -> Node:
        """The same mistakes; the numbers that they depend on are tuned once more, each beside the others."""
        for _ in range(2):
            for cause in node.causes:
                if (dial := cause.variant.dial) is not None:
                    others = tuple(c for c in node.causes if c is not cause)
                    base, value = Node(others, self._chain(others), inf), cause.variant.value
                    node = self._golden_section(stage, base, cause.mistake, dial, node, value / 2, value * 2)
        return node

    def _polished(self, stage: str, node: Node) -> Node:
        """The same mistakes, each in the variant that fits best beside the others."""
        for cause in node.causes:
            others = tuple(c for c in node.causes if c is not cause)
            base = Node(others, self._chain(others), inf)
            ways = (c for c in self.causes if c.place == cause.place and c != cause)
            found = [n for way in ways if (n := self._node(stage, base, way)) is not None]
            node = min([node, *found], key=_error)
        return node

    def _pairs(self, stage: str, moving: Sequence[Node]) -> list[Node]:
        ranked = sorted(moving, key=_error)
        nodes: list[Node | None] = []
        for i, j in sorted(combinations(range(len(ranked)), 2), key=sum):
            first, second = ranked[i], ranked[j].causes[-1]
            if first.causes[-1].place != second.place or _many(second):
                nodes.append(self._node(stage, first, second))
            if len(nodes) == PAIRS:
                break
        return [n for n in nodes if n is not None and n.error < inf]

    def _extended(self, stage: str, node: Node, moving: Sequence[Node]) -> Iterator[Node]:
        taken = {c.place for c in node.causes}
        for other in moving:
            cause = other.causes[-1]
            if cause.place not in taken or (_many(cause) and cause not in node.causes):
                found = self._node(stage, node, cause)
                if found is not None and found.error < inf:
                    yield found


def _error(node: Node) -> float:
    return node.error


def _exact(nodes: Sequence[Node]) -> list[Node]:
    """Of hypotheses that fit, the best and those as good, one for each set of mistakes."""
    right = sorted(nodes, key=_error)
    found: dict[tuple[str, ...], Node] = {}
    for node in right:
        if node.error <= max(TIE * right[0].error, LEAST):
            found.setdefault(tuple(sorted(c.mistake.id for c in node.causes)), node)
    return list(found.values())


def _best_variants(nodes: Sequence[Node]) -> list[Node]:
    """Of each mistake in each step, the variant that comes closest."""
    best: dict[tuple[str, str], Node] = {}
    for node in nodes:
        place = node.causes[-1].place
        best[place] = min(best.get(place, node), node, key=_error)
    return list(best.values())


def _many(cause: Cause) -> bool:
    """Whether a port may well make this mistake in several places of a step."""
    return cause.mistake.id in ("missing-bias", "missing-gain")


def _simplest(nodes: Iterable[Node]) -> Node:
    """The closest hypothesis in which each further mistake brings the error down noticeably."""
    best: dict[int, Node] = {}
    for node in nodes:
        n = len(node.causes)
        best[n] = min(best.get(n, node), node, key=lambda x: x.error)
    chosen = best[min(best)]
    for n in sorted(best):
        if best[n].error < GAIN ** (n - len(chosen.causes)) * chosen.error:
            chosen = best[n]
    return chosen


def _staged(name: str) -> bool:
    """Whether a stage can be replayed: what was generated cannot."""
    return not name.startswith("generated_ids") and not name.endswith(".tail")


def _wide(value: np.ndarray) -> np.ndarray:
    return value if value.dtype.kind == "i" else value.astype(np.float64)
