"""Accuracies and standard errors by hand."""

import math
import random
from statistics import fmean, stdev

import pytest

from mm_lightning.evaluation.in_context import accuracy
from mm_lightning.evaluation.in_context.accuracy import Answer
from mm_lightning.evaluation.intervals import share_interval
from mm_lightning.evaluation.metrics import METRICS


def row(kind, found):
    return kind({}, METRICS["greedy"], found).row()


def micro(found):
    return row(accuracy.micro, found).value, row(accuracy.micro, found).stderr


def macro(found):
    return row(accuracy.macro, found).value, row(accuracy.macro, found).stderr


def answers(table, labels):
    return [Answer(seed, str(n), labels[n], x) for seed, row in enumerate(table) for n, x in enumerate(row)]


def test_one_set_of_demonstrations():
    found = answers([[1, 1, 0, 1, 0]], "aaabb")
    assert micro(found) == pytest.approx((0.6, math.sqrt(0.3 / 5)))
    # Classes: 2/3 with variance 1/3 of 3, 1/2 with variance 1/2 of 2.
    assert macro(found) == pytest.approx(((2 / 3 + 1 / 2) / 2, math.sqrt((1 / 9 + 1 / 4) / 4)))


def test_several_sets():
    found = answers([[1, 1, 0, 0], [1, 0, 0, 0]], "aabb")
    # Questions: 1, 1/2, 0, 0 with variance 11/48; sets: 1/2 and 1/4 with variance 1/32.
    assert micro(found) == pytest.approx((3 / 8, math.sqrt(11 / 48 / 4 + 1 / 32 / 2)))


def test_a_class_with_one_question_borrows_the_variance_of_the_others():
    assert macro(answers([[1, 0, 1]], "aab")) == pytest.approx((0.75, math.sqrt((0.5 / 2 + 0.5) / 4)))
    assert macro(answers([[1, 0]], "ab")) == pytest.approx((0.5, math.sqrt((0.5 + 0.5) / 4)))


def test_a_single_question():
    assert micro(answers([[1], [0]], "a")) == (0.5, None)


def test_the_standard_error_is_that_of_a_repetition():
    """Of experiments whose questions and demonstrations are drawn anew."""
    draw = random.Random(0)
    found = []
    for _ in range(400):
        hard = [draw.gauss(0, 1) for _ in range(40)]
        good = [draw.gauss(0, 1) for _ in range(4)]
        found.append(micro(answers([[float(g + h + draw.gauss(0, 1) > 0) for h in hard] for g in good], "a" * 40)))
    spread = stdev(value for value, _ in found)
    assert fmean(error for _, error in found) == pytest.approx(spread, rel=0.15)


def test_intervals_hold_where_all_answers_are_alike():
    """Three sets of demonstrations say of 20 questions what 20 questions say."""
    found = row(accuracy.micro, answers([[0] * 20] * 3, "ab" * 10))
    assert (found.low, found.high, found.count) == (0, pytest.approx(0.1611, abs=5e-5), 60)
    # classes of 2 and of 18 questions
    found = row(accuracy.macro, answers([[1] * 20], "a" * 2 + "b" * 18))
    assert (found.low, found.high) == pytest.approx(share_interval(1.0, [2, 18]))


def test_sets_that_differ_widen_the_interval():
    same = row(accuracy.micro, answers([[1, 0] * 20] * 3, "a" * 40))
    apart = row(accuracy.micro, answers([[1] * 40, [0] * 40, [1, 0] * 20], "a" * 40))
    assert same.value == apart.value == 0.5
    assert (same.low, same.high) == pytest.approx(share_interval(0.5, [40]), abs=1e-6)
    assert (apart.low, apart.high) == (0, 1)
