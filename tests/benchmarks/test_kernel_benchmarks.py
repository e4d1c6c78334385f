"""The benchmarks for developers of kernels, at sizes that take no time; what they count against counts by hand."""

import json

import pytest
import reads
import recurrence
import roofline

from mm_lightning.errors import UserError
from mm_lightning.experiments.benchmark.harness import Benchmark, Options
from mm_lightning.experiments.benchmark.step import DEFAULTS
from mm_lightning.function_command import run_function

SMALL = ["--dim", "16", "--heads", "2", "--precision", "fp32", "--repeats", "2"]


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Run a script without measuring the device's peaks; its rows by name, its rows in order, and what it printed."""
    peaks = {"flops_per_second": 1e12, "bytes_per_second": 1e10}
    for script in (recurrence, roofline):
        monkeypatch.setattr(script, "measure_peaks", lambda bench: peaks)

    def run(script, *args):
        output = tmp_path / "result.json"
        name = script.__name__
        run_function(name, getattr(script, f"{name}_command"), [*args, "--output", str(output), "--overwrite"])
        rows = json.loads(output.read_text())["rows"]
        return {row["case"]: row for row in rows}, rows, capsys.readouterr().out

    return run


def test_recurrence(run, monkeypatch):
    monkeypatch.setattr("torch.compile", lambda function: function)  # which takes a minute
    args = ["--lengths", "16", "64", "--tokens", "64", "--kernels", "torch", "--compile"]
    rows, result, text = run(recurrence, *SMALL, *args)
    names = ["linear layer", "keys, torch", "keys and values, torch"]
    assert list(rows) == [*names, "keys, torch compiled", "keys and values, torch compiled"]
    assert {row["tokens"] for row in result} == {64}  # so that only the length differs
    assert rows["keys, torch"]["bytes"] == 8 * 64 * 16 * 4
    assert rows["keys and values, torch"]["bytes"] == 14 * 64 * 16 * 4
    assert rows["linear layer"]["peak_bytes"] >= 64 * 16 * 4  # at least the gradient of x
    first, *_ = result
    assert first["growth"] == 1
    assert rows["linear layer"]["growth"] == pytest.approx(
        rows["linear layer"]["median_seconds"] / first["median_seconds"]
    )
    assert "linear layers" in text


def test_reads(run):
    args = ["--lengths", "40", "--window", "5", "--batch_size", "2"]
    rows, _, text = run(reads, *SMALL, *args)
    assert [rows[name]["pairs"] for name in rows] == [
        2 * 40 * 41 // 2,
        2 * 40 * 39 // 2,
        2 * sum(min(t, 4) for t in range(40)),
        0,  # m is at least 64
    ]
    assert rows["short-term read"]["flops"] == 12 * 16 * rows["short-term read"]["pairs"]
    assert run(reads, *SMALL, "--lengths", "40", "--documents", "4")[0]["full read"]["pairs"] < 780
    assert "by plain attention" in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--lengths 4 8 --tokens 12", "got 12 tokens and a length of 8"),
        ("--lengths 0", "lengths takes a whole number of at least 1, got 0"),
        ("--layers 3", "does not depend on layers"),
        ("--lengths 8 --documents 9", "at most the 8 tokens of a row, got 9"),
        ("--lengths []", "lengths is empty"),
    ],
)
def test_mistakes_of_reads(args, message):
    with pytest.raises(UserError, match=message):
        run_function("reads", reads.reads_command, args.split())


def test_roofline(run):
    sizes = ["--layers", "2", "--vocab_size", "40", "--context_length", "32", "--batch_size", "2", "--kernels", "torch"]
    rows, _, text = run(roofline, *SMALL, *sizes)
    whole, total = rows.pop("whole step"), rows.pop("all of them")
    assert rows["SwiGLU"]["flops"] >= 2 * 3 * 6 * 64 * 16 * 48
    assert rows["W_o"]["flops"] == 2 * 6 * 64 * 32 * 16
    assert rows["classifier and loss"]["flops"] == 6 * 64 * 16 * 40
    assert rows["short-term read"]["flops"] == 2 * 12 * 16 * 2 * sum(range(32))
    assert rows["keys"]["times"] == 4
    assert rows["keys"]["total_seconds"] == pytest.approx(4 * rows["keys"]["median_seconds"])
    assert whole["flops"] == total["flops"] == sum(row["flops"] for row in rows.values())
    W_o = rows["W_o"]
    assert W_o["floor_seconds"] == pytest.approx(max(W_o["flops"] / 1e12, W_o["bytes"] / 1e10))
    assert "whole step" in text


def test_recurrence_needs_a_compiler(monkeypatch):
    monkeypatch.setattr("mm_lightning.training.compiler.cpp_compilers", lambda: ("no-such-compiler",))
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler"):
        recurrence.recurrence_command(compile=True, dim=16, heads=2, precision="fp32")


def test_the_peaks_of_the_device(monkeypatch):
    monkeypatch.setattr(recurrence, "PEAK_SIZES", {"cpu": (64, 1 << 10)})
    peaks = recurrence.measure_peaks(Benchmark("roofline", Options(repeats=1, precision="fp32"), DEFAULTS))
    assert all(0 < rate < 1e15 for rate in peaks.values())
