"""Figure 1 of the v2 paper as a task: with what weight the last token of a document reads each pair before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar

from mm_lightning.errors import UserError
from mm_lightning.evaluation.measurement import Measurement
from mm_lightning.evaluation.task import Item, Record
from mm_lightning.evaluation.text_task import ReadingTask

if TYPE_CHECKING:
    from torch import Tensor

    from mm_lightning.evaluation.model import Model

STEPS = 4  # bins in a doubling of the distance


@dataclass
class RetrievalProfile(ReadingTask):
    """The task `retrieval_profile`, by default at the training context."""

    name: ClassVar[str] = "retrieval_profile"
    version: ClassVar[int] = 2
    least: ClassVar[int] = 2

    def items(self, model: Model) -> list[Item]:
        """Return the documents of each length; neighboring ones are joined where there are not enough long ones.

        Raises:
            UserError: the network reads no pairs.
        """
        from mm_lightning.memory.retrieval import Retrieval

        if not any(isinstance(module, Retrieval) for module in model.network.modules()):
            raise UserError(
                f"retrieval_profile shows how stored pairs are read, and {type(model.network).__name__} "
                f"({model.checkpoint}) stores none: evaluate it without this task"
            )
        documents = self.documents(model)
        return [
            Item(key, {"context": length}, stretch)
            for length in self.lengths(model)
            for key, stretch in self.sequences(documents, length - 1).items()
        ]

    def ask(self, model: Model, items: list[Item]) -> Iterator[Record]:
        """Read one document after the other."""
        import torch

        from mm_lightning.inspection.profile import retrieval_profile

        for item in items:
            tokens = torch.tensor([[model.bos, *item.content.tokens.tolist()]], device=model.device)
            with model.computing():
                mean = retrieval_profile(model.network, tokens).mean()  # (L, H, T) by level
            profile = {level: binned(weights.mean(1)) for level, weights in mean.items()}
            self_weight = {level: float(weights[..., 0].mean()) for level, weights in mean.items()}
            yield item.record({}, blocks=profile, own_position=self_weight, documents=item.content.documents)

    def measurements(self, records: Sequence[Record]) -> list[Measurement]:
        """Return mean weights over blocks and heads by level and distance, of those that are read.

        Attention reads its own place too.
        """
        measurements = []
        for context in dict.fromkeys(record["group"]["context"] for record in records):
            same = [record for record in records if record["group"]["context"] == context]
            for level, places in same[0]["blocks"].items():
                group = {"context": context, "level": level}
                for place in places:
                    values = {record["key"]: fmean(record["blocks"][level][place]) for record in same}
                    if any(values.values()):  # neither nearer than the delay nor beyond the window
                        measurements.append(Measurement({**group, "distance": place}, self.metric("weight"), values))
                self_weights = {record["key"]: record["own_position"][level] for record in same}
                if any(self_weights.values()):
                    measurements.append(Measurement(group, self.metric("weight of its own position"), self_weights))
        return measurements


def binned(weights: Tensor) -> dict[str, list[float]]:
    """Return the mean weight of each block in bins of distances from 1 on, `low-high`, from (L, T) weights."""
    last = weights.shape[1] - 1
    edges = sorted(
        {min(last + 1, round(2 ** (n / STEPS))) for n in range(STEPS * (last.bit_length() + 1))} | {last + 1}
    )
    return {f"{low}-{high - 1}": weights[:, low:high].mean(1).tolist() for low, high in pairwise(edges)}
