"""The published numbers agree with each other where the paper prints means of them."""

import pytest

from mm_lightning.experiments.evaluated.persistent_section import BENCHMARKS
from mm_lightning.experiments.evaluated.published import (
    MEAN_6,
    MEAN_13,
    MEAN_19,
    NEW_KNOWLEDGE,
    OTHER_6,
    PERSISTENT_13,
)


def test_every_benchmark_has_its_numbers():
    assert list(BENCHMARKS) == [*PERSISTENT_13, *OTHER_6]


def test_means_are_means():
    assert (len(PERSISTENT_13), len(OTHER_6)) == (13, 6)
    for column in range(5):
        for printed, names in ((MEAN_13, PERSISTENT_13), (MEAN_6, OTHER_6), (MEAN_19, PERSISTENT_13 | OTHER_6)):
            if printed[column] is not None:
                mean = sum(numbers[column] for numbers in names.values()) / len(names)
                assert printed[column] == pytest.approx(mean, abs=0.06)  # each is rounded


def test_table_12_is_the_difference_that_the_paper_names():
    by_name = {row.network.name: row.accuracy for row in NEW_KNOWLEDGE}
    fixed = by_name["v2 small trained with a fixed m, at 4k (Table 12)"]
    assert by_name["v2 small, trained at 4k"][32768] - fixed[32768] == pytest.approx(15.8)
