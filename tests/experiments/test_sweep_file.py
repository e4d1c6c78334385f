"""What a sweep file declares."""

import pytest
import yaml

from mm_lightning.errors import UserError
from mm_lightning.experiments.sweep_file import baseline_of, read_sweep, variants

AXES = {
    "keys": {"gated": None, "leaky": "leaky.yaml"},
    "model.network.short_term_window": [64, 16],
    "memory": {"three": None, "two": {"config": ["one.yaml"], "match": "parameters", "data.seed": 3}},
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
        "v2",
        "memory=two",
        "short_term_window=16",
        "short_term_window=16, memory=two",
        "keys=leaky",
        "keys=leaky, memory=two",
        "keys=leaky, short_term_window=16",
        "keys=leaky, short_term_window=16, memory=two",
    ]
    assert baseline_of(sweep, found) is found[0]
    last = found[-1]
    assert last.values == {"keys": "leaky", "short_term_window": 16, "memory": "two"}
    assert last.change.configs == [str(tmp_path / "leaky.yaml"), str(tmp_path / "one.yaml")]
    assert last.change.settings == {"model.network.short_term_window": 16, "data.seed": 3}
    assert (last.change.match, found[0].change.match) == ("parameters", None)
    assert sweep.base == [str(tmp_path / "base.yaml")]


def test_one_change_at_a_time(write):
    found = variants(read_sweep(write(base="base.yaml", axes=AXES, design="one_change")))
    assert [variant.name for variant in found] == ["base", "memory=two", "short_term_window=16", "keys=leaky"]


def test_a_list_of_runs(write):
    runs = {"a": None, "b": {"data.seed": 1}, "c": ["x.yaml", "y.yaml"]}
    sweep = read_sweep(write(base="base.yaml", runs=runs, baseline="b", seeds=2))
    found = variants(sweep)
    assert [variant.name for variant in found] == ["a", "b", "c"]
    assert baseline_of(sweep, found).name == "b"
    assert sweep.seeds == [1, 2]


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
        ({"axes": AXES, "design": "random"}, "grid or one_change"),
        ({"axes": AXES, "seeds": []}, "seeds must be whole numbers"),
        ({"axes": AXES, "seeds": [1, 1]}, "a seed is there twice"),
        ({"axes": AXES, "stop": {"hours": 3}}, "one of steps, tokens and flops"),
        ({"axes": AXES, "stop": {"steps": 1, "tokens": 1}}, "one of steps, tokens and flops"),
        ({"axes": AXES, "stop": {"tokens": "1e6"}}, "must be a number of at least 1"),
        ({"axes": AXES, "warmup": 10}, "warmup is a share"),
        ({"axes": AXES, "validations": 0}, "validations must be at least 1"),
        ({"axes": AXES, "like": "sweep.yaml"}, "is like itself"),
    ],
)
def test_mistakes_are_explained(write, values, message):
    with pytest.raises(UserError, match=message):
        read_sweep(write(base="base.yaml", **values))


def test_a_baseline_must_be_a_run(write):
    sweep = read_sweep(write(base="base.yaml", runs={"a": None}, baseline="b"))
    with pytest.raises(UserError, match="baseline 'b' is not one of its runs"):
        variants(sweep)


def test_a_sweep_needs_a_base(write, tmp_path):
    with pytest.raises(UserError, match=r"needs `base: CONFIG.yaml`"):
        read_sweep(write(axes=AXES))
    with pytest.raises(UserError, match=r"missing.yaml does not exist"):
        read_sweep(tmp_path / "missing.yaml")
