"""Loss against position in the context, far beyond the context of training: where does a network break?

A sequence is one document of the longest context. Each of its tokens is predicted from all that came before it, so that
the same sequences serve every shorter context: what comes after a position does not matter to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from mm_lightning.evaluation.measurement import Measurement, Row
from mm_lightning.evaluation.metrics import Metric
from mm_lightning.evaluation.task import Item, Record
from mm_lightning.evaluation.text_task import ReadingTask

if TYPE_CHECKING:
    from mm_lightning.evaluation.model import Model

FIRST = 32  # the first bin is of so many positions
STEPS = 2  # bins in a doubling of the position
RISE = "above the training context"


@dataclass
class LossByPosition(ReadingTask):
    """The task `loss_by_position`, by default up to 8 times the training context."""

    name: ClassVar[str] = "loss_by_position"
    least: ClassVar[int] = 2 * FIRST
    multiples: ClassVar[tuple[int, ...]] = (1, 2, 4, 8)

    def items(self, model: Model) -> list[Item]:
        """Return the sequences, of the longest context."""
        documents = self.documents(model)
        return [
            Item(key, {"documents": "joined" if len(stretch.documents) > 1 else "whole"}, (documents.source, stretch))
            for key, stretch in self.sequences(documents, self.lengths(model)[-1]).items()
        ]

    def ask(self, model: Model, items: list[Item]) -> Iterator[Record]:
        """Read the sequences, as many side by side as fit."""
        import torch

        lengths = self.lengths(model)
        bins = edges(lengths, model.context_length)
        size = model.rows_of(lengths[-1])
        for at in range(0, len(items), size):
            batch = items[at : at + size]
            rows = torch.tensor([[model.bos, *item.content[1].tokens.tolist()] for item in batch], dtype=torch.int64)
            losses = torch.cat([piece.double().cpu() for piece in model.losses(rows)], 1)
            for item, loss in zip(batch, losses, strict=True):
                source, stretch = item.content
                means = {f"{low + 1}-{high}": float(loss[low:high].mean()) for low, high in pairwise(bins)}
                yield item.record(
                    {str(length): float(loss[:length].mean()) for length in lengths},
                    positions=means,
                    training_context=model.context_length,
                    source=source,
                    documents=stretch.documents,
                    begins=model.decode(stretch.tokens[:24].tolist()),
                )

    def measurements(self, records: Sequence[Record]) -> list[Measurement]:
        """Loss of each context, of each bin of positions, and by how much it is above that at the training context."""
        loss, rise = self.metric("loss"), self.metric(RISE)

        def of(group: dict[str, Any], metric: Metric, value: Callable[[Record], float]) -> Measurement:
            return Measurement(group, metric, {record["key"]: value(record) for record in records})

        measurements = [
            of({"context": int(length)}, loss, lambda record, n=length: record["scores"][n])  # type: ignore[misc]
            for length in records[0]["scores"]
        ]
        places = list(records[0]["positions"])
        measurements += [of({"position": p}, loss, lambda record, p=p: record["positions"][p]) for p in places]  # type: ignore[misc]
        trained = records[0]["training_context"]
        if trained and bounds(places[-1])[1] >= trained:

            def base(record: Record) -> float:
                return over(record["positions"], trained // 2, trained)

            measurements.append(of({"training context": trained}, loss, base))
            measurements += [
                of({"position": p}, rise, lambda record, p=p: record["positions"][p] - base(record))  # type: ignore[misc]
                for p in places
                if bounds(p)[0] >= trained
            ]
            for low, high in relative_bins(trained, bounds(places[-1])[1]):
                group = {"of the training context": f"{low / trained:g}-{high / trained:g}"}
                measurements.append(of(group, loss, lambda record, a=low, b=high: over(record["positions"], a, b)))  # type: ignore[misc]
        return measurements

    def rows(self, records: list[Record]) -> list[Row]:
        """Return also how many sequences are joined of several documents."""
        joined = [float(len(record["documents"]) > 1) for record in records]
        share = sum(joined) / len(joined)
        group = {"sequences": "joined of several documents"}
        return [*super().rows(records), Row(group, "share", share, None, len(joined), "share")]

    def headline(self, rows: list[Row]) -> list[Row]:
        """Return the losses of whole contexts; those by position are in the report."""
        return [row for row in rows if "context" in row.group]

    def compared(self, rows: list[Row]) -> list[Row]:
        """Return the losses of whole contexts and by position."""
        return [row for row in rows if row.metric == "loss" and row.group.keys() & {"context", "position"}]


def edges(lengths: Sequence[int], trained: int | None) -> list[int]:
    """Return the edges of bins of positions, at equal ratios; every context and half the training context is one."""
    bin_edges = {0, *lengths}
    if trained is not None:
        bin_edges |= {n for n in (trained // 2, trained) if n < lengths[-1]}
        bin_edges |= {trained * times for times in (2, 4, 8, 16, 32, 64) if trained * times < lengths[-1]}
    step = 0
    while (edge := round(FIRST * 2 ** (step / STEPS))) < lengths[-1]:
        if all(abs(edge - other) > 0.1 * edge for other in bin_edges):  # no slivers beside the named ones
            bin_edges.add(edge)
        step += 1
    return sorted(bin_edges)


def bounds(place: str) -> tuple[int, int]:
    """129-256 -> (128, 256)"""
    low, high = place.split("-")
    return int(low) - 1, int(high)


def over(positions: dict[str, float], low: int, high: int) -> float:
    """Return the mean over the bins from one edge to another."""
    inside = [(bounds(p), value) for p, value in positions.items() if low <= bounds(p)[0] and bounds(p)[1] <= high]
    return sum((b - a) * value for (a, b), value in inside) / sum(b - a for (a, b), _ in inside)


def relative_bins(trained: int, top: int) -> list[tuple[int, int]]:
    """Return the positions up to half the training context, up to it, and from each doubling of it to the next."""
    bins = [(0, trained // 2), (trained // 2, trained)]
    while bins[-1][1] * 2 <= top:
        bins.append((bins[-1][1], bins[-1][1] * 2))
    return bins
