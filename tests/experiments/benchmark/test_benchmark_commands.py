"""`mm benchmark`, as typed, at sizes that take no time; what it counts against counts by hand."""

import json

import pytest
import torch
import yaml

from mm_lightning.cli import main
from mm_lightning.experiments.benchmark.data import Mapped, Stream, loader
from mm_lightning.experiments.benchmark.setup import setup
from mm_lightning.experiments.benchmark.startup import package_seconds
from mm_lightning.experiments.benchmark.step import TrainingStep
from mm_lightning.experiments.benchmark.timing import peak_bytes, take_turns

SMALL = ["--dim", "16", "--heads", "2", "--precision", "fp32", "--repeats", "2"]
CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path, capsys):
    """Runs a benchmark; its result, and what it printed."""

    def run(name, *args):
        output = tmp_path / "result.json"
        assert main(["benchmark", name, *args, "--output", str(output), "--overwrite"]) == 0, capsys.readouterr().err
        result = json.loads(output.read_text())
        assert result["benchmark"] == name
        assert result["environment"]["packages"]["torch"]
        assert {"device", "threads"} <= set(result)
        assert "seed" in result["settings"]
        return result, capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A training config with two tiny layers and prepared data."""
    folder = tmp_path_factory.mktemp("text")
    for n in range(12):
        (folder / f"{n}.txt").write_text(" ".join(str(k * (n + 1)) for k in range(200)))
    arguments = ["--output", str(folder / "prepared"), "--validation_fraction", "0.3"]
    assert main(["data", "prepare", str(folder), *arguments, "--progress", "false", "--workers", "1"]) == 0
    network = {"vocab_size": 258, "layers": 2, "dim": 16, "heads": 2, "persistent_dim": 24, "short_term_window": 8}
    values = {
        "trainer": {"max_steps": 5, "precision": "32-true"},
        "model": {"network": {"class_path": "MemoryMosaicConfig", "init_args": network}},
        "data": {"path": str(folder / "prepared"), "context_length": 32, "global_batch_size": 4, "num_workers": 0}
        | {"micro_batch_size": 2},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_a_step_against_all(run):
    args = ["--layers", "1", "--context_length", "32", "--vocab_size", "64", "--kernels", "torch"]
    result, text = run("step", *SMALL, *args, "--against", "transformer", "v1", "hf_llama")
    assert list(result["seconds"]) == ["v2", "transformer", "v1", "hf_llama"]
    assert all(len(seconds) == 2 for seconds in result["seconds"].values())
    counts = result["parameters"]
    assert counts["hf_llama"] == counts["transformer"] == 2 * 64 * 16 + 4 * 16**2 + 3 * 16 * 48 + 3 * 16
    assert counts["v1"] == pytest.approx(counts["transformer"], rel=0.02)
    assert result["flops_ratio"]["hf_llama"] == result["flops_ratio"]["transformer"] > 1
    # weights, gradients, two moments at least
    assert all(peak > 16 * counts[name] for name, peak in result["peak_bytes"].items())
    assert "v2 / hf_llama" in text


def test_a_step_of_v1_one_network_after_the_other(run):
    args = ["--layers", "1", "--context_length", "32", "--network", "v1", "--apart"]
    result, text = run("step", *SMALL, *args, "--checkpointing", "selective", "--accumulate", "2")
    assert result["parameters"]["v1"] == pytest.approx(result["parameters"]["transformer"], rel=0.01)
    assert "v1 / transformer" in text


def test_a_step_has_as_many_passes_as_it_accumulates(run):
    what = setup(
        None, {"context_length": 8, "batch_size": 2, "precision": "fp32"}, dim=16, heads=2, layers=1, vocab_size=20
    )
    step, passes = TrainingStep(what.network, what, CPU, 0, accumulate=3), []
    step.network.register_forward_hook(lambda *_: passes.append(1))
    step()
    assert len(passes) == 3
    sizes = ["--layers", "1", "--context_length", "8", "--batch_size", "2", "--vocab_size", "20"]
    result, _ = run("step", *SMALL, *sizes, "--accumulate", "3")
    assert result["tokens_per_second"]["v2"] * result["median_seconds"]["v2"] == pytest.approx(3 * 2 * 8)


def test_a_config_gives_dimensions_and_options_win(config):
    what = setup(config, {}, layers=3)
    network = what.network
    assert (network.dim, network.layers, network.persistent_dim, network.short_term_window) == (16, 3, 24, 8)
    assert (what.context_length, what.batch_size, what.precision) == (32, 2, "fp32")
    assert setup(config, {}, dim=32).network.persistent_dim == 24


def test_decoding(run):
    args = ["--contexts", "300", "--layers", "1", "--vocab_size", "20", "--against", "transformer"]
    result, text = run("decode", *SMALL, *args, "--prefills", "3")
    assert "ms/token" in text
    (found,) = result["contexts"]
    assert [len(seconds) for seconds in found["seconds_of_prefill"].values()] == [3, 3]
    assert found["ratio"].keys() == {"v2", "transformer"}
    # keys and values of d numbers; a mosaic's short-term memory and averages come on top of the long-term one's
    assert found["bytes_per_token"]["transformer"] == pytest.approx(2 * 16 * 4, rel=0.01)
    assert found["bytes"]["v2"] >= 300 * 2 * 16 * 4 + 256 * 2 * 16 * 4


def test_recurrence(run):
    result, text = run("recurrence", *SMALL, "--lengths", "64", "128", "--kernels", "torch")
    assert list(result["lengths"][0]["seconds"]) == ["linear layer", "keys, torch", "keys and values, torch"]
    assert result["lengths"][1]["in_linear_layers"]["linear layer"] == 1
    assert result["flatness"]["keys, torch"]["64"] == 1
    # at least the gradient of x, 16 numbers of 4 bytes
    assert result["lengths"][0]["peak_bytes_per_token"]["linear layer"] >= 64
    assert "linear layers" in text


def test_recurrence_of_compiled_torch(run, monkeypatch, capsys):
    monkeypatch.setattr("torch.compile", lambda function: function)  # which takes a minute
    result, _ = run("recurrence", *SMALL, "--lengths", "64", "--kernels", "reference", "--compile", "true")
    assert list(result["lengths"][0]["seconds"])[3:] == ["keys, torch compiled", "keys and values, torch compiled"]
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    for name in ("recurrence", "step"):
        assert main(["benchmark", name, *SMALL, "--compile", "true"]) == 2
        assert "needs a C++ compiler" in capsys.readouterr().err


def test_reads(run):
    result, _ = run("reads", *SMALL, "--lengths", "40", "--window", "5", "--documents", "1", "--batch_size", "2")
    pairs = result["lengths"][0]["pairs"]
    assert pairs["plain causal attention"] == 2 * 40 * 41 // 2
    assert pairs["full read"] == 2 * 40 * 39 // 2
    assert pairs["short-term read"] == 2 * sum(min(t, 4) for t in range(40))
    assert pairs["long-term read"] == 0  # m is at least 64
    assert run("reads", *SMALL, "--lengths", "40", "--documents", "4")[0]["lengths"][0]["pairs"]["full read"] < 780


@pytest.mark.parametrize("name", ["recurrence", "reads"])
def test_lengths_with_the_same_tokens(run, name):
    """So that only the length differs: 4 sequences of 16 hold as much as 1 of 64."""
    result, _ = run(name, *SMALL, "--lengths", "16", "64", "--tokens", "64")
    assert "batch_size" not in result["settings"]
    for one in result["lengths"]:
        for median, each in zip(one["median_seconds"].values(), one["seconds_per_token"].values(), strict=True):
            assert median == pytest.approx(64 * each)
    assert all(by_length["16"] == 1 for by_length in result["flatness"].values())


def test_roofline(run):
    sizes = ["--layers", "2", "--vocab_size", "40", "--context_length", "32", "--batch_size", "2", "--kernels", "torch"]
    result, text = run("roofline", *SMALL, *sizes)
    found, tokens = result["operations"], 64
    assert found["SwiGLU"]["flops"] >= 2 * 3 * 6 * tokens * 16 * 48
    assert found["W_o"]["flops"] == 2 * 6 * tokens * 32 * 16
    assert found["classifier and loss"]["flops"] == 6 * tokens * 16 * 40
    assert found["short-term read"]["flops"] == 2 * 12 * 16 * 2 * sum(range(32))
    assert found["keys"]["times"] == 4
    assert all(row["seconds"] > 0 and row["floor_seconds"] > 0 for row in found.values() if row["bytes"])
    assert "whole step" in text


def test_data(run, config):
    result, text = run("data", config, "--batches", "3", "--repeats", "2", "--workers", "0")
    assert set(result["by_network"]) == {"loader, 0 workers", "memory-mapped read"}
    assert "by plain reading" in text


def test_plain_reading_reads_what_the_loader_reads(config):
    what = setup(config, {})
    mapped, batches = Mapped(what, 0, 1), iter(loader(what, 0, 0))
    for _ in range(5):
        rows = [mapped.sequence(next(mapped.order)) for _ in range(2)]
        assert [row[:-1].tolist() for row in rows] == next(batches).tokens.tolist()


def test_a_stream_has_no_end(config):
    batches = loader(setup(config, {}), 0, 0)
    stream = Stream(batches)
    stream.take(2 * len(batches))
    assert next(stream._batches, None) is not None


@pytest.mark.slow
def test_startup(run, config):
    result, text = run("startup", config, "--repeats", "1")
    times = result["median_seconds"]
    assert 0 < times["mm fit: first word"] <= times["mm fit: training starts"] < times["mm fit: first step done"]
    assert result["import_seconds"]["torch"] > 0
    assert "mm --help" in text


def test_seconds_of_imports():
    lines = ["import time: self [us] | cumulative | imported package"]
    lines += ["import time:   1000000 |    1500000 | torch", "import time:    500000 |     500000 |   torch.nn"]
    lines += ["import time:       200 |        200 |     numpy.core"]
    assert package_seconds("\n".join(lines)) == {"torch": 1.5, "numpy": 0.0002}


def test_turns_and_bytes():
    order = []
    seconds = take_turns({name: lambda name=name: order.append(name) for name in "ab"}, 3, CPU)
    assert order == list("ab" + "ababab")
    assert [len(times) for times in seconds.values()] == [3, 3]
    calls = []
    take_turns({"": lambda: calls.append(0)}, 1, CPU, least=1e-4)
    assert len(calls) > 3
    assert peak_bytes(lambda: torch.ones(1000).add(1).mul(2), CPU) == pytest.approx(2 * 4000, rel=0.3)


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
        ("recurrence --lengths 4 8 --tokens 12", "got 12 tokens and a length of 8"),
        ("recurrence --lengths 0", "lengths takes a whole number of at least 1, got 0"),
        ("reads --lengths 8 --documents 9", "at most the 8 tokens of a row, got 9"),
        ("decode --contexts 0", "contexts takes a whole number of at least 1"),
        ("decode --prefills 0", "prefills takes a whole number of at least 1, got 0"),
    ],
)
def test_mistakes(args, message, capsys):
    assert main(["benchmark", *args.split()]) == 2
    assert message in capsys.readouterr().err


def test_data_that_is_not_prepared(config, tmp_path, capsys):
    values = {"data": {"path": str(tmp_path / "nothing")}}
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(yaml.safe_dump(values))
    for name in ("data", "startup"):
        assert main(["benchmark", name, "--config", config, str(overlay)]) == 2
        assert "nothing" in capsys.readouterr().err
