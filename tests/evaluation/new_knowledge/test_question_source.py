from random import Random

import pytest

from mm_lightning.evaluation.new_knowledge.question_source import (
    Gold,
    Sample,
    contains,
    depth_of,
    fullest,
    share_found,
    spread,
)


def test_every_beginning_is_evenly_spread():
    depths = spread(1000, Random("some"))
    for count in (10, 50, 333, 1000):
        counts = [sum(int(x * 10) == n for x in depths[:count]) for n in range(10)]
        assert max(counts) - min(counts) <= 3
    assert depths[:10] == spread(10, Random("some"))


def of_lengths(lengths, made=None):
    def build(count):
        if made is not None:
            made.append(count)
        return Sample("", [0] * (7 + sum(lengths[:count])), [Gold(0.0, ["a"])], {"count": count})

    return build


@pytest.mark.parametrize("guess", [0, 3, 50, 1000])
@pytest.mark.parametrize("unit", [0.1, 5.0, 500.0])
def test_the_fullest_that_fits(guess, unit):
    random = Random(1)
    lengths = [random.randint(1, 9) for _ in range(100)]
    for room in (6, 7, 8, 100, 399, 2000):
        wanted = [n for n in range(101) if 7 + sum(lengths[:n]) <= room]
        made = []
        found = fullest(of_lengths(lengths, made), room, guess, unit, 100)
        assert found is None if not wanted else found.about["count"] == wanted[-1]
        assert len(made) <= 101  # each at most once


def test_a_good_guess_needs_few_trials():
    made = []
    assert fullest(of_lengths([5] * 10_000, made), 4096, 800, 5.0, 10_000).about["count"] == 817
    assert len(made) <= 4


def test_what_counts_as_found():
    assert contains("It was THE Norse.", "the norse")
    assert share_found("in 1755, I think", Gold(0.5, ["the year 1755", "1755"])) == 1
    assert share_found("in 1756", Gold(0.5, ["1755"])) == 0


def test_depth():
    assert depth_of(["aa", "bb", "cccc"], 0) == pytest.approx(1 / 8)
    assert depth_of(["aa", "bb", "cccc"], 2) == pytest.approx(6 / 8)
    assert depth_of(["only"], 0) == 0.5
