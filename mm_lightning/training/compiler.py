"""Whether torch.compile can be used where a run is."""

from __future__ import annotations

import shutil
from typing import Any

from lightning.pytorch.strategies import DeepSpeedStrategy

from mm_lightning.errors import UserError


def check_compiler(strategy: Any) -> None:
    """Says before the first step what would fail in it.

    Raises:
        UserError: there is no C++ compiler, or the strategy partitions parameters.
    """
    if isinstance(strategy, DeepSpeedStrategy) and strategy.zero_stage_3:
        raise UserError("model.compile is not for ZeRO-3, which fetches parameters layer by layer: use stage 1 or 2")
    if strategy.root_device.type != "cpu":
        return
    from torch._inductor import config

    if not any(name and shutil.which(name) for name in config.cpp.cxx):
        raise UserError("model.compile needs a C++ compiler on a CPU: install g++, or leave it out")
