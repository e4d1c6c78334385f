from itertools import product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_lightning.data.automata import Automaton, draw_automaton, draw_words
from mm_lightning.data.regbench import BETWEEN, BOS, EOS, LONGEST, Sample

seeds = st.integers(0, 2**32)


@st.composite
def automata(draw, states=4, letters=2):
    """Any small automaton, with dead ends, loops and states that nothing reaches."""
    count = draw(st.integers(1, states))
    target = st.none() | st.integers(0, count - 1)
    rows = [[(a, draw(target)) for a in range(letters)] for _ in range(count)]
    return Automaton(tuple(tuple((a, state) for a, state in row if state is not None) for row in rows))


def reached(automaton, word, state=0):
    """The state after a word; None if there is none."""
    for letter in word:
        ways = [target for a, target in automaton.edges[state] if a == letter]
        if not ways:
            return None
        (state,) = ways
    return state


def language(automaton, longest, state=0):
    """All its words of up to `longest` of two letters."""
    words = (word for length in range(longest + 1) for word in product(range(2), repeat=length))
    return {word for word in words if reached(automaton, word, state) is not None}


@given(seeds)
def test_a_drawn_automaton_keeps_the_bounds(seed):
    edges = draw_automaton(Random(seed)).edges
    assert 4 <= len(edges) <= 12
    assert len({letter for row in edges for letter, _ in row}) <= 18
    for state, row in enumerate(edges):
        letters, targets = zip(*row, strict=True)
        assert 1 <= len(row) <= 3
        assert len(set(letters)) == len(set(targets)) == len(row)
        assert state not in targets
        assert list(letters) == sorted(letters)
        assert set(letters) <= set(range(18))
        assert set(targets) <= set(range(len(edges)))


def test_everything_that_can_be_drawn_is():
    drawn = [draw_automaton(Random(seed)).edges for seed in range(3000)]
    assert {len(edges) for edges in drawn} == set(range(4, 13))
    assert {len(row) for edges in drawn for row in edges} == {1, 2, 3}
    assert {letter for edges in drawn for row in edges for letter, _ in row} == set(range(18))
    words = draw_words(draw_automaton(Random(0)).canonical(), Random(0))
    assert words != draw_words(draw_automaton(Random(0)).canonical(), Random(1))


@given(seeds)
@settings(max_examples=60)
def test_every_word_is_of_its_language_and_every_letter_allowed(seed):
    drawn, random = draw_automaton(Random(seed)), Random(seed + 1)
    automaton = drawn.canonical()
    sample = Sample(automaton, draw_words(automaton, random))
    assert 10 <= len(sample.words) <= 19
    assert all(1 <= len(word) <= 49 for word in sample.words)
    tokens, allowed = sample.tokens(), sample.allowed()
    assert (tokens[0], tokens[-1], len(tokens)) == (BOS, EOS, len(allowed))
    assert len(tokens) <= LONGEST == 951
    state = 0
    for token, following, mask in zip(tokens[:-1], tokens[1:], allowed[:-1], strict=True):
        # The drawn automaton, not the minimal one, is what the words are held against.
        state = 0 if token in (BOS, BETWEEN) else reached(drawn, [token], state)
        assert state is not None
        letters = {letter for letter, _ in drawn.edges[state]}
        assert mask == (0 if following in (BETWEEN, EOS) else sum(2**letter for letter in letters))
        assert mask == 0 or following in letters
    assert allowed[-1] == 0
    text = "".join(chr(97 + t) if t < 18 else "|" for t in tokens[1:-1])
    assert [tuple(ord(c) - 97 for c in word) for word in text.split("|")] == sample.words
    assert all(reached(each, word) is not None for each in (automaton, drawn) for word in sample.words)


@given(automata(), automata())
@settings(max_examples=100)
def test_equal_forms_mean_equal_languages(one, other):
    # Two automata of n and m states (and a dead end) that agree on words up to n + m agree on all.
    longest = len(one.edges) + len(other.edges)
    same = language(one, longest) == language(other, longest)
    assert (one.canonical() == other.canonical()) == same


@given(automata(3), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_the_form_forgets_names_and_copies_of_states(automaton, random):
    count = len(automaton.edges)
    names = list(range(1, 2 * count))  # each state twice, the start being 0 and the last name
    random.shuffle(names)
    copies = [(0, names[0]), *zip(names[1:count], names[count:], strict=True)]
    edges = [()] * (2 * count)
    for state, row in enumerate(automaton.edges):
        for copy in copies[state]:
            edges[copy] = tuple((letter, random.choice(copies[target])) for letter, target in row)
    assert Automaton(tuple(edges)).canonical() == automaton.canonical()


@given(automata())
@settings(max_examples=60)
def test_the_form_is_minimal(automaton):
    count = len(automaton.edges)
    states = {reached(automaton, word) for word in language(automaton, count)}
    languages = {frozenset(language(automaton, count, state)) for state in states}
    form = automaton.canonical()
    assert len(form.edges) == len(languages)
    assert form.canonical() == form
    assert language(form, 2 * count) == language(automaton, 2 * count)


def test_a_canonical_form_by_hand():
    # 0 -a-> 1, 0 -b-> 2, 1 -a-> 0, 2 -a-> 0, and 3, which nothing leads to: 1 and 2 are the same
    automaton = Automaton((((0, 1), (1, 2)), ((0, 0),), ((0, 0),), ((5, 3),)))
    assert automaton.canonical() == Automaton((((0, 1), (1, 1)), ((0, 0),)))
    assert automaton.allowed([0, 0, 1]) == [0b11, 0b1, 0b11]


def test_edges_are_equally_probable():
    automaton = Automaton((((0, 1), (3, 1), (7, 1)), ((2, 0),)))
    word = automaton.sample(60000, Random(5))
    assert set(word[1::2]) == {2}
    for letter in (0, 3, 7):
        assert word[::2].count(letter) / 30000 == pytest.approx(1 / 3, abs=0.01)
