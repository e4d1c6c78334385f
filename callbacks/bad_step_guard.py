"""Detect non-finite and spiking losses on the device, skip the update and save the batch."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor
from torch.optim import Optimizer

from mm_lightning.callbacks.checkpoints import Checkpoints
from mm_lightning.callbacks.step_stats import LossWindow, Step
from mm_lightning.checkpoint import is_complete, list_checkpoints, step_of
from mm_lightning.checkpoint.discovery import is_run_checkpoint
from mm_lightning.console import say
from mm_lightning.data.batch import Batch
from mm_lightning.data.mixture import describe
from mm_lightning.errors import UserError
from mm_lightning.outputs import write_json
from mm_lightning.ranges import Count, NonNegative, Range, checked
from mm_lightning.training import data_order
from mm_lightning.training.accumulation import served_sequences
from mm_lightning.training.lightning_internals import accumulating, callbacks_of, datamodule_of, log_interval
from mm_lightning.training.loggers import drop_later_steps
from mm_lightning.training.module import LanguageModule
from mm_lightning.training.optimizers import skips_on_device
from mm_lightning.training.rollback import restore
from mm_lightning.training.sharding import step_norm, watch_overflow

Window = Annotated[int, Range(4, 1_000_000)]


class BadStepGuard(Callback):
    """Skip the update of a bad step: one whose loss or gradient is not finite, or whose loss lies more than `sigma`
    standard deviations above the mean of the last `window` good steps.

    Loss and gradient norm over all processes are judged on the device before the optimizer's update, which then leaves
    weights, moments and their step counts unchanged on every process, whatever `on_bad_step` says. The step counts as
    one: schedule, randomness and data go on. There is no host sync: statistics are read one step later. (DeepSpeed
    itself waits for the gradient norm of every step, and so does an optimizer other than fused Adam and AdamW.)

    Part of every `mm fit`, with these defaults; `trainer.callbacks` may name one with other settings. (Not in fp16,
    whose dynamic loss scale relies on skipped updates.)

    `train/bad_steps` counts bad steps, from the first one on. One step after a bad one the run folder gets
    `bad_steps/step=N/`, which `mm data show` reads: the reason, the statistics, the tokens of every process and their
    position in the data. A run that ends in between does not get it.

    Args:
        on_bad_step: `skip` trains on. `rollback` restores the newest checkpoint from before the step, with the
            schedule, and trains on with the data that come next: data between are not read again; without such
            a checkpoint it acts like skip, and so it does if training ends before the step is reported.
            `stop` ends the run with an error.
        sigma: how many standard deviations make a loss spike; 0 detects non-finite values only.
        window: number of good steps in the statistics; spikes are detected once half of them are there.
        patience: end the run after this many bad steps in a row, or rollbacks to one checkpoint: the batch is not the
            cause.
    """

    @checked()
    def __init__(
        self,
        on_bad_step: Literal["skip", "rollback", "stop"] = "skip",
        sigma: NonNegative = 6.0,
        window: Window = 128,
        patience: Count = 10,
    ) -> None:
        self.on_bad_step, self.sigma, self.window, self.patience = on_bad_step, sigma, window, patience
        self._losses = LossWindow(sigma, window)
        self._step = Step()
        self._sync = False  # whether the host waits for the verdict on each step
        self._previous: Step | None = None  # its statistics are being copied to the host
        self._in_a_row = 0
        self._bad_steps = 0
        self._rollback_from: int | None = None  # the number of a bad step
        self._rollbacks = ("", 0)  # the last checkpoint that was restored, how often in a row

    # On the device

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Move the window to the device, and let the optimizer skip updates."""
        self._losses.to(pl_module.device)
        if isinstance(trainer.strategy, DeepSpeedStrategy):
            watch_overflow(trainer.strategy.deepspeed_engine)
            return
        self._sync = not all(skips_on_device(optimizer) for optimizer in trainer.optimizers)
        if self._sync:
            names = ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers)
            say(f"BadStepGuard: {names} cannot skip updates on the device: each step waits for its verdict (host sync)")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LanguageModule, batch: Batch, batch_idx: int) -> None:
        """Roll back to a checkpoint, if a step asks for it; remember the batch."""
        if self._rollback_from is not None:
            self._roll_back(trainer, pl_module)
        self._step.tokens.append(batch.tokens)

    def on_before_backward(self, trainer: Trainer, pl_module: LanguageModule, loss: Tensor) -> None:
        """Judge the loss of the step, once its last batch has gone forward."""
        if accumulating(trainer):
            return
        sums = pl_module.step_sums().double()
        if trainer.world_size > 1:
            dist.all_reduce(sums)
        self._step.loss = sums[0] / sums[1].clamp(min=1)
        self._step.bad, self._step.mean, self._step.deviation = self._losses.judge(self._step.loss)
        if isinstance(trainer.strategy, DeepSpeedStrategy):  # it skips updates whose gradient is not finite
            factor = torch.where(self._step.bad, torch.nan, 1.0).to(loss.dtype)
            loss.register_hook(lambda gradient: gradient * factor)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LanguageModule, optimizer: Optimizer) -> None:
        """Judge the gradient norm, and have the optimizer skip the update of a bad step.

        Fused Adam and AdamW do so by `found_inf`; others are left without gradients.
        """
        if isinstance(trainer.strategy, DeepSpeedStrategy):
            return
        norm = torch.nn.utils.get_total_norm([p.grad for p in pl_module.parameters() if p.grad is not None])
        self._step.norm = norm.double()
        self._step.bad = self._step.bad | ~norm.isfinite()
        if not self._sync:
            optimizer.found_inf = self._step.bad.float()  # type: ignore[attr-defined]
        elif self._step.bad:
            optimizer.zero_grad()  # every optimizer of torch passes over a parameter without a gradient

    # On the host, one step later

    def on_train_batch_end(self, trainer: Trainer, pl_module: LanguageModule, *_: Any) -> None:
        """Start to copy the statistics of the step to the host, and report the step before."""
        if accumulating(trainer):
            return
        if isinstance(trainer.strategy, DeepSpeedStrategy):
            norm, skipped = step_norm(trainer.strategy.deepspeed_engine)
            self._step.norm = torch.as_tensor(norm, dtype=torch.float64, device=pl_module.device)
            self._step.bad = self._step.bad | skipped
        self._step.send(trainer.global_step, served_sequences(trainer))
        previous, self._previous, self._step = self._previous, self._step, Step()
        if previous is not None:
            self._report(trainer, pl_module, previous)
        if self._bad_steps and trainer.global_step % log_interval(trainer) == 0:
            pl_module.log_train({"train/bad_steps": float(self._bad_steps)})

    def on_train_end(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Report the last step."""
        if self._previous is not None:
            self._report(trainer, pl_module, self._previous)
            self._previous = None

    def _report(self, trainer: Trainer, pl_module: LanguageModule, step: Step) -> None:
        bad, loss, norm, mean, deviation = step.read()
        self._in_a_row = self._in_a_row + 1 if bad else 0
        if not bad:
            return
        self._bad_steps += 1
        why = f"loss {loss:.6g}, gradient norm {norm:.6g}"
        if math.isfinite(loss) and self.sigma and loss > mean + self.sigma * deviation:
            excess = (loss - mean) / max(deviation, 1e-12)
            why += f", {excess:.1f} standard deviations above the last losses ({mean:.6g})"
        folder = pl_module.run_folder.path / data_order.BAD_STEPS / f"step={step.number}"
        write = partial(self._write_batch, trainer, folder, step, why)
        consequence = "the run ends without its batch" if self.on_bad_step == "stop" else None
        saved = pl_module.run_folder.write(folder, write, consequence)
        hint = f"`mm data show {quote(str(folder))}` shows its batch" if saved else "its batch could not be saved"
        message = f"step {step.number} was bad: {why}. Its update was skipped; {hint}"
        if self.on_bad_step == "stop":
            raise UserError(
                f"{message}. The run ends here because BadStepGuard has on_bad_step: stop. --resume goes on from the "
                f"newest checkpoint; on_bad_step: skip trains on without such a batch"
            )
        if self._in_a_row >= self.patience:
            raise UserError(
                f"{message}. Bad steps in a row: {self._in_a_row}, the patience of BadStepGuard: the batch is not the "
                f"cause. Try a lower model.learning_rate from an earlier checkpoint"
            )
        say(message)
        if self.on_bad_step == "rollback" and self._rollback_from is None:
            self._rollback_from = step.number

    def _write_batch(self, trainer: Trainer, folder: Path, step: Step, why: str) -> None:
        """Write the tokens of this process; on the first one also the statistics of the step."""
        data = datamodule_of(trainer)
        data_order.save_tokens(folder, trainer.global_rank, step.tokens)
        if trainer.is_global_zero:
            about = data_order.data_order_settings(data.weights, data.context_length, data.global_batch_size, data.seed)
            first = None if step.served is None else step.served - data.global_batch_size
            shape = {"micro_batch_size": data.micro_batch_size, "world_size": trainer.world_size}
            policy = {"on_bad_step": self.on_bad_step, "sigma": self.sigma, "window": self.window}
            values = {"step": step.number, "why": why, **policy, **shape, **about, "first": first}
            values |= {"sets": describe(data.sets), "tokenizer": data.tokenizer.sha256}
            if first is not None:
                values["sequences"] = data_order.locate_sequences(about, data.sets, first)
            write_json(folder / "step.json", values)

    # Rollback

    def _checkpoint_before(self, trainer: Trainer, pl_module: LanguageModule, bad: int) -> Path | None:
        """Return the newest usable checkpoint from before a bad step; None if there is none."""
        files = list_checkpoints(pl_module.run_folder.path) if trainer.is_global_zero else []  # the newest first
        path = next((p for p in files if is_run_checkpoint(p) and step_of(p) < bad and is_complete(p)), None)
        path = trainer.strategy.broadcast(path)
        if path is None:
            say(f"no checkpoint from before step {bad} to roll back to: training goes on")
            return None
        self._rollbacks = (path.name, self._rollbacks[1] + 1 if path.name == self._rollbacks[0] else 1)
        if self._rollbacks[1] > self.patience:
            raise UserError(
                f"step {bad} is bad after {self.patience} rollbacks to {path}, the patience of BadStepGuard: the batch "
                f"is not the cause. Try a lower model.learning_rate from an earlier checkpoint"
            )
        return path

    def _roll_back(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Restore a checkpoint, all but the position in the data."""
        assert self._rollback_from is not None
        path, self._rollback_from = self._checkpoint_before(trainer, pl_module, self._rollback_from), None
        if path is None:
            return
        left = trainer.global_step
        bad_steps = self._bad_steps  # which the checkpoint has not counted
        restore(trainer, path)
        self._bad_steps, self._in_a_row = bad_steps, 0
        self._previous, self._step = None, Step()
        pl_module.begin_step()
        for callback in callbacks_of(trainer, Checkpoints):
            callback.on_train_start(trainer, pl_module)
        step, data = trainer.global_step, datamodule_of(trainer)
        if trainer.is_global_zero:
            drop_later_steps(trainer, step)
        if trainer.is_global_zero and (first := served_sequences(trainer)) is not None:
            about = data_order.data_order_settings(data.weights, data.context_length, data.global_batch_size, data.seed)
            first -= data.micro_batch_size * trainer.world_size  # of the batch that comes next
            run = pl_module.run_folder
            note = partial(data_order.record_rollback, run.path, step, first, about, left=left)
            run.write(run.path / data_order.ROLLBACKS, note, retry=True)
        say(f"rolled back from step {left} to {path}; the data of {left - step} steps are not read again")

    def state_dict(self) -> dict[str, Any]:
        """Return the window of losses and the count of bad steps."""
        return {**self._losses.state(), "bad_steps": self._bad_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the window of losses and the count of bad steps."""
        self._losses.load(state)
        self._bad_steps = state["bad_steps"]
