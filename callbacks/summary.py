"""Print the results of a run, its folder and the next commands."""

from __future__ import annotations

import math
import time
from shlex import quote

from lightning.pytorch import Callback, Trainer

from mm_lightning.callbacks.samples import Samples
from mm_lightning.checkpoint.discovery import list_checkpoints
from mm_lightning.console import clock
from mm_lightning.data.mixture import bits_per_byte, mean
from mm_lightning.terminal import display
from mm_lightning.training.lightning_internals import callbacks_of, datamodule_of
from mm_lightning.training.module import LanguageModule


class Summary(Callback):
    """Print a summary at the end of training: validation loss, perplexity and bits per byte beside those of the unigram
    baseline (a model that knows how often each token occurs and nothing else), a sample, the run folder, and
    commands to try next, of which the first writes that sample again.
    """

    _begin: float | None = None  # of training
    _first = _validated = 0  # steps

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Start the clock."""
        self._begin, self._first = time.perf_counter(), trainer.global_step

    def on_validation_end(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Remember the step that was validated."""
        self._validated = trainer.global_step

    def on_fit_end(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Print the summary on the first process, if anything was trained."""
        if not trainer.is_global_zero or self._begin is None:
            return
        seconds = time.perf_counter() - self._begin
        folder = pl_module.run_folder.path
        samplers = [sampler for sampler in callbacks_of(trainer, Samples) if sampler.last is not None]
        steps = f"{trainer.global_step - self._first} steps in {clock(seconds)}"
        in_all = f", {trainer.global_step} in all" if self._first else ""
        lines = [steps + in_all, *self._scores(trainer), ""]
        for sampler in samplers:
            lines += ["a sample:", *(f"  {line}" for line in ((sampler.prompt or "") + sampler.last).splitlines()), ""]
        lines.append(f"run folder: {folder}")
        saved = bool(list_checkpoints(folder))
        commands = [f"tensorboard --logdir {quote(str(folder.parent))}"]
        if saved:
            commands.append(f"mm validate --config {quote(str(folder / 'config.yaml'))}")
            commands[:0] = [s.command(folder) for s in samplers] or [f"mm generate --checkpoint {quote(str(folder))}"]
        display("\n".join(["", *lines, "", "try next:", *(f"  {command}" for command in commands)]), flush=True)

    def _scores(self, trainer: Trainer) -> list[str]:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if "validation/loss" not in metrics:
            return ["no validation was run"]
        sets = datamodule_of(trainer).validated
        rows = [("this network", metrics["validation/loss"], sets)]
        if sets:
            baselines = [s.manifest.splits["validation"].unigram_entropy for s in sets]
            rows.append(("unigram baseline", mean(sets, baselines), sets))
            if len(sets) > 1:
                rows += [(f"on {s.name}", metrics[f"validation/loss/{s.name}"], [s]) for s in sets]
                rows += [(f"unigram on {s.name}", loss, [s]) for s, loss in zip(sets, baselines, strict=True)]
        lines = [f"{'on validation documents':<24} {'loss':>8} {'perplexity':>11} {'bits per byte':>14}"]
        for name, loss, measured in rows:
            bits = bits_per_byte(measured, loss) if measured else math.nan
            lines.append(f"  {name:<22} {loss:>8.3f} {math.exp(min(loss, 700)):>11.1f} {bits:>14.3f}")
        if self._validated != trainer.global_step:
            lines.append(f"validated after step {self._validated}; training ended after step {trainer.global_step}")
        return lines
