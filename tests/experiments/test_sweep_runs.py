"""What a sweep file's runs are, worked out."""

from pathlib import Path

import pytest
import yaml
from documented_modules import documented_modules

from mm_lightning.errors import UserError
from mm_lightning.experiments.sweep_file import read_sweep, variants
from mm_lightning.experiments.sweep_runs import plan, slug

pytestmark = pytest.mark.usefixtures("parsed_once")
SWEEPS = Path(__file__).resolve().parents[2] / "configs" / "sweeps"
SHIPPED = sorted(
    p.name for p in SWEEPS.glob("*.yaml") if {"axes", "runs", "like"} & yaml.safe_load(p.read_text()).keys()
)
"""Files that declare runs; the others are configs that sweeps name."""


@pytest.fixture
def declare(tmp_path):
    def declare(**values):
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({"base": str(SWEEPS / "cpu.yaml"), **values}, sort_keys=False))
        return read_sweep(path)

    return declare


def test_widths_are_solved_for(declare):
    """Equal parameters and FLOPs, to within one unit of width; the networks are counted, not their configs."""
    transformer, v1 = str(SWEEPS / "transformer.yaml"), str(SWEEPS.parent / "ablations" / "v1.yaml")
    runs = {
        "v2": None,
        "transformer": {"config": transformer, "match": "parameters"},
        "v1": {"config": v1, "match": "flops"},
    }
    v2, other, first = plan(declare(runs=runs))
    counts = [sum(p.numel() for p in run.network.build().parameters()) for run in (v2, other)]
    assert abs(counts[0] - counts[1]) <= 3 * 96 * 2 / 2  # one hidden unit of two SwiGLUs is 3 d numbers each
    assert other.parameters == counts[1]
    # a pair of slots is 2 d numbers in each of two blocks; forward and backward take 6 operations for each
    assert abs(first.training_flops_per_token - v2.training_flops_per_token) <= 6 * 2 * 96 * 2 / 2
    assert first.network.persistent_slots == first.config["model"]["network"]["init_args"]["persistent_slots"]
    assert first.network.keys == "leaky"


def test_match_is_at_the_same_values_of_other_axes(declare):
    """Two layers of a transformer equal two layers of v2, not one."""
    axes = {
        "architecture": {
            "v2": None,
            "transformer": {"config": str(SWEEPS / "transformer.yaml"), "match": "parameters"},
        },
        "layers": {n: {"model.network.layers": n} for n in (1, 3)},
    }
    runs = {(run.values["architecture"], run.values["layers"]): run for run in plan(declare(axes=axes, baseline="v2"))}
    assert runs["v2", 3].parameters > runs["v2", 1].parameters + 100_000
    for layers in (1, 3):
        difference = abs(runs["transformer", layers].parameters - runs["v2", layers].parameters)
        assert difference <= 3 * 96 * layers / 2  # half a hidden unit of each SwiGLU


def test_optimizers_and_schedules_are_axes(declare):
    sgd = {"class_path": "SGD", "init_args": {"momentum": 0.9}}
    halving = {"class_path": "StepLR", "init_args": {"step_size": 10, "gamma": 0.5}}
    axes = {"model.optimizer": ["muon", sgd], "model.schedule": ["wsd", "inverse_sqrt", halving]}
    runs = plan(declare(axes=axes, warmup=0.25, stop={"steps": 40}))
    models = [yaml.safe_load(yaml.safe_dump(run.config))["model"] for run in runs]
    assert [model["warmup_steps"] for model in models] == [10] * 6
    assert [model["optimizer"] for model in models] == ["muon"] * 3 + [sgd] * 3
    assert [model["schedule"] for model in models] == ["wsd", "inverse_sqrt", halving] * 2


def test_a_checkpoint_is_of_one_run(declare):
    with pytest.raises(UserError, match="ckpt_path"):
        declare(runs={"a": {"ckpt_path": "runs/0/checkpoints/step=3.ckpt"}})


def test_stop_rules_warmup_and_validations(declare):
    axes = {"stop.tokens": [10_240, 20_481]}
    runs = plan(declare(axes=axes, warmup=0.25, validations=2, seeds=[3, 8]))
    assert [(run.steps, run.seed) for run in runs] == [(5, 3), (5, 8), (10, 3), (10, 8)]
    last = runs[-1].config
    assert (last["trainer"]["max_steps"], last["model"]["warmup_steps"]) == (10, 2)
    assert last["trainer"]["val_check_interval"] == 5
    assert last["trainer"]["callbacks"][0]["init_args"]["every_n_steps"] == 5
    assert last["seed_everything"] == last["model"]["seed"] == last["data"]["seed"] == 8
    (run,) = plan(declare(runs={"a": None}, stop={"flops": 1e12}))
    assert run.steps == round(1e12 / (8 * 256) / run.training_flops_per_token)
    assert run.flops == pytest.approx(1e12, rel=0.01)
    (run,) = plan(declare(runs={"a": None}))
    assert run.steps == 600


