"""The harness: turns, medians, ratios, rates and peak memory, by a clock that the tests move."""

import pytest
import torch

from mm_lightning.experiments.benchmark import harness
from mm_lightning.experiments.benchmark.harness import Case, measure, peak_bytes, ready

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock; `clock(name, seconds)` makes a call that takes the next of these seconds, again and again."""
    now, calls = [0.0], []
    monkeypatch.setattr(harness.time, "perf_counter", lambda: now[0])

    def call(name, seconds):
        left = []

        def run():
            left[:] = left or seconds
            calls.append(name)
            now[0] += left.pop(0)
            return name

        return run

    call.calls = calls
    return call


def test_turns_medians_ratios_and_rates(clock):
    slow, fast = clock("slow", [0.0, 2.0, 4.0, 9.0]), clock("fast", [0.0, 1.0, 4.0, 3.0])  # the first warms up
    rounds, returned = [], []
    cases = [
        Case("slow", ready(slow), {"tokens": 8, "parameters": 5}, finish=lambda call: {"same": call is slow}),
        Case("fast", ready(fast), {"flops": 9}, observe=returned.append),
    ]
    first, second = measure(cases, 3, CPU, before_round=rounds.append)
    assert clock.calls == ["slow", "fast"] * 4
    assert rounds == [0, 0, 1, 2]
    assert returned == ["fast"] * 3
    assert first["seconds"] == [2, 4, 9]
    assert (first["median_seconds"], first["tokens_per_second"], first["parameters"]) == (4, 2, 5)
    assert first["relative_time"] == first["speedup"] == 1
    assert first["same"]
    assert second["relative_time"] == 1 / 2  # of 1/2, 4/4 and 3/9
    assert second["speedup"] == 2
    assert second["flops_per_second"] == 3


def test_short_calls_are_repeated_within_a_run(clock):
    (row,) = measure([Case("short", ready(clock("short", [0.25])))], 2, CPU, least=1.0)
    assert row["seconds"] == [0.25, 0.25]
    assert len(clock.calls) == 2 + 2 * 4


def test_one_case_is_built_after_the_other(clock):
    built = []

    def build(name):
        def made():
            built.append((name, len(clock.calls)))
            return clock(name, [1.0])

        return made

    rows = measure([Case(name, build(name)) for name in "ab"], 2, CPU, apart=True)
    assert built == [("a", 0), ("b", 3)]
    assert [row["case"] for row in rows] == ["a", "b"]
    assert rows[1]["relative_time"] == 1


def test_peak_memory():
    assert peak_bytes(lambda: torch.ones(1000).add(1).mul(2), CPU) == pytest.approx(2 * 4000, rel=0.3)
