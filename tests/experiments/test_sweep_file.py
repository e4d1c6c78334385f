"""What a sweep file declares."""

import pytest
import yaml

from mm_lightning.errors import UserError
from mm_lightning.experiments.sweep_file import Change, baseline_of, read_sweep, variants

AXES = {
    "keys": {"gated": None, "leaky": "leaky.yaml"},
    "model.network.short_term_window": [64, 16],
    "memory": {"three": None, "two": {"config": ["one.yaml"], "match": "parameters", "data.num_workers": 3}},
}


@pytest.fixture
def write(tmp_path):
    def write(name="sweep.yaml", **values):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    return write


def test_a_grid_is_the_full_product(write, tmp_path):
    sweep = read_sweep(write(base="base.yaml", axes=AXES, baseline="v2"))
    found = variants(sweep)
    assert [variant.name for variant in found] == [
        "v2, short_term_window=64",
        "memory=two, short_term_window=64",
        "v2, short_term_window=16",
        "memory=two, short_term_window=16",
        "keys=leaky, short_term_window=64",
        "keys=leaky, memory=two, short_term_window=64",
        "keys=leaky, short_term_window=16",
        "keys=leaky, memory=two, short_term_window=16",
    ]
    assert baseline_of(sweep, found) is found[0]
    last = found[-1]
    assert last.values == {"keys": "leaky", "short_term_window": 16, "memory": "two"}
    assert last.change.configs == [str(tmp_path / "leaky.yaml"), str(tmp_path / "one.yaml")]
    assert last.change.settings == {"model.network.short_term_window": 16, "data.num_workers": 3}
    assert (last.change.match, found[0].change.match) == ("parameters", None)
    assert sweep.base == [str(tmp_path / "base.yaml")]


def test_one_change_at_a_time(write):
    found = variants(read_sweep(write(base="base.yaml", axes=AXES, design="one_change")))
    assert [variant.values for variant in found] == [
        {"keys": "gated", "short_term_window": 64, "memory": "three"},
        {"keys": "gated", "short_term_window": 64, "memory": "two"},
        {"keys": "gated", "short_term_window": 16, "memory": "three"},
        {"keys": "leaky", "short_term_window": 64, "memory": "three"},
    ]
    assert found[2].name == "base, short_term_window=16"


def test_a_list_of_runs(write):
    runs = {"a": None, "b": {"data.num_workers": 1}, "c": ["x.yaml", "y.yaml"]}
    sweep = read_sweep(write(base="base.yaml", runs=runs, baseline="b", seeds=2))
    found = variants(sweep)
    assert [variant.name for variant in found] == ["a", "b", "c"]
    assert baseline_of(sweep, found).name == "b"
    assert sweep.seeds == [1, 2]


def test_names_of_axes_that_end_alike(write):
    axes = {"model.network.vocab_size": [2, 3], "data.prepare.vocab_size": [2, 3]}
    found = variants(read_sweep(write(base="base.yaml", axes=axes)))
    assert [tuple(variant.values.values()) for variant in found] == [(2, 2), (2, 3), (3, 2), (3, 3)]
    assert found[0].name == "model.network.vocab_size=2, data.prepare.vocab_size=2"


def test_sections_may_be_nested_and_one_stop_rule_replaces_another(write):
    runs = {"a": {"model": {"network": {"dim": 64}}, "trainer": {"strategy": {"class_path": "x"}}, "stop.steps": 3}}
    sweep = read_sweep(write(base="base.yaml", runs=runs, settings={"stop.tokens": 5}))
    change = Change(settings=sweep.settings).then(variants(sweep)[0].change)
    assert change.settings == {"model.network.dim": 64, "trainer.strategy": {"class_path": "x"}, "stop.steps": 3}


def test_a_sweep_like_another(write, tmp_path):
    (tmp_path / "gpu").mkdir()
    write(base="base.yaml", axes=AXES, design="one_change", stop={"tokens": 10}, seeds=[4, 5])
    same = read_sweep(write("gpu/same.yaml", like="../sweep.yaml", base="big.yaml", stop={"steps": 7}))
    assert same.base == [str(tmp_path / "gpu" / "big.yaml")]
    assert (same.stop, same.seeds, same.design) == ({"steps": 7}, [4, 5], "one_change")
    changed = same.axes["keys"]["leaky"].configs[0]
    assert changed == str(tmp_path / "gpu" / ".." / "leaky.yaml")
    other = read_sweep(write("other.yaml", like="sweep.yaml", runs={"only": None}))
    assert [variant.name for variant in variants(other)] == ["only"]


