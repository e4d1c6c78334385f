"""Intervals against printed ones, and how often they hold what they are intervals of."""

import math
import random

import pytest

from mm_lightning.evaluation.intervals import (
    independent,
    mean_interval,
    paired_interval,
    share_interval,
    t_quantile,
)


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    # Wilson's interval without correction, from Newcombe (1998), table I
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_one_share_has_wilsons_interval(right, count, low, high):
    assert share_interval(right / count, [count]) == pytest.approx((low, high), abs=5e-5)
    # several of equal counts are one
    assert share_interval(right / count, [count / 4] * 4) == pytest.approx((low, high), abs=5e-5)


def test_a_mean_of_groups_that_score_0_is_as_uncertain_as_its_smallest_group():
    low, high = share_interval(0.0, [27, 7])
    seven = share_interval(0.0, [7])[1]
    assert low == 0
    assert high == pytest.approx(seven / 2)  # all of the mean in the group of 7
    assert share_interval(1.0, [27, 7]) == pytest.approx((1 - high, 1.0))
    assert share_interval(0.0, [1])[1] == pytest.approx(0.7935, abs=1e-4)


@pytest.mark.parametrize(
    ("shares", "counts"),
    [
        ([0.0, 0.34], [27, 7]),
        ([0.05, 0.1], [27, 7]),
        ([0.5] * 13, [1] * 13),
        ([0.02] * 13, [1] * 13),
        ([0.9, 0.1, 0.5], [3, 5, 40]),
        ([0.97] * 20, [1, 2] * 10),
    ],
)
def test_means_of_groups_are_covered(shares, counts):
    draw, truth, hits = random.Random(0), sum(shares) / len(shares), 0
    for _ in range(1000):
        found = [sum(draw.random() < p for _ in range(n)) / n for p, n in zip(shares, counts, strict=True)]
        low, high = share_interval(sum(found) / len(found), counts)
        hits += low <= truth <= high
    assert hits >= 930  # Wilson's own coverage dips a little below 95%


def test_a_further_source_of_variance():
    low, high = share_interval(0.5, [10**9], extra=0.1)
    assert (low, high) == pytest.approx((0.4, 0.6), abs=1e-3)


def test_scores_between_0_and_1_tell_no_less_than_answers():
    p, n = 0.3, 50
    assert independent(p, math.sqrt(p * (1 - p) / (n - 1)), n) == n
    assert independent(p, 0.0, n) == n
    assert independent(p, None, 1) == 1
    assert independent(0.5, 0.01, 50) == pytest.approx(2500 * (1.959964 / t_quantile(49)) ** 2)


def test_students_t():
    # Abramowitz and Stegun, table 26.10
    for degrees, printed in ((1, 12.706), (2, 4.303), (3, 3.182), (10, 2.228), (30, 2.042), (120, 1.980)):
        assert t_quantile(degrees) == pytest.approx(printed, abs=5e-4)
    assert t_quantile(10**6) == pytest.approx(1.959966, abs=1e-5)
    assert mean_interval(3.0, 0.1, 4) == pytest.approx((3 - 0.31824, 3 + 0.31824), abs=1e-4)
    assert mean_interval(3.0, None, 1) is None


def test_paired_differences():
    # alike on 20 questions: (1 + 0 * 20) / 22 is the variance of the 22
    assert paired_interval([0.0] * 20, True) == pytest.approx((-1.96 / 22, 1.96 / 22), abs=1e-4)
    assert paired_interval([1.0], True)[1] == 1
    low, high = paired_interval([0.1, 0.2, 0.3], False)
    assert (low, high) == pytest.approx((0.2 - 4.3027 * 0.1 / 3**0.5, 0.2 + 4.3027 * 0.1 / 3**0.5), abs=1e-4)
    assert paired_interval([0.1], False) is None


def test_paired_differences_are_covered():
    draw, hits = random.Random(1), 0
    for _ in range(1000):
        pairs = [(draw.random() < 0.3, draw.random() < 0.3) for _ in range(15)]
        low, high = paired_interval([float(a) - float(b) for a, b in pairs], True)
        hits += low <= 0 <= high
    assert hits >= 930
