"""What is measured of an optimisation step on the device, and what its loss is held against."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


class LossWindow:
    """The last losses of good steps, on the device.

    Args:
        sigma: how many standard deviations above the mean make a loss bad; 0 asks for finite ones only.
        size: how many losses.
    """

    def __init__(self, sigma: float, size: int) -> None:
        self.sigma, self.size = sigma, size
        self.losses = torch.zeros(size, dtype=torch.float64)  # a ring
        self.count = torch.zeros((), dtype=torch.int64)  # of all good steps

    def to(self, device: torch.device) -> None:
        """Moves it."""
        self.losses, self.count = self.losses.to(device), self.count.to(device)

    def judge(self, loss: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whether a loss, a scalar, is bad, and the mean and standard deviation before it; takes it in if it is not."""
        place = torch.arange(self.size, device=self.losses.device)
        known = (place < self.count).double()
        number = self.count.clamp(max=self.size)
        mean = (self.losses * known).sum() / number.clamp(min=1)
        deviation = (((self.losses - mean).square() * known).sum() / (number - 1).clamp(min=1)).sqrt()
        bad = ~loss.isfinite()
        if self.sigma:
            bad = bad | ((number * 2 >= self.size) & (loss > mean + self.sigma * deviation))
        self.losses = torch.where((place == self.count % self.size) & ~bad, loss, self.losses)
        self.count = self.count + (~bad)
        return bad, mean, deviation

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {"losses": self.losses.cpu(), "count": self.count.cpu()}

    def load(self, state: dict[str, Tensor]) -> None:
        """From a checkpoint; of another size the newest losses."""
        losses, count, device = state["losses"], state["count"], self.losses.device
        if len(losses) != self.size:
            newest = losses.roll(-(int(count) % len(losses))) if count >= len(losses) else losses[: int(count)]
            newest = newest[-self.size :]
            losses, count = torch.zeros(self.size, dtype=torch.float64), torch.tensor(len(newest))
            losses[: len(newest)] = newest
        self.losses, self.count = losses.to(device), count.to(device)


@dataclass
class Step:
    """What is known of a step.

    Attributes:
        tokens: (B, T) of each batch that this process was given.
        loss: mean over the predicted tokens of all processes; a float64 scalar on the device, as all numbers here.
        norm: of the gradient of all processes, before clipping.
        number: of finished steps, this one included.
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

    def judge(self, losses: LossWindow, loss: Tensor) -> None:
        """Takes in the loss and what the window says of it."""
        self.loss = loss
        self.bad, self.mean, self.deviation = losses.judge(loss)

    def send(self, number: int, served: int | None) -> None:
        """Starts copying the numbers to the host."""
        self.number, self.served = number, served
        values = torch.stack([self.bad.double(), self.loss, self.norm, self.mean, self.deviation])
        self._arrived = None
        if values.is_cuda:
            self._values = torch.empty(5, dtype=torch.float64, pin_memory=True).copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._values = values

    def read(self) -> list[float]:
        """Whether it is bad, loss, norm, mean and deviation."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.tolist()
