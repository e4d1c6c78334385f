"""Conversion of state to tensors and plain values, which `torch.load(weights_only=True)` reads without running code."""

from __future__ import annotations

import io
import types
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from enum import Enum
from functools import cache
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mm_lightning.errors import UserError

PLAIN = (type(None), bool, int, float, complex, str, bytes)
MAPPINGS = (dict, OrderedDict, Counter)
"""Types of dictionaries that torch restores."""
CONTAINERS = (dict, list, tuple, set)


class UnloadableState(UserError):
    """A checkpoint with this state could not be loaded; retrying does not help."""


def to_plain_values(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint that `weights_only` loads; docs/callbacks.md lists the conversions.

    Raises:
        UnloadableState: a value can be neither kept nor converted; the message names it.
    """
    try:
        result = Mapped(_plain)(checkpoint)
    except RecursionError as error:
        raise _unloadable(checkpoint) from error
    check_loadable(result)
    return result


def check_loadable(checkpoint: dict[str, Any]) -> None:
    """Check that a checkpoint can be loaded, by writing and loading it in memory with empty tensors.

    Raises:
        UnloadableState: it cannot; the message names the value.
    """
    if error := _loading_error(checkpoint):
        raise _unloadable(checkpoint) from error


def _unloadable(checkpoint: dict[str, Any]) -> UnloadableState:
    """Return the error that names the value that cannot be loaded."""
    path, value = _culprit(checkpoint, [])
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    place = "".join(f"[{key!r}]" for key in path)
    return UnloadableState(
        f"{_owner(path)} holds a value of type {name} (at {place} of the checkpoint), and no checkpoint with it could "
        f"be loaded: keep tensors, numbers, texts, lists and dictionaries there. Earlier checkpoints are untouched"
    )


def _owner(path: list[Any]) -> str:
    """Return the owner of an entry of a checkpoint, for error messages."""
    first, *rest = path or [""]
    if first == "callbacks" and rest:
        return f"trainer.callbacks: the state_dict of {str(rest[0]).split('{')[0]}"
    known = {
        "lr_schedulers": "the state of the learning-rate schedule",
        "optimizer_states": "the state of the optimizer",
        "loops": "the state of the loops",
    }
    return known.get(first, f"the entry {first!r}, of an on_save_checkpoint or state_dict,")


def _loading_error(value: Any) -> Exception | None:
    file = io.BytesIO()
    try:
        torch.save(Mapped(_without_contents)(value), file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever a class raises when it is pickled
        return error
    return None


def _culprit(value: Any, path: list[Any]) -> tuple[list[Any], Any]:
    """Return the keys that lead to the innermost value that cannot be loaded, and that value; cycles are cut."""
    if isinstance(value, dict):
        children = [pair for key, child in value.items() for pair in ((key, key), (key, child))]
    else:
        children = list(enumerate(value)) if isinstance(value, (list, tuple, set)) else []
    failing = (pair for pair in children if pair[1] is not value and _loading_error(pair[1]) is not None)
    bad = next(failing, None)
    return (path, value) if bad is None or len(path) > 9 else _culprit(bad[1], [*path, bad[0]])


class Mapped:
    """Apply a function to every value within nested containers.

    Shared objects stay shared. Raises RecursionError for too deeply nested containers, and those that hold themselves.

    Args:
        function: returns the value in the place of another.
        keep: whether a container without changes stays the same object.
    """

    def __init__(self, function: Callable[[Any], Any], keep: bool = True) -> None:
        self.function, self.keep = function, keep
        # original and result by the id of the original, which is held so that its id is not reused
        self._done: dict[int, tuple[Any, Any]] = {}

    def __call__(self, value: Any) -> Any:
        if type(value) in PLAIN:
            return value
        if id(value) not in self._done:
            self._done[id(value)] = (value, self._map(value))
        return self._done[id(value)][1]

    def _map(self, value: Any) -> Any:
        result = self.function(value)
        if isinstance(result, dict):
            pairs = [(self(key), self(child)) for key, child in result.items()]
            same = all(a is key and b is child for (a, b), (key, child) in zip(pairs, result.items(), strict=True))
            if self.keep and same and type(result) in MAPPINGS:
                return result
            made = type(result)() if type(result) in MAPPINGS else {}
            for key, child in pairs:
                made[key] = child
            if isinstance(made, OrderedDict):  # as _metadata of a state_dict
                made.__dict__.update(result.__dict__)
            return made if len(made) == len(result) else result  # fewer: two keys became equal
        if isinstance(result, CONTAINERS) and not isinstance(result, torch.Size):
            children = [self(child) for child in result]
            kind = next(kind for kind in CONTAINERS if isinstance(result, kind))
            same = type(result) is kind and all(a is b for a, b in zip(children, result, strict=True))
            return result if self.keep and same else kind(children)
        return result


def _without_contents(value: Any) -> Any:
    """Return an empty tensor of the same dtype for a dense tensor, any other value unchanged."""
    return _empty(value.dtype) if isinstance(value, Tensor) and is_dense(value) else value


@cache
def _empty(dtype: torch.dtype) -> Tensor:
    """Return one tensor for all of a dtype: writing and loading thousands takes longer than all else that is saved."""
    return torch.empty(0, dtype=dtype)


def is_dense(value: Tensor) -> bool:
    """Return whether a tensor is a plain strided one: not sparse, nested, quantized, meta or of a derived class."""
    plain = type(value) in (Tensor, torch.nn.Parameter) and value.layout == torch.strided
    return plain and not (value.is_quantized or value.is_nested or value.is_meta)


CONVERSIONS: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (Enum, lambda value: Mapped(_plain)(value.value)),
    (np.generic, lambda value: _number(value)),
    ((datetime, date, time), lambda value: value.isoformat()),
    (timedelta, timedelta.total_seconds),
    (PurePath, str),
    (types.MappingProxyType, dict),
    ((deque, range), list),
    (frozenset, tuple),
    # instances of derived classes, whose methods are ignored
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (bytes, bytes.__bytes__),
)
"""Types whose instances are converted, and how; the first that fits counts."""


def _plain(value: Any) -> Any:
    """Return the plain equivalent of a value; a value that is plain or has no equivalent is returned unchanged."""
    if type(value) in (np.ndarray, np.memmap):
        return _array(value)
    return next((convert(value) for kinds, convert in CONVERSIONS if isinstance(value, kinds)), value)


def _number(value: np.generic) -> Any:
    if value.dtype.kind in "mM":
        return str(value)
    if value.dtype.kind in "fc":
        return (float if value.dtype.kind == "f" else complex)(value)  # long double too
    return value if value.dtype.kind == "V" else value.item()


def _array(value: np.ndarray) -> Any:
    if value.dtype.kind == "V":
        return value
    if value.dtype.kind in "mM":
        return value.astype(str).tolist()
    native = np.array(value, dtype=value.dtype.newbyteorder("="), order="C")
    try:
        return torch.from_numpy(native)
    except TypeError:  # strings, objects, long double
        return native.tolist()
