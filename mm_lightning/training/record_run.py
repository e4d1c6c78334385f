"""Record settings and environment of a run when it starts, and finished.json when it ends."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from mm_lightning import streams
from mm_lightning.checkpoint import find_checkpoint
from mm_lightning.checkpoint.environment import describe_environment
from mm_lightning.checkpoint.run_folder import RunFolder
from mm_lightning.console import say
from mm_lightning.data.mixture import describe, differing
from mm_lightning.errors import UserError
from mm_lightning.memory import kernels
from mm_lightning.memory.kernels import Kernels
from mm_lightning.memory.kernels.dispatch import dispatch_kernels
from mm_lightning.memory.kernels.fused_read import attention_backend
from mm_lightning.memory.keys import AverageKeys
from mm_lightning.memory.retrieval import Retrieval, SoftmaxRetrieval
from mm_lightning.networks import Network
from mm_lightning.outputs import write_json
from mm_lightning.redaction import redact_values
from mm_lightning.side_files import read_object, write_config
from mm_lightning.training.accumulation import served_sequences
from mm_lightning.training.data_order import ROLLBACKS, configured_data_order, data_order_settings, record_resume
from mm_lightning.training.lightning_internals import datamodule_of
from mm_lightning.training.loggers import drop_later_steps
from mm_lightning.training.module import LanguageModule
from mm_lightning.training.resume import refuse_nothing
from mm_lightning.training.tensorboard_hparams import hyperparameters
from mm_lightning.training.tracked_runs import remember_runs


class RecordRun(Callback):
    """Write config.yaml and environment.json when training starts, finished.json when it ends; log what is trained.

    Args:
        folder: the run folder.
        config: the config with every default.
    """

    def __init__(self, folder: RunFolder, config: dict[str, Any]) -> None:
        self.folder = folder
        self.config = config
        self._begin = time.perf_counter()
        self._began = False

    def setup(self, trainer: Trainer, pl_module: LanguageModule, stage: str) -> None:
        """Broadcast the folder; on rank 0, lock it and write the files."""
        self.folder.share(trainer)
        streams.note_in(self.folder.path)
        if not trainer.is_global_zero:
            return
        self.folder.acquire()
        if not self.folder.resumed:
            self._write(trainer, 0)

    def _write(self, trainer: Trainer, step: int) -> None:
        path = self.folder.path
        file = path / "environment.json"
        (path / "finished.json").unlink(missing_ok=True)  # a finished run may be resumed with more steps
        config = redact_values(self.config)
        self.folder.write(path / "config.yaml", lambda: write_config(path / "config.yaml", config), retry=True)
        for logger in trainer.loggers:
            logger.log_hyperparams(hyperparameters(config))
        remember_runs(trainer.loggers, self.folder)
        last = read_object(file)
        past = [*last.pop("earlier", []), last] if last else []
        sets = datamodule_of(trainer).sets
        data = describe(sets)
        if differing(last.get("data", data), sets):
            say(
                f"the data sets or their weights have changed ({file}): training continues in their order, in which "
                f"sequences may be repeated"
            )
        content = {**describe_environment(), "step": step, "data": data, "earlier": past}
        self.folder.write(file, lambda: write_json(file, content), retry=True)

    def on_fit_start(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Log network, devices, batch and kernels."""
        data, device = datamodule_of(trainer), pl_module.device
        kinds = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}
        dtype = kinds.get(trainer.precision.split("-")[0], torch.float32)
        tokens = data.global_batch_size * data.context_length
        strategy = type(trainer.strategy).__name__.removesuffix("Strategy")
        say(f"run folder         {self.folder.path}")
        say(f"network            {type(pl_module.network).__name__}, {pl_module.parameter_count:,} parameters")
        say(f"devices            {trainer.world_size} x {device.type} ({strategy}), precision {trainer.precision}")
        say(
            f"step               {data.global_batch_size} sequences of {data.context_length} = {tokens:,} tokens: "
            f"{trainer.world_size} devices x {data.micro_batch_size} sequences x {trainer.accumulate_grad_batches} "
            f"accumulated"
        )
        for s in data.sets if len(data.sets) > 1 else ():
            say(f"data               {float(s.share):.1%} {s.folder}: {sum(s.counts(data.context_length)):,} sequences")
        for line in kernel_lines(pl_module.network, pl_module.kernels, device, dtype):
            say(line)

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Take over the folder of a resumed run and drop the logged metrics of steps that are repeated.

        Raises:
            UserError: there is nothing to do.
        """
        if trainer.fit_loop.done:  # at an epoch's last step Lightning ends that epoch first
            refuse_nothing(trainer)
        self._began = True
        if self.folder.resumed and trainer.is_global_zero:
            self._note_order(trainer)
            self._write(trainer, trainer.global_step)
            drop_later_steps(trainer, trainer.global_step)

    def on_train_batch_end(self, *args: Any) -> None:
        """Mark the folder as one in which steps were trained."""
        self.folder.trained = True

    def _note_order(self, trainer: Trainer) -> None:
        """Record the data order so far for `mm data show`, before config.yaml is overwritten."""
        first, data, run = served_sequences(trainer), datamodule_of(trainer), self.folder.path
        if first is None:
            return
        try:
            previous = configured_data_order(run)
        except (UserError, OSError, KeyError, TypeError, ValueError):  # not needed to resume
            previous = None
        current = data_order_settings(data.weights, data.context_length, data.global_batch_size, data.seed)
        note = partial(record_resume, run, trainer.global_step, first, previous, current)
        self.folder.write(run / ROLLBACKS, note, retry=True)

    def on_exception(self, trainer: Trainer, pl_module: LanguageModule, exception: BaseException) -> None:
        """Log how an interrupted run can be resumed."""
        if not isinstance(exception, KeyboardInterrupt):
            return
        try:
            advice = f"--resume goes on from {find_checkpoint(self.folder.path)}"
        except UserError:
            advice = "nothing was saved yet (Checkpoints: every_n_steps sets how often)"
        say(f"interrupted after step {trainer.global_step}: {advice}")

    def on_fit_end(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Mark the run as finished.

        Raises:
            UserError: there was nothing to do.
        """
        if not self._began:
            refuse_nothing(trainer)
        if trainer.is_global_zero:
            path = self.folder.path / "finished.json"
            seconds = round(time.perf_counter() - self._begin, 1)
            end = {"step": trainer.global_step, "max_steps": trainer.max_steps, "tokens": pl_module.trained_tokens}
            self.folder.write(path, lambda: write_json(path, {**end, "seconds": seconds}))


def kernel_lines(network: Network, chosen: Kernels, device: torch.device, dtype: torch.dtype) -> list[str]:
    """Return the log lines of what computes a network's memories, and of the parts that are a user's classes."""
    dim, parts, lines = network.config.head_dim, list(network.modules()), []
    if retrievals := [part for part in parts if isinstance(part, Retrieval)]:
        fused = any(isinstance(retrieval, SoftmaxRetrieval) for retrieval in retrievals)
        lines.append(f"attention backend  {attention_backend(device, dtype, dim) if fused else 'plain torch'}")
    if any(isinstance(part, AverageKeys) for part in parts):
        lines.append(f"key kernels        {kernels.describe(dispatch_kernels(chosen, device, dtype, dim))}")
    for setting in ("keys", "values", "retrieval"):
        if isinstance(spec := getattr(network.config, setting, ""), dict):
            lines.append(f"{setting:18} {spec['class_path']}, in plain torch")
    return lines
