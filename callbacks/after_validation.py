"""Base classes of callbacks that inspect the network in training after each validation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from lightning.pytorch import Callback, Trainer

from mm_lightning.data import Batch
from mm_lightning.memory.documents import Documents
from mm_lightning.networks import Network
from mm_lightning.training.evaluation_mode import evaluation_mode
from mm_lightning.training.lightning_internals import callbacks_of
from mm_lightning.training.module import LanguageModule


class AfterValidation(Callback, ABC):
    """Inspect the network on the first process after each validation.

    The first such callback of a trainer calls :meth:`inspect` of all of them: under ZeRO-3 one gathered copy of the
    network serves all.
    """

    def has_input(self) -> bool:
        """Return whether there is something to inspect the network with."""
        return True

    def on_validation_end(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        inspecting = callbacks_of(trainer, AfterValidation)  # type: ignore[type-abstract]
        ready = [callback for callback in inspecting if callback.has_input()]
        if trainer.state.fn != "fit" or trainer.sanity_checking or self not in ready[:1]:
            return
        with evaluation_mode(trainer, pl_module) as network:
            for callback in ready if trainer.is_global_zero else ():
                callback.inspect(trainer, network)

    def unique_tag(self, name: str, trainer: Trainer) -> str:
        """Return a tag that no other callback of this class writes: `name` for the first one, then `name/2`, ..."""
        index = [callback for callback in callbacks_of(trainer, Callback) if type(callback) is type(self)].index(self)
        return f"{name}/{index + 1}" if index else name

    @abstractmethod
    def inspect(self, trainer: Trainer, network: Network) -> None:
        """Inspect the whole network, in evaluation mode; called on the first process only."""


class OnValidationBatch(AfterValidation):
    """Inspect the network on the first sequences of the first validation batch.

    Args:
        sequences: how many at most; 0 inspects nothing.

    Attributes:
        batch: those sequences of the last validation.
    """

    def __init__(self, sequences: int) -> None:
        self.sequences = sequences
        self.batch: Batch | None = None

    def has_input(self) -> bool:
        """Return whether a validation batch was seen."""
        return self.batch is not None

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LanguageModule, _: Any, batch: Any, *at: int
    ) -> None:
        """Keep the first sequences of the first batch of the first data set."""
        if self.sequences and not any(at):
            rows = slice(min(self.sequences, len(batch)))
            documents = Documents.from_starts(batch.documents.position[rows] == 0)
            self.batch = Batch(batch.tokens[rows], batch.targets[rows], documents)
