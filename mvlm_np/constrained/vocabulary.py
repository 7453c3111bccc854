"""Which tokens an automaton lets pass, and how many more an answer takes at least.

A token is some bytes. Those of all tokens make a tree, in which tokens that begin alike share nodes.
One walk through it, level by level, finds the state behind every token.
"""

from collections.abc import Collection, Sequence
from functools import lru_cache

import numpy as np

from mvlm_np.constrained.automaton import FAR, Automaton, distances
from mvlm_np.errors import GenerationError, SchemaError

KEPT = 256  # states whose tokens are kept: 64 kB each with 32,000 tokens
NEVER = np.iinfo(np.int16).max  # tokens to the end from where there is none


class Vocabulary:
    """A model's tokens, prepared once.

    texts  the bytes that each token adds to a text; none for one that is never part of an answer
    ends   the ids that end an answer, whatever their text
    """

    def __init__(self, texts: Sequence[bytes], ends: Collection[int]):
        self.texts = [b"" if i in ends else text for i, text in enumerate(texts)]
        self.ends = [i for i in ends if i < len(texts)]
        self.known = {text for text in self.texts if text}
        self.longest = max(map(len, self.known), default=0)
        self.bytes = np.array([bytes([byte]) in self.known for byte in range(256)])  # that are tokens

        # The tree's nodes, level by level: the root, then the first bytes of tokens, then the first two ...
        nodes, parents, last = {b"": 0}, [0], [0]
        self.levels: list[tuple[slice, np.ndarray]] = []  # with the parent of each node
        for length in range(1, self.longest + 1):
            begin = len(nodes)
            for text in self.known:
                if len(text) >= length and (start := text[:length]) not in nodes:
                    nodes[start] = len(nodes)
                    parents.append(nodes[start[:-1]])
                    last.append(start[-1])
            self.levels.append((slice(begin, len(nodes)), np.array(parents[begin:])))
        self.last = np.array(last, np.uint8)  # byte of each node
        # A token without text has the node behind the last one, whose state is always the dead one.
        self.node = np.array([nodes[text] if text else len(nodes) for text in self.texts])
        self._over_tokens = lru_cache(8)(lambda automaton: TokenAutomaton(self, automaton))
        self.needs = lru_cache(KEPT)(TokenAutomaton.needs)

    def begin(self, automaton: Automaton, budget: int) -> "State":
        """An answer of at most `budget` tokens that an automaton reads, which is to begin.

        GenerationError: the budget is too small for any. SchemaError: these tokens spell none.
        """
        state = State(self._over_tokens(automaton))
        if state.fewest == NEVER:
            raise SchemaError("schema", "the model's tokens cannot spell an answer that fits it")
        if state.fewest > budget:
            wanted = f"at least {state.fewest}, which the shortest answer that fits the schema takes"
            raise GenerationError("max_new_tokens", f"found {budget}", wanted)
        return state


class TokenAutomaton:
    """An automaton that reads tokens of a vocabulary. It does not change, and serves any number of answers.

    fewest  (states,) tokens that a text takes from each state to its end, if it takes the shortest way, NEVER
            where there is none
    """

    def __init__(self, vocabulary: Vocabulary, automaton: Automaton):
        self.vocabulary, self.automaton = vocabulary, automaton
        self.classes = automaton.classes[vocabulary.last]  # of each node of the tree
        self.ways = np.count_nonzero(automaton.table, axis=1)  # in which a text can go on, from each state
        distance, next_byte = distances(automaton, vocabulary.bytes)
        self.fewest = np.full(len(distance), NEVER, np.int16)
        self.fewest[automaton.accepting] = 0
        following = automaton.table[np.arange(len(distance)), automaton.classes[next_byte]]
        for start in np.argsort(distance, kind="stable")[: np.count_nonzero(distance < FAR)]:
            state, text = start, b""
            while distance[state] and len(text) < vocabulary.longest:
                text += bytes([next_byte[state]])
                state = following[state]
                if text in vocabulary.known:
                    self.fewest[start] = min(self.fewest[start], self.fewest[state] + 1)

    def needs(self, state: int) -> np.ndarray:
        """Tokens that are needed at least after each token (vocabulary,) behind a state; int16."""
        table, classes = self.automaton.table, self.classes
        states = np.zeros(len(classes) + 1, np.int32)
        states[0] = state
        for level, parents in self.vocabulary.levels:
            states[level] = table[states[parents], classes[level]]
        return self.fewest[states[self.vocabulary.node]]


class State:
    """One answer, as far as it has come.

    ended  whether it is complete, so that nothing can follow
    """

    def __init__(self, over_tokens: TokenAutomaton):
        self._over_tokens, self._state = over_tokens, 1
        self.ended = False

    @property
    def complete(self) -> bool:
        """Whether what stands so far fits the schema."""
        return bool(self._over_tokens.automaton.accepting[self._state])

    @property
    def fewest(self) -> int:
        """How many more tokens complete the answer, if it takes the shortest way."""
        return int(self._over_tokens.fewest[self._state])

    def mask(self, remaining: int) -> np.ndarray:
        """Which tokens (vocabulary,) may come next, bool, where the answer has `remaining` tokens left.

        There is always one, if there are as many left as `fewest` says.
        """
        assert not self.ended and remaining >= 1, "nothing follows"
        vocabulary = self._over_tokens.vocabulary
        needs = vocabulary.needs(self._over_tokens, self._state)
        allowed = needs < min(remaining, NEVER)
        if self.complete:
            allowed[vocabulary.ends] = True
        return allowed

    def take(self, token: int) -> None:
        """The answer goes on with a token that the mask allows."""
        over_tokens, vocabulary = self._over_tokens, self._over_tokens.vocabulary
        if token in vocabulary.ends:
            self.ended = True
            return
        self._state = over_tokens.automaton.after(vocabulary.texts[token], self._state)
        assert self._state, "the token is not allowed here"
        self.ended = self.complete and not over_tokens.ways[self._state]
