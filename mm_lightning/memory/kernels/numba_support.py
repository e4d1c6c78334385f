"""What kernels share that numba compiles: how they are compiled, and how they see tensors.

Importing this module imports numba; a kernel's first call compiles it, which later processes find done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
    raise UserError("kernels numba need numba: pip install numba, or choose torch") from error


def jit(kernel: Callable[..., None]) -> Callable[..., None]:
    """By numba, when it is first called; kept on disk for later processes where there is a place for it."""
    # Sums may be reordered, which vector instructions need; infinities and signed zeros keep their meaning.
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract"}}
    try:
        return numba.njit(cache=True, **options)(kernel)
    except RuntimeError:  # no folder that can be written
        return numba.njit(**options)(kernel)


@intrinsic
def as_float(typing_context: Any, bits: Any) -> Any:
    """float32 with these 32 bits."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), code


@intrinsic
def _as_bits(typing_context: Any, number: Any) -> Any:
    """The 32 bits of a float32."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.uint32))

    return types.uint32(types.float32), code


def get(x, i):  # type: ignore[no-untyped-def]
    """x[i], where 16 bits are a bfloat16."""


def put(x, i, number):  # type: ignore[no-untyped-def]
    """x[i] = number, which bfloat16 rounds to the nearest."""


@overload(get)
def _typed_get(x, i):  # type: ignore[no-untyped-def]
    if x.dtype == types.uint16:
        return lambda x, i: as_float(np.uint32(x[i]) << np.uint32(16))
    return lambda x, i: x[i]


@overload(put)
def _typed_put(x, i, number):  # type: ignore[no-untyped-def]
    if x.dtype != types.uint16:

        def put(x, i, number):  # type: ignore[no-untyped-def]
            x[i] = number

        return put

    def put_short(x, i, number):  # type: ignore[no-untyped-def]
        bits = _as_bits(np.float32(number))
        even = (bits >> np.uint32(16)) & np.uint32(1)
        rounded = (bits + np.uint32(0x7FFF) + even) >> np.uint32(16)
        x[i] = np.uint16(rounded if number == number else np.uint32(0x7FC0))

    return put_short


@intrinsic
def _pointer(typing_context: Any, address: Any, like: Any) -> Any:
    """To numbers of `like`'s type."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(types.CPointer(like.dtype)))

    return types.CPointer(like.dtype)(address, like), code


def array_at(address, like, count):  # type: ignore[no-untyped-def]
    """So many numbers of `like`'s type in memory: a tensor's `data_ptr()` is passed faster than an array of it."""


@overload(array_at, inline="always")
def _typed_array_at(address, like, count):  # type: ignore[no-untyped-def]
    return lambda address, like, count: numba.carray(_pointer(address, like), count)


def row_at(address, like, i, size):  # type: ignore[no-untyped-def]
    """The i-th of rows of so many numbers that lie one after the other, from an address on."""


@overload(row_at, inline="always")
def _typed_row_at(address, like, i, size):  # type: ignore[no-untyped-def]
    return lambda address, like, i, size: array_at(address + i * size * like.itemsize, like, size)


@intrinsic
def prefetch(typing_context: Any, address: Any) -> Any:
    """Asks for 64 bytes of memory that will be read soon."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        integer, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, integer, integer, integer])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch")
        builder.call(
            function, [builder.inttoptr(args[0], pointer), *(integer(x) for x in (0, 3, 1))]
        )  # read, keep, data
        return context.get_dummy_value()

    return types.none(types.int64), code


@cache
def kinds(dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Empty arrays of a tensor type as kernels see it, and of the type that is computed in."""
    exact = torch.promote_types(dtype, torch.float32)
    return tuple(flat(torch.empty(0, dtype=x, device="cpu")) for x in (dtype, exact))  # type: ignore[return-value]


def flat(x: Tensor) -> np.ndarray:
    """All the memory from a tensor's first number to its last, as one row; bfloat16 as 16 bits."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
    x = x.detach().as_strided((extent,), (1,))
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def in_threads(threads: int, kernel: Callable[..., None], jobs: Iterable[Any], *arguments: Any, held: Any) -> None:
    """Runs a kernel on all jobs.

    Args:
        threads: at most so many at a time.
        kernel: of a job and the other arguments.
        jobs: the first arguments.
        arguments: the others.
        held: tensors whose addresses are among them. Whoever waits here may be interrupted, and lets go of them while
            the kernel still writes there.
    """
    for future in [pool(threads).submit(_run, held, kernel, job, *arguments) for job in jobs]:
        future.result()


def _run(held: Any, kernel: Callable[..., None], *arguments: Any) -> None:
    kernel(*arguments)


@cache
def pool(threads: int) -> ThreadPoolExecutor:
    """Of so many threads, for code that lets Python go on."""
    return ThreadPoolExecutor(threads, "numba")
