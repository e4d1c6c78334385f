"""Learning-rate schedules: a linear warm-up, then one by name or an LRScheduler of torch or a user by class_path."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from mm_lightning.errors import UserError
from mm_lightning.training.choices import Choice, named_class


def cosine(step: int, warmup: int, steps: float, final: float) -> float:
    """Return the learning rate of a half cosine from the peak to `final` in the last step (v2 paper, Appendix C)."""
    return final + (1 - final) * (1 + math.cos(math.pi * _share(step, warmup, steps))) / 2


def linear(step: int, warmup: int, steps: float, final: float) -> float:
    """Return the learning rate of a straight line from the peak to `final` in the last step."""
    return 1 - (1 - final) * _share(step, warmup, steps)


def _share(step: int, warmup: int, steps: float) -> float:
    return min((step - warmup) / max(steps - warmup - 1, 1), 1)


def wsd(step: int, warmup: int, steps: float, final: float, decay: float) -> float:
    """Return the learning rate of the peak until a straight line falls to `final` over the last steps.

    Args:
        step: the step, counted from 0.
        warmup: steps of warm-up.
        steps: all steps.
        final: the learning rate of the last step, as a fraction of the peak.
        decay: steps of the decay; below 1, their share of all steps.
    """
    length = min(round(decay * steps) if decay < 1 else decay, steps - warmup)
    return 1 - (1 - final) * min(max(step + 1 - (steps - length), 0) / max(length, 1), 1)


NAMES = ("cosine", "linear", "wsd", "constant", "inverse_sqrt")


class Schedule:
    """The learning rate of each step, counted from 0, as a fraction of the peak: a function of the step alone.

    Args:
        choice: one of :data:`NAMES`, or an LRScheduler: its class, or class_path and init_args.
        learning_rate: the peak.
        warmup: steps of linear warm-up from 0, whatever follows.
        final: where cosine, linear and wsd end, as a fraction of the peak.
        decay: steps of wsd's decay, or their share of all steps; 0 for none.
        steps: returns the number of all steps; called for steps after the first one at the peak.

    Raises:
        UserError: there is no such schedule.
    """

    def __init__(
        self, choice: Choice, learning_rate: float, warmup: int, final: float, decay: float, steps: Callable[[], float]
    ) -> None:
        self.warmup, self.final, self.decay, self.steps = warmup, final, decay, steps
        self.name = choice.name if choice.name in NAMES else ""
        self.rates = None if self.name else SchedulerRates(choice, learning_rate)

    def factor(self, step: int) -> float:
        """Return the learning rate of a step."""
        rise = min((step + 1) / max(self.warmup, 1), 1.0)
        if self.rates is not None:
            return rise * self.rates[max(step - self.warmup, 0)]
        if step <= self.warmup:
            return rise
        if self.name == "inverse_sqrt":
            return math.sqrt(max(self.warmup, 1) / step)
        if self.name == "constant" or (self.name == "wsd" and not self.decay):
            return 1.0
        if self.name == "wsd":
            return wsd(step, self.warmup, self.steps(), self.final, self.decay)
        return (cosine if self.name == "cosine" else linear)(step, self.warmup, self.steps(), self.final)


class SchedulerRates:
    """The learning rates of an LRScheduler after each of its steps, as fractions of the first.

    It is run over an optimizer of its own, so that its rates are a function of the step, which a resumed run, a
    rollback or changed settings need no state for.

    Args:
        choice: the class, or class_path and init_args.
        learning_rate: the peak.
    """

    def __init__(self, choice: Choice, learning_rate: float) -> None:
        scheduler_class = named_class("model.schedule", choice.name, LRScheduler, lr_scheduler, NAMES)
        if scheduler_class is lr_scheduler.ReduceLROnPlateau:
            raise UserError(f"model.schedule ReduceLROnPlateau is no function of the step: take {', '.join(NAMES)}")
        self.optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=learning_rate, momentum=0.9)
        try:
            self.scheduler = scheduler_class(self.optimizer, **choice.init_args)
        except (TypeError, ValueError) as error:
            takes = ", ".join(list(inspect.signature(scheduler_class).parameters)[1:])
            raise UserError(
                f"model.schedule {scheduler_class.__name__}: {error}; its init_args may be {takes}"
            ) from error
        self.peak = learning_rate
        self.known = [self._rate()]

    def _rate(self) -> float:
        rate: Any = self.optimizer.param_groups[0]["lr"]
        return float(rate) / self.peak

    def __getitem__(self, step: int) -> float:
        while len(self.known) <= step:
            self.optimizer.step()  # which torch wants before a step of the scheduler
            self.scheduler.step()
            self.known.append(self._rate())
        return self.known[step]
