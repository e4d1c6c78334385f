"""Figure 1 of the v2 paper as a task: with what weight the last token of a document reads each pair before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from mm_lightning.errors import UserError
from mm_lightning.evaluation.documents import of_files, of_run, stretches
from mm_lightning.evaluation.task import Item, Record, Row, Task, mean_row

if TYPE_CHECKING:
    from torch import Tensor

    from mm_lightning.evaluation.model import Model

STEPS = 4  # bins in a doubling of the distance


@dataclass
class RetrievalProfile(Task):
    """The task `retrieval_profile`.

    Args:
        contexts: the length of the documents in tokens, one number; None for the training context.
        limit: documents.
        text: text files, or a folder of prepared data; None for the network's own validation documents.
    """

    name: ClassVar[str] = "retrieval_profile"
    contexts: list[int] | None = None
    limit: int | None = 32
    text: list[str] | None = None

    def __post_init__(self) -> None:
        if self.contexts is not None and (len(self.contexts) != 1 or self.contexts[0] < 2):
            raise UserError(f"contexts of retrieval_profile is one length of at least 2 tokens, got {self.contexts}")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit must be at least 1, got {self.limit}")

    def items(self, model: Model) -> list[Item]:
        """The documents; neighbouring ones are joined where there are not enough long ones.

        Raises:
            UserError: the length is unknown, or there is too little text.
        """
        length = self.contexts[0] if self.contexts else model.context_length
        if length is None:
            raise UserError("the training context is unknown: say --contexts")
        documents = of_files(self.text, model.tokenizer) if self.text else of_run(model.checkpoint, model.tokenizer)
        found = stretches(documents, length - 1, self.limit or len(documents.parts))
        if not found:
            raise UserError(f"{documents.source} has no {length:,} tokens: shorter --contexts, or more files by --text")
        return [Item(f"{length} tokens, {n}, {documents.source}", {}, stretch) for n, stretch in enumerate(found)]

    def ask(self, model: Model, items: list[Item]) -> Iterator[Record]:
        """Reads one document after the other."""
        import torch

        from mm_lightning.inspection.profile import retrieval_profile

        for item in items:
            tokens = torch.tensor([[model.bos, *item.content.tokens.tolist()]], device=model.device)
            with model.computing():
                mean = retrieval_profile(model.network, tokens).mean()  # (L, H, T) by level
            profile = {level: binned(weights.mean(1)) for level, weights in mean.items()}
            own = {level: float(weights[..., 0].mean()) for level, weights in mean.items()}
            yield item.record({}, blocks=profile, own_position=own, documents=item.content.documents)

    def rows(self, records: list[Record]) -> list[Row]:
        """The mean weight of a pair over blocks and heads, by level and distance; attention reads its own place too."""
        found = []
        for level, places in records[0]["blocks"].items():
            for place in places:
                values = [sum(r["blocks"][level][place]) / len(r["blocks"][level][place]) for r in records]
                found.append(mean_row({"level": level, "distance": place}, "weight", values))
            if any(record["own_position"][level] for record in records):
                values = [record["own_position"][level] for record in records]
                found.append(mean_row({"level": level}, "weight of its own position", values))
        return found


def binned(weights: Tensor) -> dict[str, list[float]]:
    """The mean weight of each block in bins of distances from 1 on, `low-high`, from (L, T) weights by distance."""
    last = weights.shape[1] - 1
    edges = sorted(
        {min(last + 1, round(2 ** (n / STEPS))) for n in range(STEPS * (last.bit_length() + 1))} | {last + 1}
    )
    return {f"{low}-{high - 1}": weights[:, low:high].mean(1).tolist() for low, high in pairwise(edges)}
