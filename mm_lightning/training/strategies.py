"""DeepSpeed under its usual names (`deepspeed_stage_1`, `_2`, `_3`, ...) on GPUs and on CPUs.

Lightning's own strategy refuses CPUs, on which ZeRO can be tried and tested; and it writes its checkpoint folders in
place, so that a killed run leaves a broken one under the final name. :func:`register` replaces it by the strategy of
this file, which does neither: the same YAML works everywhere.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, StrategyRegistry
from torch import Tensor

from mm_lightning.checkpoint import METADATA_KEY, commit_folder, set_deepspeed_accelerator, weights_only_loading
from mm_lightning.checkpoint.integrity import DEEPSPEED_TAG, PARTIAL_SUFFIX, read_commit, remove_partial
from mm_lightning.checkpoint.plain_values import UnloadableState, to_plain_values
from mm_lightning.checkpoint.universal import to_universal
from mm_lightning.checkpoint.writing import broadcast_path, check_space, save_synced, write_error
from mm_lightning.console import say
from mm_lightning.errors import UserError
from mm_lightning.ranges import Natural, checked
from mm_lightning.training import sharding
from mm_lightning.training.lightning_internals import datamodule_of, process_timeout

CHECKPOINT_BYTES = 14
"""Bytes of a parameter in a checkpoint: 2 in bf16, and 12 of ZeRO's float32 master copy and two moments."""


