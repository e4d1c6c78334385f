"""Check that torch.compile works with the strategy and the compilers of a run."""

from __future__ import annotations

import shutil
from typing import Any

import torch

from mm_lightning.errors import UserError
from mm_lightning.training.lightning_internals import cpp_compilers


def check_strategy(strategy: Any) -> None:
    """Check before the first step that torch.compile works with a strategy.

    Raises:
        UserError: there is no C++ compiler, or the strategy partitions parameters.
    """
    from lightning.pytorch.strategies import DeepSpeedStrategy

    if isinstance(strategy, DeepSpeedStrategy) and strategy.zero_stage_3:
        raise UserError("model.compile is not for ZeRO-3, which fetches parameters layer by layer: use stage 1 or 2")
    check_compiler(strategy.root_device)


def check_compiler(device: torch.device) -> None:
    """Check that torch.compile finds a compiler, without which it fails when it first compiles.

    Raises:
        UserError: there is no C++ compiler.
    """
    if device.type == "cpu" and not any(name and shutil.which(name) for name in cpp_compilers()):
        raise UserError("compiling needs a C++ compiler on a CPU: install g++, or leave compile out")
