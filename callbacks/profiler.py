"""Trace a few steps with torch's profiler."""

from __future__ import annotations

import gzip
import shutil
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from mm_lightning.console import say
from mm_lightning.outputs import staged
from mm_lightning.ranges import Count, checked
from mm_lightning.training import lightning_internals as internals
from mm_lightning.training.module import LanguageModule
from mm_lightning.training.silence_warnings import silence_profiler

MEMORY_ENTRIES = 200_000
"""The newest allocations that the CUDA allocator records."""


class Profiler(Callback):
    """Trace a few optimization steps with torch's profiler, into the run folder's `profile/`:

    - `steps-10-12_rank-0.pt.trace.json.gz`: every operation and kernel, for https://ui.perfetto.dev, or for TensorBoard
      with the plugin torch-tb-profiler,
    - `steps-10-12_rank-0.memory.pickle`, on CUDA: every allocation with its stack, for
      https://pytorch.org/memory_viz.

    The step before the first is a warm-up of the profiler, which is discarded. Traced steps take longer; no other step
    is affected.

    Args:
        first: number of the first traced step, counted from 1.
        steps: number of consecutive steps. The trace of one takes some MB.
        memory: trace allocations, too.
        shapes: record the input shapes of every operation.
        stacks: record the Python stack of every operation.
        every_process: trace all processes, each to a file of its own, instead of the first one alone.
    """

    @checked()
    def __init__(
        self,
        first: Count = 10,
        steps: Count = 3,
        memory: bool = True,
        shapes: bool = False,
        stacks: bool = False,
        every_process: bool = False,
    ) -> None:
        self.first, self.steps, self.memory, self.every_process = first, steps, memory, every_process
        self.shapes, self.stacks = shapes, stacks
        self._profile: torch.profiler.profile | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Log it if the traced steps are not among those of this run."""
        if trainer.global_step >= self.first or 0 < trainer.max_steps < self.first:
            say(
                f"Profiler: step {self.first} is not among the steps {trainer.global_step + 1} to {trainer.max_steps}: "
                "no trace"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LanguageModule, batch: Any, batch_idx: int) -> None:
        """Start the profiler before the first traced step."""
        traces = self.every_process or trainer.is_global_zero
        warm_up = min(self.first - 1, 1)
        if self._profile is not None or not traces or trainer.global_step != self.first - 1 - warm_up:
            return
        silence_profiler()
        if self.memory and pl_module.device.type == "cuda":
            internals.record_cuda_memory(MEMORY_ENTRIES)
        self._profile = torch.profiler.profile(
            schedule=torch.profiler.schedule(wait=0, warmup=warm_up, active=self.steps, repeat=1),
            on_trace_ready=lambda profile: self._write(profile, trainer, pl_module),
            profile_memory=self.memory,
            record_shapes=self.shapes,
            with_stack=self.stacks,
        )
        self._profile.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LanguageModule, *_: Any) -> None:
        """Advance the profiler by a step; after the last one, write the trace."""
        if self._profile is None or internals.accumulating(trainer):
            return
        self._profile.step()
        if trainer.global_step >= self.first - 1 + self.steps:
            self.on_train_end()

    def on_train_end(self, *_: Any) -> None:
        """Write the trace, unless it is written: the end of training or an error cuts it short."""
        profile, self._profile = self._profile, None
        if profile is not None:
            profile.stop()  # calls _write, unless the schedule has

    on_exception = on_train_end  # type: ignore[assignment]

    def _write(self, profile: torch.profiler.profile, trainer: Trainer, module: Any) -> None:
        folder = module.run_folder.path / "profile"
        name = f"steps-{self.first}-{trainer.global_step}_rank-{trainer.global_rank}"
        trace = folder / f"{name}.pt.trace.json.gz"

        def write() -> None:
            with staged(trace) as part:
                plain = part.with_suffix(".json")  # torch would put it into the folder for temporary files
                profile.export_chrome_trace(str(plain))
                with open(plain, "rb") as source, gzip.open(part, "wb") as target:
                    shutil.copyfileobj(source, target)
            if self.memory and module.device.type == "cuda":
                internals.write_cuda_memory(folder / f"{name}.memory.pickle")

        written = module.run_folder.write(trace, write)
        if self.memory and module.device.type == "cuda":
            internals.record_cuda_memory(0)
        if written:
            say(f"trace of steps {self.first} to {trainer.global_step}: {trace}")
