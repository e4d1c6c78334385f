"""Compilation by numba, access to the memory of tensors from compiled code, and threads.

Importing this module imports numba. The first call of a kernel compiles it; later processes load it from disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mm_lightning.errors import UserError

try:
    import numba
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic, overload
except ImportError as error:
    raise UserError("kernels numba need the package numba: pip install numba, or choose torch") from error


def jit(kernel: Callable[..., None]) -> Callable[..., None]:
    """Compile a function by numba at its first call; cached on disk for later processes where a folder is writable."""
    # Sums may be reordered, which vector instructions need; infinities and signed zeros keep their meaning.
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract"}}
    try:
        return numba.njit(cache=True, **options)(kernel)
    except RuntimeError:  # no folder that can be written
        return numba.njit(**options)(kernel)


def get(x, i):  # type: ignore[no-untyped-def]
    """Return x[i], where 16 bits are a bfloat16."""


def put(x, i, number):  # type: ignore[no-untyped-def]
    """Set x[i] = number, rounded to the nearest bfloat16 where x has 16 bits."""


@overload(get)
def _typed_get(x, i):  # type: ignore[no-untyped-def]
    if x.dtype == types.uint16:
        return lambda x, i: np.uint32(np.uint32(x[i]) << np.uint32(16)).view(np.float32)
    return lambda x, i: x[i]


@overload(put)
def _typed_put(x, i, number):  # type: ignore[no-untyped-def]
    if x.dtype != types.uint16:

        def put(x, i, number):  # type: ignore[no-untyped-def]
            x[i] = number

        return put

    def put_short(x, i, number):  # type: ignore[no-untyped-def]
        bits = np.float32(number).view(np.uint32)
        even = (bits >> np.uint32(16)) & np.uint32(1)
        rounded = (bits + np.uint32(0x7FFF) + even) >> np.uint32(16)
        x[i] = np.uint16(rounded if number == number else np.uint32(0x7FC0))

    return put_short


@intrinsic
def _pointer(typing_context: Any, address: Any, like: Any) -> Any:
    """Return a pointer to elements of the type of `like`."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(types.CPointer(like.dtype)))

    return types.CPointer(like.dtype)(address, like), code


def array_at(address, like, count):  # type: ignore[no-untyped-def]
    """Return an array of `count` elements of the type of `like` at an address, which is passed faster than an array."""


@overload(array_at)
def _typed_array_at(address, like, count):  # type: ignore[no-untyped-def]
    return lambda address, like, count: numba.carray(_pointer(address, like), count)


def row_at(address, like, i, size):  # type: ignore[no-untyped-def]
    """Return row i of a contiguous matrix at an address, with `size` elements a row of the type of `like`."""


@overload(row_at)
def _typed_row_at(address, like, i, size):  # type: ignore[no-untyped-def]
    return lambda address, like, i, size: array_at(address + i * size * like.itemsize, like, size)


@intrinsic
def prefetch(typing_context: Any, address: Any) -> Any:
    """Prefetch 64 bytes of memory."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        integer, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, integer, integer, integer])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch")
        options = [integer(x) for x in (0, 3, 1)]  # read, keep, data
        builder.call(function, [builder.inttoptr(args[0], pointer), *options])
        return context.get_dummy_value()

    return types.none(types.int64), code


@cache
def kinds(dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Return empty arrays of a tensor type as kernels see it, and of the type of the computation."""
    exact = torch.promote_types(dtype, torch.float32)
    return tuple(flat(torch.empty(0, dtype=x, device="cpu")) for x in (dtype, exact))  # type: ignore[return-value]


def flat(x: Tensor) -> np.ndarray:
    """Return all memory from a tensor's first element to its last as an array (n,); bfloat16 as 16 bits."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
    x = x.detach().as_strided((extent,), (1,))
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def in_threads(kernel: Callable[..., None], jobs: Sequence[Any], *arguments: Any, held: Any = None) -> None:
    """Run a kernel on all jobs, on as many threads as torch uses.

    Args:
        kernel: a function of a job and the other arguments.
        jobs: the first arguments.
        arguments: the others.
        held: the tensors whose addresses are among them. A caller that is interrupted here would free them while the
            kernel still writes there.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(jobs) == 1:
        for job in jobs:
            kernel(job, *arguments)
    else:
        for future in [_pool(threads).submit(_run, held, kernel, job, *arguments) for job in jobs]:
            future.result()


def _run(held: Any, kernel: Callable[..., None], *arguments: Any) -> None:
    kernel(*arguments)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Return the pool of `threads` threads, for code that releases the interpreter's lock."""
    return ThreadPoolExecutor(threads, "numba")
