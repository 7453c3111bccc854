"""Finite automata over bytes: patterns are put together as nodes, and then made deterministic.

A pattern is built from its end: each function takes the node that comes `then`, and returns the one at which
it begins. So `literal("ab", then)` is a node that reads "a" and leads to one that reads "b", which leads to
`then`.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from mvlm_np.errors import UserError

NODES = 50_000  # of a pattern, at most
STATES = 20_000  # of an automaton, at most

Edge = tuple[int, int, int]  # bytes from the first to the second, both included, lead to the third, a node


class TooLarge(UserError):
    """A pattern has more nodes, or an automaton more states, than are allowed."""


class Nodes:
    """The nodes of patterns. Several edges of a node may be for the same byte; all of them are followed.

    edges  of each node
    jumps  from each node to others, without reading a byte
    """

    def __init__(self) -> None:
        self.edges: list[list[Edge]] = []
        self.jumps: list[list[int]] = []

    def node(self, edges: Iterable[Edge] = (), jumps: Iterable[int] = ()) -> int:
        """A new node."""
        if len(self.edges) == NODES:
            raise TooLarge("the pattern", "found too many parts", f"at most {NODES}")
        self.edges.append([*edges])
        self.jumps.append([*jumps])
        return len(self.edges) - 1

    def any_of(self, nodes: Sequence[int]) -> int:
        """What one of these begins."""
        return nodes[0] if len(nodes) == 1 else self.node(jumps=nodes)

    def literal(self, text: str, then: int) -> int:
        """Exactly this text."""
        for byte in reversed(text.encode()):
            then = self.node([(byte, byte, then)])
        return then

    def one_of(self, ranges: str, then: int) -> int:
        """One of some ASCII characters: "09af" stands for 0 to 9 and a to f."""
        return self.node(span(ranges, then))

    def hexadecimal(self, count: int, then: int) -> int:
        """So many hexadecimal digits."""
        for _ in range(count):
            then = self.one_of("09afAF", then)
        return then

    def up_to(self, count: int, ranges: str, then: int) -> int:
        """At most so many of such characters."""
        node = then
        for _ in range(count):
            node = self.node(span(ranges, node), [then])
        return node

    def leads(self, start: int, end: int) -> bool:
        """Whether a text leads from one node to another."""
        found, waiting = {start}, [start]
        while waiting and end not in found:
            node = waiting.pop()
            following = {*self.jumps[node], *(target for _, _, target in self.edges[node])} - found
            found |= following
            waiting += following
        return end in found


def span(ranges: str, then: int) -> list[Edge]:
    """Edges for ASCII characters; `ranges` as in `Nodes.one_of`."""
    return [(ord(first), ord(last), then) for first, last in zip(ranges[::2], ranges[1::2], strict=True)]


class Automaton:
    """Reads a text byte by byte, and knows after each whether the text may go on, and whether it may end.

    classes    (256,) of the bytes; those of one class lead to the same state, wherever one is
    table      (states, classes) the state after a byte. State 0 is the dead one, from which no text can be
               completed, and state 1 the one at the start
    accepting  (states,) whether the text that leads here is complete
    """

    def __init__(self, nodes: Nodes, start: int, end: int):
        """The texts that lead from one node to another. TooLarge: that takes too many states."""
        edges = [edge for of_node in nodes.edges for edge in of_node]
        bounds = sorted({0, *(low for low, _, _ in edges), *(high + 1 for _, high, _ in edges)} - {256})
        self.classes = np.searchsorted(bounds, np.arange(256), "right") - 1
        class_of = self.classes.tolist()

        # A state is the set of nodes in which one may be (Rabin and Scott 1959).
        states = [frozenset[int](), closed(nodes, [start])]
        number = {state: i for i, state in enumerate(states)}
        targets = {frozenset[int](): 0}  # the state of some nodes and of those to which they jump

        def state_of(some: frozenset[int]) -> int:
            if some not in targets:
                state = closed(nodes, some)
                if state not in number:
                    if len(states) == STATES:
                        raise TooLarge("the automaton", "found too many states", f"at most {STATES}")
                    number[state] = len(states)
                    states.append(state)
                targets[some] = number[state]
            return targets[some]

        rows = []
        for state in states:  # which grows meanwhile
            row = [0] * len(bounds)
            for low, high, some in apart([e for node in state for e in nodes.edges[node]]):
                first, last = class_of[low], class_of[high]
                row[first : last + 1] = [state_of(some)] * (last + 1 - first)
            rows.append(row)
        self.table = np.array(rows, np.int32)
        self.accepting = np.array([end in state for state in states])
        alive = distances(self, np.ones(256, bool))[0] < FAR
        self.table[~alive[self.table]] = 0

    def after(self, text: bytes, state: int = 1) -> int:
        """The state after a text that follows a state."""
        for byte in text:
            state = int(self.table[state, self.classes[byte]])
        return state


def apart(edges: list[Edge]) -> Iterator[tuple[int, int, frozenset[int]]]:
    """The same edges as ranges of bytes that do not overlap, each with all the nodes to which it leads."""
    edges.sort()
    if all(one[1] < other[0] for one, other in pairwise(edges)):
        for low, high, target in edges:
            yield low, high, frozenset((target,))
        return
    bounds = sorted({bound for low, high, _ in edges for bound in (low, high + 1)})
    for low, beyond in pairwise(bounds):
        if some := frozenset(target for first, last, target in edges if first <= low <= last):
            yield low, beyond - 1, some


def closed(nodes: Nodes, some: Iterable[int]) -> frozenset[int]:
    """These nodes, and those to which jumps lead from them."""
    found, waiting = set(some), list(some)
    while waiting:
        for node in nodes.jumps[waiting.pop()]:
            if node not in found:
                found.add(node)
                waiting.append(node)
    return frozenset(found)


FAR = np.iinfo(np.int32).max  # the distance of what does not lead to the end


def distances(automaton: Automaton, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far each state is from the end of a text, if only some bytes are usable, (256,) bool.

    Returns the distance (states,) in bytes, FAR where there is none, and the byte (states,) that comes next.
    """
    table, classes = automaton.table, automaton.classes
    byte_of = np.full(table.shape[1], -1)  # a usable byte of each class
    byte_of[classes[usable]] = np.flatnonzero(usable)
    distance = np.where(automaton.accepting, 0, FAR).astype(np.int32)
    next_byte = np.zeros(len(table), np.int32)
    source, by = np.nonzero((table > 0) & (byte_of >= 0))
    target = table[source, by]
    order = np.argsort(target, kind="stable")
    source, by = source[order], by[order]
    starts = np.searchsorted(target[order], np.arange(len(table) + 1))
    length = 0
    while (near := np.flatnonzero(distance == length)).size:  # all edges that lead to states as near as that
        into = np.concatenate([np.arange(starts[state], starts[state + 1]) for state in near])
        into = into[distance[source[into]] == FAR]
        length += 1
        distance[source[into]] = length
        next_byte[source[into]] = byte_of[by[into]]
    return distance, next_byte
