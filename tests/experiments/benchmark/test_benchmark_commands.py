"""`mm benchmark`, as typed, at sizes that take no time; what it counts against counts by hand."""

import json

import pytest
import torch

from mm_lightning.cli import main
from mm_lightning.experiments.benchmark.step import DEFAULTS, TrainingStep
from mm_lightning.experiments.benchmark.workload import Workload

SMALL = ["--dim", "16", "--heads", "2", "--precision", "fp32", "--repeats", "2"]
CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path, capsys):
    """Runs a benchmark; its rows by name, its result, and what it printed."""

    def run(name, *args):
        output = tmp_path / "result.json"
        assert main(["benchmark", name, *args, "--output", str(output), "--overwrite"]) == 0, capsys.readouterr().err
        result = json.loads(output.read_text())
        assert result["benchmark"] == name
        assert result["environment"]["packages"]["torch"]
        assert {"device", "threads"} <= set(result)
        assert result["settings"]["seed"] == 0
        assert all(len(row["seconds"]) == 2 for row in result["rows"] if row["case"] != "all of them")
        return {row["case"]: row for row in result["rows"]}, result, capsys.readouterr().out

    return run


def test_a_step_against_all(run):
    args = ["--layers", "1", "--context_length", "32", "--vocab_size", "64", "--persistent_dim", "40"]
    rows, _, text = run("step", *SMALL, *args, "--against", "transformer", "v1", "hf_llama")
    assert list(rows) == ["v2", "transformer", "v1", "hf_llama"]
    counts = {name: row["parameters"] for name, row in rows.items()}
    assert counts["hf_llama"] == counts["transformer"] == 2 * 64 * 16 + 4 * 16**2 + 3 * 16 * 40 + 3 * 16
    assert counts["v1"] == pytest.approx(counts["transformer"], rel=0.02)
    assert rows["hf_llama"]["flops_ratio"] == rows["transformer"]["flops_ratio"] > 1
    # weights, gradients, two moments at least
    assert all(row["peak_bytes"] > 16 * counts[name] for name, row in rows.items())
    assert "v2 takes" in text


def test_a_step_of_v1_one_network_after_the_other(run):
    sizes = ["--layers", "1", "--context_length", "8", "--batch_size", "2", "--vocab_size", "64"]
    args = ["--network", "v1", "--apart", "--checkpointing", "true", "--accumulate", "3"]
    rows, result, text = run("step", *SMALL, *sizes, *args)
    assert rows["v1"]["parameters"] == pytest.approx(rows["transformer"]["parameters"], rel=0.01)
    assert rows["v1"]["tokens"] == 3 * 2 * 8
    assert result["settings"]["apart"] is True
    assert "v1 takes" in text


def test_a_step_has_as_many_passes_as_it_accumulates():
    given = {"dim": 16, "heads": 2, "layers": 1, "vocab_size": 20, "context_length": 8, "precision": "fp32"}
    work = Workload.create(None, DEFAULTS, given)
    step, passes = TrainingStep(work.network, work, CPU, 0, accumulate=3), []
    step.network.register_forward_hook(lambda *_: passes.append(1))
    step()
    assert len(passes) == 3


def test_a_config_gives_dimensions_and_options_override_it(tiny):
    work = Workload.create([str(tiny)], DEFAULTS, {"layers": 3})
    network = work.network
    assert (network.dim, network.layers, network.persistent_dim, network.short_term_window) == (16, 3, 32, 8)
    assert (work.context_length, work.batch_size, work.precision) == (32, 4, "fp32")
    assert Workload.create([str(tiny)], DEFAULTS, {"dim": 32}).network.persistent_dim == 96


def test_decoding(run):
    args = ["--contexts", "300", "--layers", "1", "--vocab_size", "20", "--against", "transformer", "--prefills", "2"]
    _, result, text = run("decode", *SMALL, *args)
    rows = {(row["pass"], row["case"]): row for row in result["rows"]}
    assert [row["tokens"] for row in rows.values()] == [300, 300, 16, 16]
    # keys and values of d elements; a mosaic's short-term memory and averages come on top of the long-term one's
    assert rows["prefill", "transformer"]["bytes_per_token"] == pytest.approx(2 * 16 * 4, rel=0.01)
    assert rows["prefill", "v2"]["state_bytes"] >= 300 * 2 * 16 * 4 + 256 * 2 * 16 * 4
    assert "v2 takes" in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("step --repeats 0", "repeats takes a whole number of at least 1"),
        ("step --threads 0", "threads takes a whole number of at least 1"),
        ("step --batch_size 0", "batch_size takes a whole number of at least 1"),
        ("step --heads 3", "heads must divide dim"),
        ("step --against v1 v1", "names one twice"),
        ("step --config nowhere.yaml", "nowhere.yaml"),
        ("step --device quantum", "there is no device 'quantum'"),
        ("step --device meta", "there is no device 'meta'"),
        ("decode --contexts 0", "contexts takes a whole number of at least 1"),
        ("decode --prefills 0", "prefills takes a whole number of at least 1, got 0"),
        ("data", "python tests/benchmarks/loader.py"),
        ("startup", "python tests/benchmarks/startup.py"),
        ("recurrence --lengths 16", "python tests/benchmarks/recurrence.py"),
        ("roofline", "python tests/benchmarks/roofline.py"),
        ("reads --lengths 16", "python tests/benchmarks/reads.py"),
    ],
)
def test_mistakes(args, message, capsys):
    assert main(["benchmark", *args.split()]) == 2
    assert message in capsys.readouterr().err


def test_compiling_needs_a_compiler(monkeypatch, capsys):
    monkeypatch.setattr("mm_lightning.training.compiler.cpp_compilers", lambda: ("no-such-compiler",))
    assert main(["benchmark", "step", *SMALL, "--compile"]) == 2
    assert "needs a C++ compiler" in capsys.readouterr().err


def test_llama_without_transformers(monkeypatch, capsys):
    monkeypatch.setattr("mm_lightning.experiments.benchmark.workload.find_spec", lambda name: None)
    assert main(["benchmark", "decode", *SMALL]) == 2
    assert "pip install transformers, or leave hf_llama out" in capsys.readouterr().err
