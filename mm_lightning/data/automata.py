"""Random automata and the strings they accept: the languages of RegBench."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

LETTERS = 18
"""Of the vocabulary, numbered from 0."""

Word = tuple[int, ...]


@dataclass(frozen=True)
class Automaton:
    """A deterministic automaton that begins in state 0 and accepts in every state.

    Attributes:
        edges: for each state its (letter, next state), the letters in order.
    """

    edges: tuple[tuple[tuple[int, int], ...], ...]

    def allowed(self, word: Sequence[int]) -> list[int]:
        """The letters that may come at each position of a word it accepts, as a bit mask: bit a for letter a."""
        masks, state = [], 0
        for letter in word:
            masks.append(sum(1 << a for a, _ in self.edges[state]))
            state = dict(self.edges[state])[letter]
        return masks

    def sample(self, length: int, random: Random) -> Word:
        """A word, every edge out of a state being as probable as the others."""
        word, state = [], 0
        for _ in range(length):
            letter, state = random.choice(self.edges[state])
            word.append(letter)
        return tuple(word)

    def canonical(self) -> Automaton:
        """The one minimal automaton of its language: equal for two automata if and only if they accept the same words.

        States that no further letters tell apart become one (Moore's algorithm), states that cannot be reached are
        left out, and the others are numbered as a breadth-first walk finds them.
        """
        group = [0] * len(self.edges)
        while True:
            known: dict[tuple, int] = {}
            finer = [
                known.setdefault(tuple((letter, group[state]) for letter, state in edges), len(known))
                for edges in self.edges
            ]
            if len(known) == len(set(group)):
                break
            group = finer
        number, waiting, states = {group[0]: 0}, deque([0]), []
        while waiting:
            edges = []
            for letter, state in self.edges[waiting.popleft()]:
                if group[state] not in number:
                    number[group[state]] = len(number)
                    waiting.append(state)
                edges.append((letter, number[group[state]]))
            states.append(tuple(edges))
        return Automaton(tuple(states))


def draw_automaton(random: Random) -> Automaton:
    """4 to 12 states, 1 to 3 edges out of each, with distinct letters of an alphabet of 4 to 18 and to distinct other
    states. Minimising may leave fewer states and edges."""
    states = random.randint(4, 12)
    alphabet = random.sample(range(LETTERS), random.randint(4, LETTERS))
    edges = []
    for state in range(states):
        count = random.randint(1, 3)
        letters = sorted(random.sample(alphabet, count))
        others = [other for other in range(states) if other != state]
        edges.append(tuple(zip(letters, random.sample(others, count), strict=True)))
    return Automaton(tuple(edges))


def draw_words(automaton: Automaton, random: Random) -> list[Word]:
    """10 to 19 words of 1 to 49 letters."""
    return [automaton.sample(random.randint(1, 49), random) for _ in range(random.randint(10, 19))]
