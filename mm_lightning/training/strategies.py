"""DeepSpeed under its usual names (`deepspeed_stage_1`, `_2`, `_3`, ...) on GPUs and on CPUs.

Lightning's own strategy refuses CPUs, on which ZeRO works perfectly well and is the way to try and test it; and it
writes its checkpoint folders in place, so that a killed run leaves a broken one under the final name. Both are mended
here. :func:`register` puts this strategy in the place of Lightning's: the same YAML works everywhere.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, StrategyRegistry
from torch import Tensor

from mm_lightning.checkpoint import (
    METADATA_KEY,
    PARTIAL_SUFFIX,
    broadcast_path,
    check_space,
    commit_folder,
    save_synced,
    set_deepspeed_accelerator,
    weights_only_loading,
    write_error,
)
from mm_lightning.checkpoint.integrity import DEEPSPEED_TAG, read_commit, remove_partial
from mm_lightning.checkpoint.plain_values import UnloadableState, to_plain_values
from mm_lightning.checkpoint.universal import to_universal
from mm_lightning.console import say
from mm_lightning.errors import UserError
from mm_lightning.ranges import Natural, checked
from mm_lightning.training.timeouts import limit_groups


class DeepSpeed(DeepSpeedStrategy):
    """ZeRO on GPUs and CPUs, with checkpoint folders that are whole or not there.

    The arguments are those of lightning.pytorch.strategies.DeepSpeedStrategy, and some of DeepSpeed that it lacks.

    Args:
        prefetch_bucket_size: of stage 3, how many parameters are gathered ahead of their use.
        max_live_parameters: of stage 3, how many gathered parameters a process holds at most.
        max_reuse_distance: of stage 3, a parameter that is needed again within so many others stays gathered.
        param_persistence_threshold: of stage 3, parameters of fewer numbers stay whole on every process.
    """

    @checked()
    def __init__(
        self,
        *args: Any,
        prefetch_bucket_size: Natural = 50_000_000,
        max_live_parameters: Natural = 1_000_000_000,
        max_reuse_distance: Natural = 1_000_000_000,
        param_persistence_threshold: Natural = 100_000,
        **kwargs: Any,
    ) -> None:
        set_deepspeed_accelerator()
        super().__init__(*args, **kwargs)
        zero = self.config.setdefault("zero_optimization", {})
        if zero.get("stage") == 3:
            zero.setdefault("stage3_prefetch_bucket_size", prefetch_bucket_size)
            zero.setdefault("stage3_max_live_parameters", max_live_parameters)
            zero.setdefault("stage3_max_reuse_distance", max_reuse_distance)
            zero.setdefault("stage3_param_persistence_threshold", param_persistence_threshold)
        if "offload_optimizer" in zero:
            # torch's fused AdamW is as good on CPUs as DeepSpeed's own, which would have to be compiled first.
            self.config.setdefault("zero_force_ds_cpu_optimizer", False)

    def _format_config(self) -> None:
        """Has DeepSpeed add up gradients that come in bf16 in float32: in bf16 a sum of 16 batches would lose the last
        four of the eight bits of each. (Stage 1 does add up in bf16: told otherwise, DeepSpeed takes another optimiser
        with checkpoints of its own. Stage 2 communicates the same and needs less memory.)
        """
        super()._format_config()
        if self.precision_plugin.precision.startswith("bf16") and self.config["zero_optimization"]["stage"] > 1:
            self.config.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")

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

    def init_deepspeed(self) -> None:
        """Builds the engine; its groups of processes wait no longer than the run's."""
        super().init_deepspeed()
        limit_groups(self._timeout)

    @contextmanager
    def tensor_init_context(self, empty_init: bool | None = None) -> Iterator[None]:
        """Builds the network in bf16 where it is trained in it: stages 1 and 2 never hold all of it in float32.

        (Stage 3 does the same parameter by parameter, and keeps its share of each.)
        """
        before = torch.get_default_dtype()
        with super().tensor_init_context(empty_init=empty_init):
            if self.precision_plugin.precision.startswith("bf16") and not self.zero_stage_3:
                torch.set_default_dtype(torch.bfloat16)
            try:
                yield
            finally:
                torch.set_default_dtype(before)

    def _auto_select_batch_size(self) -> int:
        # only for DeepSpeed's own throughput log; a loader of ready batches has no sampler to ask
        return self.lightning_module.trainer.datamodule.micro_batch_size

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """The backward pass. Lightning has divided the loss by the accumulated batches: DeepSpeed must not again."""
        super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Every process writes its shard to `filepath.partial`; when all have, it becomes `filepath`.

        Raises:
            UserError: a process cannot write it (on all processes).
        """
        target = Path(self.broadcast(str(filepath)))
        partial = target.with_name(target.name + PARTIAL_SUFFIX)
        self._together(lambda: self._make_way(target, partial), target)
        self._together(lambda: checkpoint.update(self._loadable(checkpoint)), target)
        sums: dict[str, int] = {}

        failures: list[Exception] = []

        def write_shard(state_dict: Any, path: str) -> None:
            try:
                with weights_only_loading(partial):
                    sums[str(Path(path).relative_to(partial))] = save_synced(state_dict, Path(path))
            except Exception as error:  # DeepSpeed has other processes wait for this one
                failures.append(error)

        def save() -> None:
            super(DeepSpeed, self).save_checkpoint(checkpoint, partial, storage_options)
            if failures:
                raise failures[0]

        self.deepspeed_engine.checkpoint_engine.save = write_shard
        self._together(save, target)
        everyone: list[dict[str, int]] = [{}] * self.world_size
        torch.distributed.all_gather_object(everyone, sums)
        together = {name: value for some in everyone for name, value in some.items()}
        about = checkpoint.get(METADATA_KEY, {})
        if self.is_global_zero:
            self._together(lambda: commit_folder(partial, target, self.world_size, about, together), target)
        else:
            self._together(lambda: None, target)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Restores a checkpoint, on all processes the one that the first has chosen. Nothing in it is ever run.

        One that another number of processes wrote, or in another precision, is read through its universal form, which
        is made beside it and deleted again.

        Raises:
            UserError: it cannot be read, or holds more than tensors and plain values.
        """
        path = broadcast_path(checkpoint_path)
        wrote = read_commit(path)["world_size"]
        with weights_only_loading(path), self._own_clipping_and_scaling():
            if (path / "latest_universal").is_file():
                return self._load_universal(path, weights_only)
            same_precision = (path / DEEPSPEED_TAG / self._shard_name).is_file()
            if wrote == self.world_size and same_precision:
                return super().load_checkpoint(path, weights_only)
        form = "" if same_precision else " in another precision"
        say(f"{path} was written by {wrote} processes{form}: converting it for {self.world_size}")
        # a leftover of a cut-off conversion is removed by the next resume
        universal = path.with_name(f"{path.name}.universal{PARTIAL_SUFFIX}")
        self._together(lambda: self.is_global_zero and to_universal(path, universal), universal)
        with weights_only_loading(universal), self._own_clipping_and_scaling():
            state = self._load_universal(universal, weights_only)
        self.barrier()
        if self.is_global_zero:
            remove_partial(universal)
        return state

    @property
    def _shard_name(self) -> str:
        """The first process's file of optimizer states, which DeepSpeed names after the precision."""
        bf16 = "bf16_" if self.precision_plugin.precision.startswith("bf16") else ""
        return f"{bf16}zero_pp_rank_0_mp_rank_00_optim_states.pt"

    @contextmanager
    def _own_clipping_and_scaling(self) -> Iterator[None]:
        """Context manager that restores a checkpoint and keeps this run's gradient clipping and loss scaling.

        Of the checkpoint's settings it takes the current loss scale only.
        """
        optimizer = self.deepspeed_engine.optimizer
        clip, scaler = getattr(optimizer, "clip_grad", None), getattr(optimizer, "loss_scaler", None)
        yield
        if clip is not None:
            optimizer.clip_grad = clip
        if scaler is None:
            return
        if scaler.dynamic and optimizer.loss_scaler.dynamic:
            for name in ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis"):
                setattr(scaler, name, getattr(optimizer.loss_scaler, name))
        optimizer.loss_scaler, optimizer.dynamic_loss_scale = scaler, scaler.dynamic

    def finish(self, wait: bool = True) -> None:
        """Nothing is being written when :meth:`save_checkpoint` has returned."""

    @staticmethod
    def _loadable(checkpoint: dict[str, Any]) -> dict[str, Any]:
        """All but what DeepSpeed writes itself, whose classes are known when it is loaded."""
        return to_plain_values({k: v for k, v in checkpoint.items() if k not in ("state_dict", "optimizer_states")})

    def _make_way(self, target: Path, partial: Path) -> None:
        if self.is_global_zero:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            check_space(target, self._shard_bytes())

    def _load_universal(self, path: Path, weights_only: bool | None) -> dict[str, Any]:
        """Restores the universal form of a checkpoint, which any number of processes reads."""
        engine = self.deepspeed_engine
        before = [{key: value for key, value in group.items() if key != "params"} for group in self._groups()]
        engine._config.load_universal_checkpoint = True
        state = super().load_checkpoint(path, weights_only)
        engine._config.load_universal_checkpoint = False
        # DeepSpeed gives every group what the first one had: its weight decay, too.
        rates = state["lr_schedulers"][0]["_last_lr"]
        for group, values, rate in zip(self._groups(), before, rates, strict=True):
            group.update(values, lr=rate)
        # And all parameters one tensor that counts steps, which each of them would count up.
        for values in engine.optimizer.optimizer.state.values():
            if isinstance(values.get("step"), Tensor):
                values["step"] = values["step"].clone()
        return state

    def _groups(self) -> list[dict[str, Any]]:
        return self.deepspeed_engine.optimizer.param_groups

    def _together(self, action: Any, target: Path) -> None:
        """Runs an action; if it fails on one process, all of them end, instead of waiting for it for ever."""
        error: UserError | None = None
        try:
            action()
        except Exception as caught:  # whatever it is, the others must not wait
            error = write_error(target, caught)
        everywhere: list[tuple[str, bool] | None] = [None] * self.world_size
        torch.distributed.all_gather_object(everywhere, error and (str(error), isinstance(error, UnloadableState)))
        if any(everywhere):
            message, unloadable = next(filter(None, everywhere))
            raise error or (UnloadableState if unloadable else UserError)(message)

    def _shard_bytes(self) -> int:
        """About what this node's processes write: parameters, and float32 master copy and two moments by ZeRO."""
        count = sum(getattr(p, "ds_numel", p.numel()) for p in self.lightning_module.parameters())
        return count * 14 * self.num_processes // self.world_size


def register() -> None:
    """Makes Lightning's DeepSpeed names mean :class:`DeepSpeed`."""
    set_deepspeed_accelerator()  # reading the options of a strategy imports it
    for name, entry in StrategyRegistry.items():
        if entry["strategy"] is DeepSpeedStrategy:
            entry["strategy"] = DeepSpeed
            StrategyRegistry[name] = entry