class DeepSpeed(DeepSpeedStrategy):
    """ZeRO on GPUs and CPUs, with checkpoint folders that are complete or absent.

    The arguments are those of lightning.pytorch.strategies.DeepSpeedStrategy, and some of DeepSpeed that it lacks.

    Args:
        prefetch_bucket_size: for stage 3: how many parameters are gathered ahead of their use.
        max_live_parameters: for stage 3: how many gathered parameters a process holds at most.
        max_reuse_distance: for stage 3: a parameter that is needed again within this many others stays gathered.
        param_persistence_threshold: for stage 3: tensors of fewer parameters stay whole on every process.
    """

    config: dict[str, Any]  # never None when it is built

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
            stage_3 = {
                "stage3_prefetch_bucket_size": prefetch_bucket_size,
                "stage3_max_live_parameters": max_live_parameters,
                "stage3_max_reuse_distance": max_reuse_distance,
                "stage3_param_persistence_threshold": param_persistence_threshold,
            }
            self.config["zero_optimization"] = zero = stage_3 | zero
        if "offload_optimizer" in zero:
            # torch's fused AdamW is as good on CPUs as DeepSpeed's own, which would have to be compiled first.
            self.config.setdefault("zero_force_ds_cpu_optimizer", False)

    def _format_config(self) -> None:
        """Let DeepSpeed accumulate bf16 gradients in float32: in bf16 a sum of 16 batches would lose the last four of
        the eight bits of each. (Not stage 1, which would take another optimizer with checkpoints of its own. Stage 2
        communicates the same and needs less memory.)
        """
        super()._format_config()
        if self.bf16 and self.config["zero_optimization"]["stage"] > 1:
            self.config.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")

    @property
    def bf16(self) -> bool:
        """Whether the network is trained in bfloat16."""
        return str(self.precision_plugin.precision).startswith("bf16")

    @property
    def on_cpu(self) -> bool:
        """Whether the run's accelerator is the CPU."""
        return isinstance(self.accelerator, CPUAccelerator)

    @property
    def root_device(self) -> torch.device:
        """The device of this process, with an index on CPUs too, as DeepSpeed requires."""
        return torch.device("cpu", self.local_rank) if self.on_cpu else super().root_device

    def setup_environment(self) -> None:
        """Start the process group, without Lightning's refusal of CPUs."""
        if self.on_cpu:
            DDPStrategy.setup_environment(self)  # type: ignore[arg-type]  # its base class, but for DeepSpeed's check
        else:
            super().setup_environment()

    def setup_distributed(self) -> None:
        """Connect the processes."""
        if self.on_cpu:
            sharding.init_on_cpu(self)
        else:
            super().setup_distributed()

    def init_deepspeed(self) -> None:
        """Build the engine, and give its process groups the timeout of the run."""
        super().init_deepspeed()
        if timeout := process_timeout(self):
            sharding.limit_groups(timeout)

    @contextmanager
    def tensor_init_context(self, empty_init: bool | None = None) -> Iterator[None]:
        """Context manager that builds a network that is trained in bf16 in it, in stages 1 and 2, without a float32
        copy of all of it. (Stage 3 does so parameter by parameter, and keeps a piece of each.)
        """
        before = torch.get_default_dtype()
        with super().tensor_init_context(empty_init=empty_init):
            if self.bf16 and not self.zero_stage_3:
                torch.set_default_dtype(torch.bfloat16)
            try:
                yield
            finally:
                torch.set_default_dtype(before)

    def _auto_select_batch_size(self) -> int:
        # only for DeepSpeed's own throughput log; a loader of ready batches has no sampler to ask
        return datamodule_of(self._trainer()).micro_batch_size

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Run the backward pass; DeepSpeed must not divide the loss by the accumulated batches, as Lightning has."""
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    # Checkpoints

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write this process's shard to `filepath.partial`; when all processes have, it becomes `filepath`.

        Raises:
            UserError: a process cannot write it (on all processes).
        """
        target = Path(self.broadcast(str(filepath)))
        partial = target.with_name(target.name + PARTIAL_SUFFIX)
        self._on_rank_zero(lambda: self._make_way(target, partial), target)
        written_by_deepspeed = ("state_dict", "optimizer_states")  # whose classes are known when it is loaded
        others = {name: value for name, value in checkpoint.items() if name not in written_by_deepspeed}
        self._on_all(lambda: checkpoint.update(to_plain_values(others)), target)
        checksums: dict[str, int] = {}
        failures: list[Exception] = []

        def write_shard(state_dict: Any, path: str) -> None:
            try:
                with weights_only_loading(partial):
                    checksums[str(Path(path).relative_to(partial))] = save_synced(state_dict, Path(path))
            except Exception as error:  # DeepSpeed has other processes wait for this one
                failures.append(error)

        def save() -> None:
            super(DeepSpeed, self).save_checkpoint(checkpoint, partial, storage_options)
            if failures:
                raise failures[0]

        sharding.write_shards_with(self.deepspeed_engine, write_shard)
        self._on_all(save, target)
        all_checksums = {name: value for part in self._gather(checksums) for name, value in part.items()}

        metadata = checkpoint.get(METADATA_KEY, {})
        self._on_rank_zero(lambda: commit_folder(partial, target, self.world_size, metadata, all_checksums), target)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Restore a checkpoint, on all processes the one that the first has chosen. Nothing in it is ever run.

        One that another number of processes wrote, or in another precision, is read through its universal form, which
        is made beside it and deleted again.

        Raises:
            UserError: it cannot be read, or holds more than tensors and plain values.
        """
        path, engine = broadcast_path(checkpoint_path), self.deepspeed_engine
        writers = read_commit(path)["world_size"]

        def load(folder: Path) -> dict[str, Any]:
            return super(DeepSpeed, self).load_checkpoint(folder, weights_only)

        with weights_only_loading(path), sharding.keep_clipping_and_scaling(engine):
            if (path / "latest_universal").is_file():
                return sharding.load_universal(engine, lambda: load(path))
            same_precision = (path / DEEPSPEED_TAG / sharding.shard_name(self.bf16)).is_file()
            if writers == self.world_size and same_precision:
                return load(path)
        precision = "" if same_precision else " in another precision"
        say(f"{path} was written by {writers} processes{precision}: converting it for {self.world_size}")
        # one that a killed run has left is removed at the next resume
        universal = path.with_name(f"{path.name}.universal{PARTIAL_SUFFIX}")

        self._on_rank_zero(lambda: to_universal(path, universal), universal)
        with weights_only_loading(universal), sharding.keep_clipping_and_scaling(engine):
            state = sharding.load_universal(engine, lambda: load(universal))
        self.barrier()
        if self.is_global_zero:
            remove_partial(universal)
        return state

    def _trainer(self) -> Trainer:
        assert self.lightning_module is not None, "the strategy is not connected to a module yet"
        return self.lightning_module.trainer

    def finish(self, wait: bool = True) -> None:
        """Return at once: nothing is being written when :meth:`save_checkpoint` has returned."""

    def _make_way(self, target: Path, partial: Path) -> None:
        """Remove what a killed run has left, and check the free space for the shards of this node."""
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        size = sharding.parameter_count(self._trainer().lightning_module) * CHECKPOINT_BYTES
        check_space(target, size * self.num_processes // self.world_size)

    def _on_rank_zero(self, action: Callable[[], object], target: Path) -> None:
        """Run an action on rank 0; if it fails, all processes end."""
        self._on_all(action if self.is_global_zero else lambda: None, target)

    def _on_all(self, action: Callable[[], object], target: Path) -> None:
        """Run an action on all processes; if it fails on one, all of them end, instead of waiting for it for ever."""
        error: UserError | None = None
        try:
            action()
        except Exception as caught:  # of any kind: the other processes must not wait
            error = write_error(target, caught)
        failures = filter(None, self._gather(error and (str(error), isinstance(error, UnloadableState))))
        if failure := next(failures, None):
            message, unloadable = failure
            raise error or (UnloadableState if unloadable else UserError)(message)

    def _gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank."""
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values


def register() -> None:
    """Let Lightning's names of DeepSpeed strategies mean :class:`DeepSpeed`."""
    set_deepspeed_accelerator()  # reading the options of a strategy imports it
    for name, entry in StrategyRegistry.items():
        if entry["strategy"] is DeepSpeedStrategy:
            entry["strategy"] = DeepSpeed
            StrategyRegistry[name] = entry
