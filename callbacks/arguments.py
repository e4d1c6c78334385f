"""Checks of callbacks' arguments, made when the callback is built, long before it uses them."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from mm_lightning.errors import UserError


def check_number(
    owner: str, key: str, value: Any, least: float, most: float | None = None, whole: bool = True, above: bool = False
) -> None:
    """Check that an argument is a number in a range.

    Args:
        owner: name of the callback.
        key: name of the argument.
        value: its value.
        least: the smallest value allowed.
        most: the largest; None for any finite number.
        whole: whether it must be a whole number.
        above: whether it must be above `least`.

    Raises:
        UserError: it is not; the error names owner, key, value and limits.
    """
    kinds = int if whole else (int, float)
    fits = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
    if fits and (value > least if above else value >= least) and (most is None or value <= most):
        return
    kind = "whole number" if whole else "number"
    limit = "" if most is None else f" and at most {most:,}"
    raise UserError(
        f"{owner}: {key} must be a {kind} {'above' if above else 'of at least'} {least}{limit}, got {value!r}"
    )


def check_choice(owner: str, key: str, value: Any, choices: Collection[str]) -> None:
    """Check that an argument is one of several words.

    Raises:
        UserError: it is not; the error names owner, key, value and choices.
    """
    if value not in choices:
        raise UserError(f"{owner}: {key} must be one of {', '.join(choices)}, got {value!r}")
