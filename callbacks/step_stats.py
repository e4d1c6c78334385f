"""Statistics of an optimization step on the device, and the window of losses that it is judged by."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


class LossWindow:
    """The last losses of good steps, kept on the device.

    Args:
        sigma: how many standard deviations above the mean make a loss a spike; 0 detects non-finite losses only.
        size: number of losses.
    """

    def __init__(self, sigma: float, size: int) -> None:
        self.sigma, self.size = sigma, size
        self.losses = torch.zeros(size, dtype=torch.float64)  # a ring buffer
        self.count = torch.zeros((), dtype=torch.int64)  # of all good steps

    def to(self, device: torch.device) -> None:
        """Move the window to a device."""
        self.losses, self.count = self.losses.to(device), self.count.to(device)

    def judge(self, loss: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return whether a scalar loss is bad, and mean and deviation of the window; add the loss if it is good."""
        slot = torch.arange(self.size, device=self.losses.device)
        filled = (slot < self.count).double()
        number = self.count.clamp(max=self.size)
        mean = (self.losses * filled).sum() / number.clamp(min=1)
        deviation = (((self.losses - mean).square() * filled).sum() / (number - 1).clamp(min=1)).sqrt()
        bad = ~loss.isfinite()
        if self.sigma:
            bad = bad | ((number * 2 >= self.size) & (loss > mean + self.sigma * deviation))
        self.losses = torch.where((slot == self.count % self.size) & ~bad, loss, self.losses)
        self.count = self.count + (~bad)
        return bad, mean, deviation

    def state(self) -> dict[str, Tensor]:
        """Return the losses and their count, for a checkpoint."""
        return {"losses": self.losses.cpu(), "count": self.count.cpu()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore losses and count from a checkpoint; the newest losses if its window has another size."""
        losses, count, device = state["losses"], state["count"], self.losses.device
        if len(losses) != self.size:
            newest = losses.roll(-(int(count) % len(losses))) if count >= len(losses) else losses[: int(count)]
            newest = newest[-self.size :]
            losses, count = torch.zeros(self.size, dtype=torch.float64), torch.tensor(len(newest))
            losses[: len(newest)] = newest
        self.losses, self.count = losses.to(device), count.to(device)


@dataclass
class Step:
    """Statistics of one optimization step.

    Attributes:
        tokens: (B, T) of each batch of this process.
        loss: mean over the predicted tokens of all processes; a float64 scalar on the device, as the others here.
        norm: gradient norm over all processes, before clipping.
        bad: whether the update is to be skipped.
        mean, deviation: mean and standard deviation of the losses in the window before this step.
        number: finished steps, this one included.
        served: sequences served to all devices so far.
    """

    tokens: list[Tensor] = field(default_factory=list)
    loss: Tensor = field(default_factory=lambda: torch.zeros(()))
    norm: Tensor = field(default_factory=lambda: torch.zeros(()))
    bad: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.bool))
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    deviation: Tensor = field(default_factory=lambda: torch.zeros(()))
    number: int = 0
    served: int | None = None

    def send(self, number: int, served: int | None) -> None:
        """Start to copy the statistics to the host."""
        self.number, self.served = number, served
        values = torch.stack([self.bad.double(), self.loss, self.norm, self.mean, self.deviation])
        self._copied = None
        if values.is_cuda:
            self._values = torch.empty(5, dtype=torch.float64, pin_memory=True).copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        else:
            self._values = values

    def read(self) -> list[float]:
        """Return bad, loss, norm, mean and deviation, as they arrived on the host."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values.tolist()