def test_a_sweep_like_a_tuned_one_can_be_without_tuning(write):
    write(base="base.yaml", axes=AXES, tune={"model.learning_rate": [1e-3, 1e-2]}, tune_metric="validation/accuracy")
    assert read_sweep(write("tuned.yaml", like="sweep.yaml")).tune_metric == "validation/accuracy"
    assert not read_sweep(write("untuned.yaml", like="sweep.yaml", tune={})).tune


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"axis": AXES}, "did you mean axes"),
        ({"axes": AXES, "runs": {"a": None}}, "either axes or runs"),
        ({}, "either axes or runs"),
        ({"axes": {"window": [1, 2]}}, "dotted key and a list"),
        ({"axes": {"keys": {"leaky": 3}}}, "keys=leaky must be a config file"),
        ({"runs": {"a": {"match": "size"}}}, "match of a must be parameters or flops"),
        ({"runs": ["a"]}, "runs must map names"),
        ({"axes": AXES, "design": "random"}, "design takes one of grid, one_change"),
        ({"axes": AXES, "seeds": []}, "seeds is empty"),
        ({"axes": AXES, "seeds": [1, 1]}, "a seed is there twice"),
        ({"axes": AXES, "stop": {"hours": 3}}, "one of steps, tokens and flops"),
        ({"axes": AXES, "stop": {"steps": 1, "tokens": 1}}, "one of steps, tokens and flops"),
        ({"axes": AXES, "stop": {"tokens": "many"}}, "must be a number of at least 1"),
        ({"axes": AXES, "warmup": 10}, "warmup takes a number of at least 0 and below 1, got 10"),
        ({"axes": AXES, "validations": 0}, "validations takes a whole number of at least 1"),
        ({"axes": AXES, "like": "sweep.yaml"}, "is like itself"),
        ({"axes": AXES, "like": ["sweep.yaml"]}, "like must be the name of a sweep file"),
        ({"axes": AXES, "seeds": 2.5}, "seeds takes a whole number of at least 1"),
        ({"axes": AXES, "seeds": [-1]}, "seeds takes a whole number of at least 0"),
        ({"axes": AXES, "warmup": "ten"}, "warmup takes a number"),
        ({"axes": AXES, "stop": 4}, "one of steps, tokens and flops"),
        ({"axes": AXES, "stop": {"steps": float("inf")}}, "must be a number of at least 1"),
        ({"axes": AXES, "settings": None}, "settings must be a mapping"),
        ({"axes": AXES, "settings": {"seed_everything": 1}}, "settings: seed_everything is decided by `seeds`"),
        ({"runs": {"a": {"trainer": {"max_steps": 3}}}, "stop": {"steps": 4}}, r"a: trainer.max_steps is decided by"),
        ({"runs": {"a": {"model.warmup_steps": 3}}, "warmup": 0.1}, r"a: model.warmup_steps is decided by `warmup`"),
        ({"runs": {"a": [5]}}, "a config must be the name of a file"),
        ({"axes": {"data.seed": [1, 1]}}, r"axis data.seed has a value twice"),
    ],
)
def test_mistakes_are_explained(write, values, message):
    with pytest.raises(UserError, match=message):
        read_sweep(write(base="base.yaml", **values))


def test_numbers_of_an_axis_are_numbers_however_they_are_written(tmp_path):
    path = tmp_path / "sweep.yaml"
    text = "base: a.yaml\nstop: {tokens: 1e6}\naxes:\n  model.learning_rate: [1e-3, 3E-3, 1_000, 0.5]\n"
    path.write_text(text + "  name: {1e-4: , 2025-06-01: , on: , 12:30: }\n")
    sweep = read_sweep(path)
    assert list(sweep.axes["model.learning_rate"]) == [0.001, 0.003, 1000, 0.5]
    assert list(sweep.axes["name"]) == [0.0001, "2025-06-01", "on", "12:30"]
    assert sweep.stop == {"tokens": 1e6}
    assert variants(sweep)[0].name == "base, learning_rate=0.001"


@pytest.mark.parametrize("base", ["", "[]", "3", "[a.yaml, ]"])
def test_a_base_names_files(base, tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(f"base: {base}\nruns: {{a: }}\n")
    if base == "[a.yaml, ]":
        assert read_sweep(path).base == [str(tmp_path / "a.yaml")]
        return
    with pytest.raises(UserError, match=r"sweep\.yaml.*a config must be the name of a file"):
        read_sweep(path)


def test_a_baseline_must_be_a_run(write):
    sweep = read_sweep(write(base="base.yaml", runs={"a": None}, baseline="b"))
    with pytest.raises(UserError, match="baseline 'b' is not one of its runs"):
        variants(sweep)


def test_a_sweep_needs_a_base(write, tmp_path):
    with pytest.raises(UserError, match=r"needs `base: CONFIG.yaml`"):
        read_sweep(write(axes=AXES))
    with pytest.raises(UserError, match=r"missing.yaml does not exist"):
        read_sweep(tmp_path / "missing.yaml")
