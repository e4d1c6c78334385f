"""Gradient accumulation: how many batches make up a step, which step is the last, and what is due by the clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mm_lightning.data.sequences import TrainingOrder
from mm_lightning.errors import UserError
from mm_lightning.training.lightning_internals import finished_epochs, log_interval

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def accumulation_steps(global_batch: int, micro_batch: int, devices: int, per_node: int = 1) -> int:
    """Return the number of micro batches that each device accumulates in an optimization step.

    Args:
        global_batch: sequences in an optimization step, over all devices.
        micro_batch: sequences in a forward pass of one device.
        devices: in all.
        per_node: devices of each node: only whole nodes are proposed.

    Raises:
        UserError: the three do not fit together; it names the nearest numbers that do.
    """
    sequences = micro_batch * devices
    if global_batch % sequences == 0:
        return global_batch // sequences
    multiples = range(sequences, global_batch + sequences, sequences)
    choices = [f"data.global_batch_size {_nearest(multiples, global_batch)}"]
    whole_nodes = range(per_node, global_batch // micro_batch + 1, per_node)
    if counts := [n for n in whole_nodes if global_batch % (micro_batch * n) == 0]:
        nodes = f" ({_nearest([n // per_node for n in counts], devices / per_node)} nodes)" if per_node > 1 else ""
        choices.append(f"{_nearest(counts, devices)} devices{nodes}")
    if global_batch % devices == 0:
        sizes = [n for n in range(1, global_batch // devices + 1) if global_batch // devices % n == 0]
        choices.append(f"data.micro_batch_size {_nearest(sizes, micro_batch)}")
    raise UserError(
        f"data.global_batch_size {global_batch} is not a multiple of data.micro_batch_size {micro_batch} x {devices} "
        f"devices = {sequences}. What fits: {', or '.join(choices)}"
    )


def check_loader(trainer: Trainer) -> None:
    """Check that a loader that was taken out of its data module gets whole global batches.

    Raises:
        UserError: a step would take another number of sequences.
    """
    loader: Any = trainer.train_dataloader
    order = getattr(loader, "sampler", None)
    if not isinstance(order, TrainingOrder):
        return
    batch = loader.batch_size * order.world_size * trainer.accumulate_grad_batches
    if order.multiple != batch or order.world_size != trainer.world_size:
        raise UserError(
            f"the loader was built for global_batch_size {order.multiple} on {order.world_size} devices, but a "
            f"step of this trainer takes {batch} sequences on {trainer.world_size}: pass the data module instead, "
            f"fit(..., datamodule=data), which sets accumulation"
        )


def served_sequences(trainer: Trainer) -> int | None:
    """Return how many sequences all devices have read; None where the loader does not count (overfit_batches)."""
    loader: Any = trainer.train_dataloader
    return loader.state_dict()["sequences"] if hasattr(loader, "state_dict") else None


def agreed(trainer: Trainer, due: bool) -> bool:
    """Return whether something is due by the clock of the first process; several processes ask at log steps only."""
    if trainer.world_size > 1 and trainer.global_step % log_interval(trainer):
        return False
    return trainer.strategy.broadcast(due)


def is_last_step(trainer: Trainer) -> bool:
    """Return whether the step that a batch has finished is the last one, by trainer.max_steps or trainer.max_epochs."""
    epochs, epoch = trainer.max_epochs or -1, finished_epochs(trainer) + 1
    return trainer.global_step == trainer.max_steps or (trainer.is_last_batch and 0 < epochs <= epoch)


def _nearest(values: Sequence[int], number: float) -> str:
    """Return "32 or 64", the nearest of sorted values below a number and above it, as far as there are any."""
    near = [n for n in values if n < number][-1:] + [n for n in values if n > number][:1]
    return " or ".join(map(str, near))
