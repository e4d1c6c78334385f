"""Steps whose numbers go wrong: noticed on the device, left out, kept to look at."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor
from torch.optim import Optimizer

from mm_lightning.callbacks.checkpoints import Checkpoints
from mm_lightning.callbacks.step_stats import LossWindow, Step
from mm_lightning.checkpoint import is_complete, is_run_checkpoint, list_checkpoints, step_of
from mm_lightning.console import say
from mm_lightning.data.batch import Batch
from mm_lightning.data.mixture import describe
from mm_lightning.errors import UserError
from mm_lightning.outputs import write_json
from mm_lightning.ranges import Count, NonNegative, Range, checked
from mm_lightning.training.accumulation import served_sequences
from mm_lightning.training.data_order import (
    BAD_STEPS,
    ROLLBACKS,
    data_order_settings,
    locate_sequences,
    record_rollback,
    save_tokens,
)
from mm_lightning.training.lightning_internals import accumulating
from mm_lightning.training.loggers import drop_later_steps
from mm_lightning.training.rollback import restore
from mm_lightning.training.sharding import step_norm, watch_overflow

Window = Annotated[int, Range(4, 1_000_000)]


class BadStepGuard(Callback):
    """Keeps the update of a bad step away from the weights: one whose loss or gradient is not finite, or whose loss
    lies more than `sigma` standard deviations above the mean of the last `window` good steps.

    Whether a step is bad is decided on the device, from the loss and the gradient over all processes, before the
    optimiser's update, which then leaves weights, moments and their step counts as they are on every process, whatever
    `on_bad_step` says. The step counts as one: schedule, randomness and data go on. Nothing waits for the device: its
    numbers are read one step later. (DeepSpeed itself waits for the norm of every step.)

    Part of every `mm fit`, with these defaults; `trainer.callbacks` may name one with other settings. (Not of one in
    fp16, whose loss scale is found by leaving out updates.)

    `train/bad_steps` counts them, from the first one on. One step after a bad one the run folder gets
    `bad_steps/step=N/`, which `mm data show` reads: why, the numbers, the tokens that every process was given and where
    they lie. A run that ends in between has not got it.

    Args:
        on_bad_step: `skip` goes on. `rollback` goes back to the newest checkpoint from before the step, with the
            schedule, and trains on with the data that come next: what lay in between is not read again; without such
            a checkpoint it goes on like skip, and so do bad steps of which training ends before they are looked at.
            `stop` ends the run with an error.
        sigma: how many standard deviations make a spike; 0 asks for finite numbers only.
        window: of how many good steps; spikes are looked for when half of it is filled.
        patience: so many bad steps in a row, or returns to one checkpoint, end the run: it is not the batch.
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
        self._now = Step()
        self._before: Step | None = None  # the step whose numbers are on their way
        self._in_a_row = 0
        self._bad_steps = 0
        self._back: int | None = None  # the bad step to go back from
        self._returns = ("", 0)  # the last one, how often

    # What happens on the device

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Moves the window to the device."""
        self._losses.to(pl_module.device)
        if isinstance(trainer.strategy, DeepSpeedStrategy):
            watch_overflow(trainer.strategy.deepspeed_engine)
        elif not all(optimizer.defaults.get("fused") for optimizer in trainer.optimizers):
            raise UserError(
                "BadStepGuard needs a fused optimiser, which can leave out an update without being asked to wait"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Goes back to a checkpoint, if that was decided; remembers the batch."""
        if self._back is not None:
            self._go_back(trainer, pl_module)
        self._now.tokens.append(batch.tokens)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Judges the step's loss, as soon as all of it is known."""
        if accumulating(trainer):
            return
        sums = pl_module.step_sums().double()
        if trainer.world_size > 1:
            dist.all_reduce(sums)
        self._now.judge(self._losses, sums[0] / sums[1].clamp(min=1))
        if isinstance(trainer.strategy, DeepSpeedStrategy):  # it leaves out updates whose gradient is not finite
            factor = torch.where(self._now.bad, torch.nan, 1.0).to(loss.dtype)
            loss.register_hook(lambda gradient: gradient * factor)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Tells the optimiser, which asks on the device whether to do anything."""
        if isinstance(trainer.strategy, DeepSpeedStrategy):
            return
        norm = torch.nn.utils.get_total_norm([p.grad for p in pl_module.parameters() if p.grad is not None])
        self._now.norm = norm.double()
        self._now.bad = self._now.bad | ~norm.isfinite()
        optimizer.found_inf = self._now.bad.float()

    # What is looked at one step later

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Sends the step's numbers on their way and looks at those of the step before."""
        if accumulating(trainer):
            return
        if isinstance(trainer.strategy, DeepSpeedStrategy):
            norm, skipped = step_norm(trainer.strategy.deepspeed_engine)
            self._now.norm = torch.as_tensor(norm, dtype=torch.float64, device=pl_module.device)
            self._now.bad = self._now.bad | skipped
        self._now.send(trainer.global_step, served_sequences(trainer))
        looked_at, self._before, self._now = self._before, self._now, Step()
        if looked_at is not None:
            self._look(trainer, pl_module, looked_at)
        if self._bad_steps and trainer.global_step % trainer.log_every_n_steps == 0:
            pl_module.log_train({"train/bad_steps": float(self._bad_steps)})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the last step."""
        if self._before is not None:
            self._look(trainer, pl_module, self._before)
            self._before = None

    def _look(self, trainer: Trainer, pl_module: LightningModule, step: Step) -> None:
        bad, loss, norm, mean, deviation = step.read()
        self._in_a_row = self._in_a_row + 1 if bad else 0
        if not bad:
            return
        self._bad_steps += 1
        why = f"loss {loss:.6g}, gradient norm {norm:.6g}"
        if math.isfinite(loss) and self.sigma and loss > mean + self.sigma * deviation:
            why += (
                f", {(loss - mean) / max(deviation, 1e-12):.1f} standard deviations above the last losses ({mean:.6g})"
            )
        folder = self._keep(trainer, pl_module, step, why)
        look = f"`mm data show {quote(str(folder))}` shows its batch" if folder else "its batch could not be kept"
        bad = f"step {step.number} was bad: {why}. Its update was left out; {look}"
        if self.on_bad_step == "stop":
            raise UserError(
                f"{bad}. The run ends here because BadStepGuard has on_bad_step: stop. --resume goes on from the "
                f"newest checkpoint; with on_bad_step: skip it passes over such a batch"
            )
        if self._in_a_row >= self.patience:
            raise UserError(
                f"{bad}. It was the {self._in_a_row}th in a row (patience of BadStepGuard): it is not the batch. Try a "
                f"lower model.learning_rate from an earlier checkpoint"
            )
        say(bad)
        if self.on_bad_step == "rollback" and self._back is None:
            self._back = step.number

    def _keep(self, trainer: Trainer, pl_module: LightningModule, step: Step, why: str) -> Path | None:
        """Write down the batch; return the folder, or None if that was not possible."""
        folder = pl_module.run_folder.path / BAD_STEPS / f"step={step.number}"

        def write() -> None:
            self._write_batch(trainer, folder, step, why)

        ends = "the run ends without its batch" if self.on_bad_step == "stop" else None
        return folder if pl_module.run_folder.write(folder, write, ends) else None

    def _write_batch(self, trainer: Trainer, folder: Path, step: Step, why: str) -> None:
        """Every process writes its own tokens, the first one what is known of the step."""
        data = trainer.datamodule
        save_tokens(folder, trainer.global_rank, step.tokens)
        if trainer.is_global_zero:
            about = data_order_settings(data.weights, data.context_length, data.global_batch_size, data.seed)
            first = None if step.served is None else step.served - data.global_batch_size
            shape = {"micro_batch_size": data.micro_batch_size, "world_size": trainer.world_size}
            policy = {"on_bad_step": self.on_bad_step, "sigma": self.sigma, "window": self.window}
            values = {"step": step.number, "why": why, **policy, **shape, **about, "first": first}
            values |= {"sets": describe(data.sets), "tokenizer": data.tokenizer.sha256}
            if first is not None:
                values["sequences"] = locate_sequences(about, data.sets, first)
            write_json(folder / "step.json", values)

    # Going back

    def _checkpoint_before(self, trainer: Trainer, pl_module: LightningModule, bad: int) -> Path | None:
        """The newest that is there when it is needed: until then older ones may have been deleted."""
        path = None
        if trainer.is_global_zero:
            files = list_checkpoints(pl_module.run_folder.path)  # the newest first
            path = next((p for p in files if is_run_checkpoint(p) and step_of(p) < bad and is_complete(p)), None)
        path = trainer.strategy.broadcast(path)
        if path is None:
            say(f"there is no checkpoint from before step {bad} to go back to: the run goes on")
            return None
        self._returns = (path.name, self._returns[1] + 1 if path.name == self._returns[0] else 1)
        if self._returns[1] > self.patience:
            raise UserError(
                f"step {bad} is bad, and the run has gone back to {path} {self.patience} times (its patience): "
                f"it is not the batch. Try a lower model.learning_rate from an earlier checkpoint"
            )
        return path

    def _go_back(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Everything is as in the checkpoint but for the data, which go on."""
        assert self._back is not None
        path, self._back = self._checkpoint_before(trainer, pl_module, self._back), None
        if path is None:
            return
        left = trainer.global_step
        own = (self._returns, self._bad_steps)
        restore(trainer, path)
        self._returns, self._bad_steps = own
        self._in_a_row, self._before, self._now = 0, None, Step()
        pl_module.begin_step()
        for callback in trainer.callbacks:
            if isinstance(callback, Checkpoints):
                callback.on_train_start(trainer, pl_module)
        step, data = trainer.global_step, trainer.datamodule
        if trainer.is_global_zero:
            drop_later_steps(trainer, step)
        if trainer.is_global_zero and (first := served_sequences(trainer)) is not None:
            about = data_order_settings(data.weights, data.context_length, data.global_batch_size, data.seed)
            first -= data.micro_batch_size * trainer.world_size  # of the batch that comes next
            run = pl_module.run_folder
            run.write(
                run.path / ROLLBACKS, partial(record_rollback, run.path, step, first, about, left=left), retry=True
            )
        say(f"went back from step {left} to {path}; the data of {left - step} steps are passed over")

    def state_dict(self) -> dict[str, Any]:
        """The losses that spikes are measured by."""
        return {**self._losses.state(), "bad_steps": self._bad_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The opposite."""
        self._losses.load(state)
        self._bad_steps = state["bad_steps"]
