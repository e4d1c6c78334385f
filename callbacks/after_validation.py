"""What looks inside a network in training after each validation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mm_lightning.data import Batch
from mm_lightning.memory.documents import Documents
from mm_lightning.networks import Network
from mm_lightning.training.evaluation_mode import evaluation_mode


class AfterValidation(Callback, ABC):
    """Looks at the network on the first process. All such callbacks of a trainer are lent it together: under ZeRO-3 one
    whole copy serves them all."""

    def due(self) -> bool:
        """Whether there is something to look at."""
        return True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first of them that are due lends the network to all."""
        due = [callback for callback in trainer.callbacks if isinstance(callback, AfterValidation) and callback.due()]
        if trainer.state.fn != "fit" or trainer.sanity_checking or self not in due[:1]:
            return
        with evaluation_mode(trainer, pl_module) as network:
            for callback in due if trainer.is_global_zero else ():
                callback.look(trainer, network)

    def numbered(self, name: str, trainer: Trainer) -> str:
        """Return a tag that no other callback of this class writes: the first one's is the name, then come /2, /3..."""
        place = [callback for callback in trainer.callbacks if type(callback) is type(self)].index(self)
        return f"{name}/{place + 1}" if place else name

    @abstractmethod
    def look(self, trainer: Trainer, network: Network) -> None:
        """Called with the whole network, in evaluation mode."""


class ValidationRows(AfterValidation):
    """Looks at what a network does with the first sequences of the first validation batch: nothing is read that
    validation does not read.

    Args:
        sequences: how many at most; 0 looks at none.

    Attributes:
        batch: what was kept last.
    """

    def __init__(self, sequences: int) -> None:
        self.sequences = sequences
        self.batch: Batch | None = None

    def due(self) -> bool:
        """Once it has seen a batch."""
        return self.batch is not None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the first sequences."""
        if batch_idx == dataloader_idx == 0 and self.sequences:
            part = slice(min(self.sequences, len(batch)))
            documents = Documents.from_starts(batch.documents.position[part] == 0)
            self.batch = Batch(batch.tokens[part], batch.targets[part], documents)
