"""Numbers of tables in their units, and means; their intervals are tested in tests/evaluation/test_intervals.py."""

import pytest

from mm_lightning.evaluation.measurement import Measurement, Row
from mm_lightning.evaluation.metrics import METRICS, Metric
from mm_lightning.experiments.evaluated.estimates import estimate, mean_of_shares


def answers(right, count, metric=METRICS["accuracy"], unit=1.0):
    values = {str(n): unit * (n < right) for n in range(count)}
    return Measurement({}, metric, values).row()


@pytest.mark.parametrize(
    ("right", "text"), [(3, "100.0 [43.9, 100.0]"), (1, "33.3 [6.1, 79.2]"), (0, "0.0 [0.0, 56.1]")]
)
def test_percent_is_scaled_once(right, text):
    """Of squadv2, whose official script gives percent, as of metrics that are shares: Wilson's interval of 3."""
    percent = answers(right, 3, Metric("f1", "percent"), 100.0)
    assert percent.value == pytest.approx(100 * right / 3)
    assert str(estimate(percent)) == str(estimate(answers(right, 3))) == text


def test_one_question_has_an_interval():
    assert str(estimate(answers(0, 1))) == "0.0 [0.0, 79.3]"
    assert str(estimate(answers(1, 1))) == "100.0 [20.7, 100.0]"


def test_answers_of_earlier_versions_that_hang_together_count_less():
    alone, repeated = (estimate(Row({}, "accuracy", 0.4, error, 600, "share")) for error in (0.02, 0.04))
    assert (repeated.high - repeated.low) == pytest.approx(2 * (alone.high - alone.low), rel=0.02)
    # all wrong: three times the same 20 questions say no more than 20
    none = estimate(Row({}, "accuracy", 0.0, 0.0, 60, "share"), repeats=3)
    assert none.high == pytest.approx(0.1611, abs=5e-5)


def test_means_of_shares():
    found = mean_of_shares([estimate(answers(150, 500)), estimate(answers(200, 400))], 2)
    assert found.value == pytest.approx(0.4)
    assert (found.low, found.high) == pytest.approx((0.3683, 0.4325), abs=1e-4)  # Wilson's of 4 / (1/500 + 1/400)
    assert found.count == 900
    assert not found.note
    assert str(mean_of_shares([estimate(answers(150, 500))], 2)).endswith("(1 of 2)")
    # of bbh and math with one document a task, all wrong
    assert str(mean_of_shares([estimate(answers(0, 27)), estimate(answers(0, 7))], 2)) == "0.0 [0.0, 17.7]"
    # one of them in percent
    percent = estimate(answers(100, 200, Metric("f1", "percent"), 100.0))
    assert mean_of_shares([percent, estimate(answers(0, 200))], 2).value == pytest.approx(0.25)


def test_other_numbers():
    found = estimate(Row({}, "loss", 3.0, 0.1, 4, "nats"))
    assert str(found) == "3.000 [2.682, 3.318]"  # Student's t of 3 degrees: 3.1824
    assert str(estimate(Row({}, "tokens", 4096.0, 3.0, 9, "count"))) == "4,096"
    assert str(estimate(Row({}, "loss", 0.25, None, 3, "nats", 0.1, 0.4), signed=True)) == "+0.250 [+0.100, +0.400]"


def test_the_fitted_line_over_shots():
    from mm_lightning.experiments.evaluated.in_context_section import fit

    assert fit([1, 2, 4, 8], [10, 20, 30, 40]) == pytest.approx([10, 20, 30, 40])
    assert fit([1, 2, 4], [0, 3, 6]) == pytest.approx([0, 3, 6])
    assert fit([1, 2, 4], [0, 0, 6]) == pytest.approx([-1, 2, 5])
