"""Values as checkpoints hold them: tensors and plain values, which are read again without running code."""

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
"""Dictionaries that torch reads again as what they were."""


class UnloadableState(UserError):
    """State that no checkpoint could be loaded with, which trying again does not mend."""


def to_plain_values(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint of which everything can be loaded by `weights_only`; docs/callbacks.md has what is converted.

    Raises:
        Unloadable: something in it can be neither kept nor converted; it is named.
    """
    try:
        result = _Mapped(_plain)(checkpoint)
    except RecursionError as error:
        raise _unloadable(checkpoint) from error
    check_loadable(result)
    return result


def check_loadable(checkpoint: dict[str, Any]) -> None:
    """Check that a checkpoint could be loaded: write and load all of it but the contents of its tensors, in memory.

    Raises:
        Unloadable: it could not; what is in the way is named.
    """
    error = _loading_error(checkpoint)
    if error is not None:
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
    """Return the owner of a place in a checkpoint, in a user's words."""
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
        torch.save(_Mapped(_without_contents)(value), file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever a class raises when it is pickled
        return error
    return None


def _culprit(value: Any, path: list[Any]) -> tuple[list[Any], Any]:
    """Return the innermost value that cannot be loaded, and the way there, which may have no end."""
    if isinstance(value, dict):
        children = [pair for key, child in value.items() for pair in ((key, key), (key, child))]
    else:
        children = list(enumerate(value)) if isinstance(value, (list, tuple, set)) else []
    bad = next(
        ((key, child) for key, child in children if child is not value and _loading_error(child) is not None), None
    )
    return (path, value) if bad is None or len(path) > 9 else _culprit(bad[1], [*path, bad[0]])


class _Mapped:
    """A function applied to every value within containers; a container in which nothing changes stays the same object.

    What several containers share is shared in the result. One that holds itself is a RecursionError, as is one that is
    too deep.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self._open: set[int] = set()
        self._done: dict[int, tuple[Any, Any]] = {}  # with the original, whose id is its own while it lives

    def __call__(self, value: Any) -> Any:
        if type(value) in PLAIN:
            return value
        if id(value) in self._open:
            raise RecursionError("a container holds itself")
        if id(value) not in self._done:
            self._open.add(id(value))
            self._done[id(value)] = (value, self._map(value))
            self._open.remove(id(value))
        return self._done[id(value)][1]

    def _map(self, value: Any) -> Any:
        result = self.function(value)
        if isinstance(result, dict):
            pairs = [(self(key), self(child)) for key, child in result.items()]
            same = all(a is key and b is child for (a, b), (key, child) in zip(pairs, result.items(), strict=True))
            if same and type(result) in MAPPINGS:
                return result
            made = type(result)() if type(result) in MAPPINGS else {}
            for key, child in pairs:
                made[key] = child
            if isinstance(made, OrderedDict):  # as _metadata of a state_dict
                made.__dict__.update(result.__dict__)
            return made if len(made) == len(result) else result  # of two keys that would become one, nothing is lost
        if isinstance(result, (list, tuple, set)) and not isinstance(result, torch.Size):
            children = [self(child) for child in result]
            kind = next(kind for kind in (list, tuple, set) if isinstance(result, kind))
            same = type(result) is kind and all(a is b for a, b in zip(children, result, strict=True))
            return result if same else kind(children)
        return result


def _without_contents(value: Any) -> Any:
    """Return an empty tensor of the same type for a dense one; any other value, whose class may matter, as it is."""
    return torch.empty(0, dtype=value.dtype) if isinstance(value, Tensor) and is_dense(value) else value


def is_dense(value: Tensor) -> bool:
    """Return whether a tensor is of no other class and has its numbers in a storage: not sparse, nested or the like."""
    plain = type(value) in (Tensor, torch.nn.Parameter) and value.layout == torch.strided
    return plain and not (value.is_quantized or value.is_nested or value.is_meta)


def _plain(value: Any) -> Any:
    """Return the plain value that a value is converted to; any that needs none or has none as it is."""
    if isinstance(value, Enum):
        return _Mapped(_plain)(value.value)
    if isinstance(value, np.generic):
        return _number(value)
    if type(value) in (np.ndarray, np.memmap):
        return _array(value)
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, types.MappingProxyType):
        return dict(value)
    if isinstance(value, (deque, range)):
        return list(value)
    if isinstance(value, frozenset):
        return tuple(value)
    return _of_derived_class(value)


def _of_derived_class(value: Any) -> Any:
    """Return the built-in value of an instance of a derived class, whatever methods that class overrides."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    return bytes.__bytes__(value) if isinstance(value, bytes) else value


def _number(value: np.generic) -> Any:
    if value.dtype.kind in "mM":
        return str(value)
    if value.dtype.kind in "fc":
        return (float if value.dtype.kind == "f" else complex)(value)  # also of more than 64 bits
    return value if value.dtype.kind == "V" else value.item()


def _array(value: np.ndarray) -> Any:
    if value.dtype.kind == "V":
        return value
    if value.dtype.kind in "mM":
        return value.astype(str).tolist()
    native = np.array(value, dtype=value.dtype.newbyteorder("="), order="C")
    try:
        return torch.from_numpy(native)
    except TypeError:  # texts, objects, numbers of more than 64 bits
        return native.tolist()
