"""Conversion of state to tensors and plain values, which `torch.load(weights_only=True)` reads without running code."""

from __future__ import annotations

import io
import types
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mm_lightning.errors import UserError

PLAIN = (type(None), bool, int, float, complex, str, bytes)
MAPPINGS = (dict, OrderedDict, Counter)
"""Types of dictionaries that torch restores."""
SEQUENCES = (list, tuple, set)


class UnloadableState(UserError):
    """A checkpoint with this state could not be loaded; retrying does not help."""


def to_plain_values(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint that `weights_only` loads; docs/callbacks.md lists the conversions.

    Raises:
        UnloadableState: a value can be neither kept nor converted; the message names it.
    """
    return _map_loadable(checkpoint, lambda value: _loadable(_plain(value)))


def check_loadable(checkpoint: dict[str, Any]) -> None:
    """Check that a checkpoint can be loaded as it is.

    Raises:
        UnloadableState: it cannot; the message names the value.
    """
    _map_loadable(checkpoint, _loadable)


def _map_loadable(checkpoint: dict[str, Any], function: Callable[[Any], Any]) -> dict[str, Any]:
    """Apply a function that fails on values that cannot be loaded; the error names the value and its place."""
    mapped = Mapped(function)
    try:
        return mapped(checkpoint)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever a class raises when it is pickled
        path = mapped.path[:10] or [("", checkpoint)]  # cut where containers hold themselves
        kind = type(path[-1][1])
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        place = "".join(f"[{key!r}]" for key, _ in path)
        raise UnloadableState(
            f"{_owner([key for key, _ in path])} holds a value of type {name} (at {place} of the checkpoint), and no "
            f"checkpoint with it could be loaded: keep tensors, numbers, texts, lists and dictionaries there. Earlier "
            f"checkpoints are untouched"
        ) from error


def _owner(path: list[Any]) -> str:
    """Return the owner of an entry of a checkpoint, for error messages."""
    first, *rest = path
    if first == "callbacks" and rest:
        return f"trainer.callbacks: the state_dict of {str(rest[0]).split('{')[0]}"
    known = {
        "lr_schedulers": "the state of the learning-rate schedule",
        "optimizer_states": "the state of the optimizer",
        "loops": "the state of the loops",
    }
    return known.get(first, f"the entry {first!r}, of an on_save_checkpoint or state_dict,")


def _loadable(value: Any) -> Any:
    """Return a value that `weights_only` loads; raise any error for another. The content of containers is not seen."""
    known = type(value) in (*PLAIN, *MAPPINGS, *SEQUENCES) or (isinstance(value, Tensor) and is_dense(value))
    if not known:
        file = io.BytesIO()
        torch.save(value, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    return value


class Mapped:
    """Apply a function to every value within nested containers.

    Shared objects stay shared. Raises RecursionError for too deeply nested containers, and those that hold themselves.

    Args:
        function: returns the value in the place of another.

    Attributes:
        path: after an error, the keys and values that lead to the value that raised it.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self.path: list[tuple[Any, Any]] = []
        # original and result by the id of the original, which is held so that its id is not reused
        self._done: dict[int, tuple[Any, Any]] = {}

    def __call__(self, value: Any) -> Any:
        if type(value) in PLAIN:
            return value
        if id(value) not in self._done:
            self._done[id(value)] = (value, self._map(value))
        return self._done[id(value)][1]

    def _child(self, key: Any, value: Any) -> Any:
        self.path.append((key, value))
        result = self(value)
        self.path.pop()
        return result

    def _map(self, value: Any) -> Any:
        value = self.function(value)
        if type(value) in SEQUENCES:
            return type(value)(self._child(n, child) for n, child in enumerate(value))
        if type(value) not in MAPPINGS:
            return value
        result = type(value)()
        for key, child in value.items():
            new_key = self._child(key, key)
            if new_key in result:
                self.path.append((key, next(k for k in value if type(k) not in PLAIN)))
                raise ValueError("two keys become the same")
            result[new_key] = self._child(key, child)
        if isinstance(result, OrderedDict):  # as _metadata of a state_dict
            result.__dict__.update(value.__dict__)
        return result


def is_dense(value: Tensor) -> bool:
    """Return whether a tensor is a plain strided one: not sparse, nested, quantized, meta or of a derived class."""
    plain = type(value) in (Tensor, torch.nn.Parameter) and value.layout == torch.strided
    return plain and not (value.is_quantized or value.is_nested or value.is_meta)


CONVERSIONS: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (Enum, lambda value: _plain(value.value)),
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
    *((kind, kind) for kind in (dict, list, tuple, set)),
)
"""Types whose instances are converted, and how; the first that fits counts."""


def _plain(value: Any) -> Any:
    """Return the plain equivalent of a value; a value that is plain or has no equivalent is returned unchanged."""
    if type(value) in (*PLAIN, *MAPPINGS, *SEQUENCES, torch.Size):
        return value
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
