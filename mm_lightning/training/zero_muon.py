"""Muon under ZeRO, whose processes hold flat pieces of matrices: DeepSpeed's own, with the settings of ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from mm_lightning.training.sharding import eager_deepspeed

with eager_deepspeed():
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

RATE_FACTORS: dict[str, Callable[[int, int], float]] = {
    "original": lambda rows, columns: 1.0,
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(columns),
    "spectral_unclamped": lambda rows, columns: math.sqrt(min(1.0, rows / columns)),
}
"""What torch's Muon multiplies a matrix's learning rate by, divided by DeepSpeed's sqrt(max(1, rows / columns))."""


class ZeroMuon(MuonWithAuxAdam):
    """Muon for the matrices of linear maps in blocks, torch's AdamW for all other parameters, in all stages of ZeRO.

    ZeRO's engine replaces whole gradients of matrices by orthogonalized momentum, of which `step` then adds each
    process's piece. Matrices of a group are split by their shape, which decides their factor of the learning rate.

    Its arguments are those of :class:`mm_lightning.training.optimizers.Muon`.

    Raises:
        ValueError: DeepSpeed's Muon has no such setting.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
    ) -> None:
        if not nesterov or ns_steps != 5 or adjust_lr_fn not in RATE_FACTORS:
            raise ValueError(f"ZeRO has nesterov true, ns_steps 5 and adjust_lr_fn {', '.join(RATE_FACTORS)} alone")
        groups = []
        for group in params:
            muon = group["use_muon"]
            by_shape: dict[Any, list[torch.nn.Parameter]] = {}
            for parameter in group["params"]:
                parameter.use_muon = muon  # which ZeRO's engine goes by
                shape = tuple(getattr(parameter, "ds_shape", parameter.shape))  # stage 3 has partitioned it
                by_shape.setdefault(shape if muon else (), []).append(parameter)
            own = {"momentum": momentum, "ns_method": "standard"} if muon else {"betas": betas, "eps": 1e-8}
            for shape, same in sorted(by_shape.items()):
                factor = RATE_FACTORS[adjust_lr_fn](*shape) if muon else 1.0
                groups.append({"lr": lr, **own, **group, "params": same, "rate_factor": factor})
        super().__init__(groups, torch.optim.AdamW, {"lr": lr, "betas": betas, "fused": True})

    @torch.no_grad()
    def step(self, closure: Any = None, step_id: Any = None) -> Any:
        """Update the pieces; `lr` and `weight_decay` of a group stay those of the config."""
        before = [(group, group["lr"], group["weight_decay"]) for group in self.param_groups]
        for group, rate, decay in before:
            group.update(lr=rate * group["rate_factor"], weight_decay=decay / group["rate_factor"])
        loss = super().step(closure, step_id)
        for group, rate, decay in before:
            group.update(lr=rate, weight_decay=decay)
        return loss
