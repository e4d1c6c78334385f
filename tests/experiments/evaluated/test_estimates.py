"""Intervals against printed ones, and means."""

import math

import pytest

from mm_lightning.evaluation.task import Row, mean_row
from mm_lightning.experiments.evaluated.estimates import mean_of_shares, quantity, share


def answers(right, count):
    return mean_row({}, "accuracy", [1.0] * right + [0.0] * (count - right))


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    # Wilson's interval without correction, from Newcombe (1998), table I
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson(right, count, low, high):
    found = share(answers(right, count))
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    assert found.value == right / count


def test_answers_that_hang_together_count_less():
    alone, repeated = share(Row({}, "accuracy", 0.4, 0.02, 600)), share(Row({}, "accuracy", 0.4, 0.04, 600))
    assert (repeated.high - repeated.low) == pytest.approx(2 * (alone.high - alone.low), rel=0.02)
    # all wrong: three times the same 20 questions say no more than 20
    assert share(Row({}, "accuracy", 0.0, 0.0, 60), repeats=3).high == pytest.approx(0.1611, abs=5e-5)
    one = share(Row({}, "accuracy", 1.0, None, 1))
    assert (one.low, one.high, str(one)) == (None, None, "100.0")


def test_mean_of_shares():
    found = mean_of_shares([share(answers(150, 500)), share(answers(200, 400))], 2)
    assert found.value == pytest.approx(0.4)
    assert found.stderr == pytest.approx(math.sqrt(0.3 * 0.7 / 499 + 0.25 / 399) / 2)
    assert found.high - found.low == pytest.approx(2 * 1.96 * found.stderr, rel=0.01)
    assert found.count == 900
    assert not found.note
    assert str(mean_of_shares([share(answers(150, 500))], 2)).endswith("(1 of 2)")


def test_quantity():
    found = quantity(Row({}, "loss", 3.0, 0.1, 4))
    assert (found.low, found.high) == pytest.approx((3 - 0.31824, 3 + 0.31824), abs=1e-4)  # t of 3 degrees: 3.1824
    assert str(found) == "3.000 [2.682, 3.318]"


def test_the_fitted_line_over_shots():
    from mm_lightning.experiments.evaluated.in_context import fit

    assert fit([1, 2, 4, 8], [10, 20, 30, 40]) == pytest.approx([10, 20, 30, 40])
    assert fit([1, 2, 4], [0, 3, 6]) == pytest.approx([0, 3, 6])
    assert fit([1, 2, 4], [0, 0, 6]) == pytest.approx([-1, 2, 5])