def test_mistakes_name_the_variant(declare):
    with pytest.raises(UserError, match=r"sweep.yaml, b: unknown config key model.network.windw|b: unknown .*windw"):
        plan(declare(runs={"a": None, "b": {"model.network.windw": 3}}))
    with pytest.raises(UserError, match=r"a: its 10 steps would all be warm-up .* add `warmup: 0.1`"):
        plan(declare(runs={"a": None}, stop={"steps": 10}))
    huge = {"config": str(SWEEPS / "transformer.yaml"), "model.network.layers": 50, "match": "parameters"}
    with pytest.raises(UserError, match=r"even with persistent_dim 1 it has .* parameters, more than"):
        plan(declare(runs={"a": None, "b": huge}))
    with pytest.raises(UserError, match=r"a/b would be kept in the folder of a b: give one another name"):
        plan(declare(runs={"a b": None, "a/b": None}))
    with pytest.raises(UserError, match=r"b would be the same as a: leave one out"):
        plan(declare(runs={"a": None, "b": {"model.network.dim": 96}}))
    with pytest.raises(UserError, match=r"b: data.global_batch_size 8 is not a multiple of data.micro_batch_size 3"):
        plan(declare(runs={"a": None, "b": {"data.micro_batch_size": 3}}))


def test_parts_of_a_users_module_are_values_of_an_axis(declare, tmp_path, monkeypatch):
    (tmp_path / "mine_swept.py").write_text(documented_modules()["mine.py"], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    keys, persistent = {"class_path": "mine_swept.LastThree"}, {"class_path": "mine_swept.SquaredReLU"}
    gated, own = plan(declare(axes={"model.network.keys": ["gated", keys]}, stop={"steps": 40}, warmup=0.1))
    assert (gated.network.keys, own.network.keys) == ("gated", keys)
    assert gated.parameters != own.parameters
    for part in (persistent, "none"):  # which have no width to solve for
        with pytest.raises(UserError, match=r"b: parameters do not depend on .*persistent_dim, .* `match`"):
            plan(declare(runs={"a": None, "b": {"model.network.persistent": part, "match": "parameters"}}))


def test_names_of_folders():
    assert slug("keys=leaky, memory=two levels") == "keys=leaky,memory=two_levels"
    assert slug("../v1, equal FLOPs") == "v1,equal_FLOPs"
    assert slug("é") == "é"
    for name in ("/", "..", "report", "x" * 300):
        with pytest.raises(UserError, match="a variant cannot be called"):
            slug(name)


REPRODUCTIONS = sorted(
    path.name for path in (SWEEPS.parent / "reproduction").glob("*.yaml") if not path.stem.endswith("_config")
)


@pytest.mark.slow
@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_reproductions_are_planned(name):
    """Names of the published table that look like a variant's are one, so that they stand beside it."""
    sweep = read_sweep(SWEEPS.parent / "reproduction" / name)
    names = {variant.name for variant in variants(sweep)}
    numbers = [key for metric, values in sweep.published.items() if metric != "source" for key in values]
    assert bool(numbers) == bool(sweep.published.get("source"))
    assert {key for key in numbers if key.startswith(("v1", "v2", "architecture="))} - names <= {
        f"{label}, sequences=40000" for label in ("v1", "architecture=transformer")
    }
    runs = plan(sweep)
    assert {run.variant for run in runs} == names


@pytest.mark.parametrize("name", ["mqar_gpu.yaml", "regbench_gpu.yaml"])
def test_twins_for_a_gpu_have_the_variants_of_their_file(name):
    folder = SWEEPS.parent / "reproduction"
    twin, plain = read_sweep(folder / name), read_sweep(folder / name.replace("_gpu", ""))
    assert variants(twin)
    assert twin.published == plain.published
    assert set(twin.axes["architecture"]) == set(plain.axes["architecture"])


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_sweep_can_be_planned(name):
    runs = plan(read_sweep(SWEEPS / name))
    assert len({run.folder for run in runs}) == len(runs) >= 2
