"""What becomes of values that checkpoints cannot hold as they are."""

import datetime
import enum
import io
import threading
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch

from mm_lightning.checkpoint.plain_values import UnloadableState, to_plain_values
from mm_lightning.checkpoint.writing import load, snapshot, write


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Name(str):
    pass


Pair = namedtuple("Pair", "a b")
CONVERTED = [
    (np.float64(1.5), 1.5),
    (np.float16(0.5), 0.5),
    (np.longdouble(2), 2.0),
    (np.complex64(1j), 1j),
    (np.int64(2**40), 2**40),
    (np.bool_(True), True),
    (np.str_("x"), "x"),
    (np.datetime64("2026-01-02"), "2026-01-02"),
    (np.array(["a", "b"]), ["a", "b"]),
    (np.array([{"a": np.int8(1)}], dtype=object), [{"a": 1}]),
    (np.array([1, 2], dtype=np.longdouble), [1.0, 2.0]),
    (Path("a/b"), "a/b"),
    (datetime.datetime(2026, 1, 2, 3), "2026-01-02T03:00:00"),
    (datetime.date(2026, 1, 2), "2026-01-02"),
    (datetime.timedelta(minutes=1), 60.0),
    (Color.RED, "red"),
    (Level.HIGH, 3),
    (Name("x"), "x"),
    (defaultdict(list, {np.int64(3): [Path("x")]}), {3: ["x"]}),
    (MappingProxyType({"a": 1}), {"a": 1}),
    (deque([np.int8(1)], maxlen=3), [1]),
    (range(3), [0, 1, 2]),
    (frozenset([1]), (1,)),
    (Pair(1, np.float32(0.5)), (1, 0.5)),
    ({np.int64(1)}, {1}),
]


@pytest.mark.parametrize(("value", "plain"), CONVERTED)
def test_what_is_converted(value, plain):
    result = to_plain_values({"x": [value]})["x"][0]
    assert result == plain
    assert type(result) is type(plain)


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", ">i4", "uint8", "uint16", "uint64", "bool", "complex64"]
)
def test_arrays_become_tensors(dtype):
    array = np.array([[1, 0], [2, 5]]).astype(dtype)[:, ::-1]
    tensor = to_plain_values({"x": array})["x"]
    assert np.array_equal(tensor.numpy(), array)
    assert tensor.numpy().dtype == array.dtype.newbyteorder("=")
    assert to_plain_values({"x": np.array(5.0)})["x"].shape == ()


def test_what_is_plain_stays_and_what_is_shared_stays_shared():
    state = OrderedDict(weight=torch.ones(3))
    state._metadata = {"": {"version": 2}}
    kept = {
        "state_dict": state,
        "x": [None, True, 1, 2.0, "x", b"x", 1j, (1, {2}), torch.float32, torch.Size([1]), Counter("ab")],
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    kept["itself"] = kept["x"]
    shared = [np.int64(1)]
    converted = to_plain_values({**kept, "a": shared, "b": {"c": shared}})
    assert converted == {**kept, "a": shared, "b": {"c": shared}}
    assert [type(value) for value in converted["x"]] == [type(value) for value in kept["x"]]
    assert converted["state_dict"]["weight"] is state["weight"]
    assert converted["state_dict"]._metadata == state._metadata
    assert converted["parameter"] is kept["parameter"]
    assert converted["itself"] is converted["x"]
    assert converted["a"] is converted["b"]["c"]


def holds_itself():
    value = [1]
    value.append({"a": value})
    return value


def nested(depth):
    return [nested(depth - 1)] if depth else 1


def deep():
    value = []
    for _ in range(5000):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        Counter("aab"),
        OrderedDict(a=[1, {"b": (2, {3})}]),
        nested(50),
        torch.eye(3).to_sparse(),
        torch.eye(3).to_sparse_csr(),
        torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        torch.empty(3, device="meta"),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    ],
)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_is_written_is_what_is_read(tmp_path, value, asynchronous):
    values = to_plain_values({"x": [value]})
    write(snapshot(values) if asynchronous else values, tmp_path / "step=1.ckpt")
    read = load(tmp_path / "step=1.ckpt")["x"][0]
    assert type(read) is type(value)
    assert repr(read) == repr(value) if isinstance(value, torch.Tensor) else read == value


def test_a_copy_keeps_the_versions_of_a_state_dict():
    state = OrderedDict(weight=torch.ones(3))
    state._metadata = {"": {"version": 2}}
    assert snapshot(state)._metadata == state._metadata


@pytest.mark.parametrize(
    ("checkpoint", "words"),
    [
        ({"callbacks": {"Mine": {"a": holds_itself()}}}, "the state_dict of Mine holds a value of type (list|dict)"),
        ({"callbacks": {"Other": 1, "Mine": {"a": deep()}}}, "the state_dict of Mine holds a value of type list"),
        ({"callbacks": {"Mine{'monitor': 'x'}": {"a": [1, print]}}}, "the state_dict of Mine holds .*builtin_function"),
        ({"callbacks": {"Mine": {("a", threading.Lock()): 1}}}, "the state_dict of Mine holds .* _thread.lock"),
        ({"callbacks": {"Mine": {Path("a"): 1, "a": 2}}}, "PosixPath"),  # which both would be "a"
        ({"callbacks": {"Mine": np.zeros(2, [("a", int)])}}, "numpy.ndarray"),
        ({"lr_schedulers": [{"f": lambda: 1}]}, "the state of the learning-rate schedule holds .* function"),
        ({"optimizer_states": [{"state": {0: torch.Generator()}}]}, "the state of the optimizer holds .*Generator"),
        ({"hyper_parameters": {"stream": io.StringIO()}}, "'hyper_parameters'.*StringIO"),
        ({"TextDataModule": {"rng": np.random.default_rng()}}, "'TextDataModule'.*Generator"),
    ],
)
def test_what_is_refused_is_named(checkpoint, words):
    with pytest.raises(UnloadableState, match=words):
        to_plain_values({"state_dict": {"x": torch.ones(2)}, **checkpoint})
