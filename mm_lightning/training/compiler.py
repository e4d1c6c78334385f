"""Whether torch.compile can be used where a run is."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from mm_lightning.errors import UserError

if TYPE_CHECKING:
    import torch


def check_strategy(strategy: Any) -> None:
    """Says before the first step what would fail in it.

    Raises:
        UserError: there is no C++ compiler, or the strategy partitions parameters.
    """
    from lightning.pytorch.strategies import DeepSpeedStrategy

    if isinstance(strategy, DeepSpeedStrategy) and strategy.zero_stage_3:
        raise UserError("model.compile is not for ZeRO-3, which fetches parameters layer by layer: use stage 1 or 2")
    check_compiler(strategy.root_device)


def check_compiler(device: torch.device) -> None:
    """Says what torch.compile would only say when it compiles.

    Raises:
        UserError: there is no C++ compiler.
    """
    if device.type != "cpu":
        return
    from torch._inductor import config

    if not any(name and shutil.which(name) for name in config.cpp.cxx):
        raise UserError("compiling needs a C++ compiler on a CPU: install g++, or leave compile out")
