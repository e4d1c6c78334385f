"""DeepSpeed under its usual names (`deepspeed_stage_1`, `_2`, `_3`, ...) on GPUs and on CPUs.

Lightning's own strategy refuses CPUs, on which ZeRO works perfectly well and is the way to try and test it; and it
writes its checkpoint folders in place, so that a killed run leaves a broken one under the final name. Both are mended
here. :func:`register` puts this strategy in the place of Lightning's: the same YAML works everywhere.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, StrategyRegistry
from torch import Tensor

from mm_lightning.errors import UserError
from mm_lightning.training.checkpoint import KEY, PARTIAL, calm_deepspeed, check_space, commit_folder, is_full, no_space


class DeepSpeed(DeepSpeedStrategy):
    """ZeRO on GPUs and CPUs, with checkpoint folders that are whole or not there.

    The arguments are those of lightning.pytorch.strategies.DeepSpeedStrategy.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        calm_deepspeed()
        super().__init__(*args, **kwargs)

    @property
    def on_cpu(self) -> bool:
        """Whether the run's accelerator is the CPU."""
        return isinstance(self.accelerator, CPUAccelerator)

    @property
    def root_device(self) -> torch.device:
        """This process's device; on CPUs too it has an index, for which DeepSpeed asks."""
        return torch.device("cpu", self.local_rank) if self.on_cpu else super().root_device

    def setup_environment(self) -> None:
        """Starts the process group, without Lightning's refusal of CPUs."""
        if self.on_cpu:
            DDPStrategy.setup_environment(self)
        else:
            super().setup_environment()

    def setup_distributed(self) -> None:
        """The same for gloo, where device indices mean nothing."""
        if not self.on_cpu:
            super().setup_distributed()
            return
        import deepspeed
        from deepspeed.accelerator import set_accelerator
        from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

        accelerator = CPU_Accelerator()
        set_accelerator(accelerator)
        # Gloo is enough; DeepSpeed's shared-memory collectives would first be compiled for a minute.
        compiled = accelerator.create_op_builder("ShareMemCommBuilder")
        if compiled is not None:
            deepspeed.ops.__compatible_ops__[compiled.NAME] = False
        self._process_group_backend = "gloo"
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def _auto_select_batch_size(self) -> int:
        # only for DeepSpeed's own throughput log; a loader of ready batches has no sampler to ask
        return self.lightning_module.trainer.datamodule.micro_batch_size

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """The backward pass. Lightning has divided the loss by the accumulated batches: DeepSpeed must not again."""
        super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Every process writes its shard to `filepath.partial`; when all have, it becomes `filepath`.

        Raises:
            UserError: there is no space for it.
        """
        target = Path(self.broadcast(str(filepath)))
        partial = target.with_name(target.name + PARTIAL)
        if self.is_global_zero:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
        self.barrier()
        self._together(lambda: check_space(target, self._shard_bytes()), target)
        self._together(lambda: super(DeepSpeed, self).save_checkpoint(checkpoint, partial, storage_options), target)
        if self.is_global_zero:
            commit_folder(partial, target, self.world_size, checkpoint.get(KEY, {}))
        self.barrier()

    def _together(self, action: Any, target: Path) -> None:
        """Runs an action; if it fails on one process, all of them end, instead of waiting for it for ever."""
        error: Exception | None = None
        try:
            action()
        except (OSError, RuntimeError, UserError) as caught:
            error = caught
        everywhere: list[str | None] = [None] * self.world_size
        full = isinstance(error, Exception) and is_full(error, target)
        torch.distributed.all_gather_object(everywhere, error and ("full" if full else str(error)))
        if "full" in everywhere:
            raise no_space(target) from error
        if error is not None:
            raise error
        if any(everywhere):
            raise RuntimeError(f"another process failed to write {target}: {next(filter(None, everywhere))}")

    def _shard_bytes(self) -> int:
        """About what this node's processes write: parameters, and float32 master copy and two moments by ZeRO."""
        count = sum(getattr(p, "ds_numel", p.numel()) for p in self.lightning_module.parameters())
        return count * 14 * self.num_processes // self.world_size


def register() -> None:
    """Makes Lightning's DeepSpeed names mean :class:`DeepSpeed`."""
    for name, entry in StrategyRegistry.items():
        if entry["strategy"] is DeepSpeedStrategy:
            entry["strategy"] = DeepSpeed
            StrategyRegistry[name] = entry
