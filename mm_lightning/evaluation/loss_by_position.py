"""Loss against position in the context, far beyond the context of training: where does a network break?

A sequence is one document of the longest context. Each of its tokens is predicted from all that came before it, so that
the same sequences serve every shorter context: what comes after a position does not matter to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from mm_lightning.evaluation.task import Item, Record, Result, Row, mean_row
from mm_lightning.evaluation.text_task import ReadingTask
from mm_lightning.markdown import markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mm_lightning.evaluation.model import Model

FIRST = 32  # the first bin is of so many positions
STEPS = 2  # bins in a doubling of the position
BREAKS = 0.1
"""Nats above the loss at the training context from which on a network counts as broken."""


@dataclass
class LossByPosition(ReadingTask):
    """The task `loss_by_position`, by default up to 8 times the training context."""

    name: ClassVar[str] = "loss_by_position"
    least: ClassVar[int] = 2 * FIRST
    multiples: ClassVar[tuple[int, ...]] = (1, 2, 4, 8)

    def items(self, model: Model) -> list[Item]:
        """The sequences, of the longest context."""
        documents = self.documents(model)
        return [
            Item(key, {"documents": "joined" if len(stretch.documents) > 1 else "whole"}, (documents.source, stretch))
            for key, stretch in self.sequences(documents, self.lengths(model)[-1]).items()
        ]

    def ask(self, model: Model, items: list[Item]) -> Iterator[Record]:
        """Reads the sequences, as many side by side as fit."""
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

    def rows(self, records: list[Record]) -> list[Row]:
        """Loss of each context, of each bin of positions, and by how much it is above that at the training context."""
        found = [
            mean_row({"context": int(length)}, "loss", [record["scores"][length] for record in records])
            for length in records[0]["scores"]
        ]
        places = list(records[0]["positions"])
        found += [mean_row({"position": p}, "loss", [r["positions"][p] for r in records]) for p in places]
        trained = records[0]["training_context"]
        if trained and bounds(places[-1])[1] >= trained:
            base = [over(record["positions"], trained // 2, trained) for record in records]
            found.append(mean_row({"training context": trained}, "loss", base))
            for place in places:
                if bounds(place)[0] >= trained:
                    rise = [r["positions"][place] - b for r, b in zip(records, base, strict=True)]
                    found.append(mean_row({"position": place}, "above the training context", rise))
            top = bounds(places[-1])[1]
            for low, high in relative_bins(trained, top):
                name = f"{low / trained:g}-{high / trained:g}"
                values = [over(r["positions"], low, high) for r in records]
                found.append(mean_row({"of the training context": name}, "loss", values))
        joined = [float(len(record["documents"]) > 1) for record in records]
        found.append(
            Row({"sequences": "joined of several documents"}, "share", sum(joined) / len(joined), None, len(joined))
        )
        return found

    def headline(self, rows: list[Row]) -> list[Row]:
        """The losses of whole contexts; those by position are in results.md and in the figure."""
        return [row for row in rows if "position" not in row.group]

    def markdown(self, results: Sequence[Result]) -> str:
        """Tables by context, by position and by position relative to the training context, and where each breaks."""
        parts = [
            "Mean loss in nats a token ± standard error over sequences, by position: tokens read before the predicted\n"
            "one. A sequence is one document: the beginning of one that is as long as the longest context or, where\n"
            "there are not enough of them, neighbouring shorter ones joined without anything between."
            + different_tokenizers(results),
            self._breaks(results),
            _table(results, "context", "loss over a context of"),
            _table(results, "position", "position"),
            _table(results, "of the training context", "position / training context"),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _breaks(self, results: Sequence[Result]) -> str:
        columns = "network,sequences,joined,training context C,loss from C/2 to C"
        head = [*columns.split(","), f"first {BREAKS} nats above it"]
        lines = []
        for result in results:
            share = next(row for row in result.rows if "sequences" in row.group)
            base = [row for row in result.rows if "training context" in row.group]
            line = [result.run, str(share.count), f"{share.value:.0%}"]
            if not base:
                lines.append([*line, "unknown" if not result.about["context_length"] else "longer", "", ""])
                continue
            end = max(bounds(row.group["position"])[1] for row in result.rows if "position" in row.group)
            found = breaks_at(result)
            where = f"not up to {end:,}"
            if found is not None:
                where = f"{bounds(found.group['position'])[0] + 1:,} (+{found.value:.2f})"
            lines.append([*line, f"{base[0].group['training context']:,}", number(base[0]), where])
        return markdown_table(head, lines)

    def figures(self, results: Sequence[Result]) -> dict[str, Figure]:
        """Loss against position, with standard errors."""
        from mm_lightning.evaluation.figures import Curve, loss_by_position
        from mm_lightning.style import look_of

        curves = []
        for n, result in enumerate(results):
            rows = losses(result)
            bins = [(low + 1, high) for low, high in (bounds(row.group["position"]) for row in rows)]
            low, high = ([row.value + sign * (row.stderr or 0.0) for row in rows] for sign in (-1, 1))
            values = [row.value for row in rows]
            curves.append(Curve(result.run, look_of(n), bins, values, low, high, result.about["context_length"]))
        return {self.name: loss_by_position(curves)}


def edges(lengths: Sequence[int], trained: int | None) -> list[int]:
    """Where bins of positions begin and end, at equal ratios; every context and half the training context is one."""
    found = {0, *lengths}
    if trained is not None:
        found |= {n for n in (trained // 2, trained) if n < lengths[-1]}
        found |= {trained * times for times in (2, 4, 8, 16, 32, 64) if trained * times < lengths[-1]}
    step = 0
    while (edge := round(FIRST * 2 ** (step / STEPS))) < lengths[-1]:
        if all(abs(edge - other) > 0.1 * edge for other in found):  # no slivers beside the wanted ones
            found.add(edge)
        step += 1
    return sorted(found)


def bounds(place: str) -> tuple[int, int]:
    """129-256 -> (128, 256)"""
    low, high = place.split("-")
    return int(low) - 1, int(high)


def over(positions: dict[str, float], low: int, high: int) -> float:
    """The mean over the bins from one edge to another."""
    inside = [(bounds(p), value) for p, value in positions.items() if low <= bounds(p)[0] and bounds(p)[1] <= high]
    return sum((b - a) * value for (a, b), value in inside) / sum(b - a for (a, b), _ in inside)


def relative_bins(trained: int, top: int) -> list[tuple[int, int]]:
    """Positions up to half the training context, up to it, and from each doubling of it to the next."""
    found = [(0, trained // 2), (trained // 2, trained)]
    while found[-1][1] * 2 <= top:
        found.append((found[-1][1], found[-1][1] * 2))
    return found


def losses(result: Result) -> list[Row]:
    """The rows by position, from left to right."""
    return [row for row in result.rows if "position" in row.group and row.metric == "loss"]


def breaks_at(result: Result) -> Row | None:
    """The first bin beyond the training context whose loss is `BREAKS` above that at the training context."""
    risen = [row for row in result.rows if row.metric == "above the training context" and row.value > BREAKS]
    return risen[0] if risen else None


def number(row: Row) -> str:
    """3.214 ± 0.020"""
    return f"{row.value:.3f}" + ("" if row.stderr is None else f" ± {row.stderr:.3f}")


def different_tokenizers(results: Sequence[Result]) -> str:
    """A warning, where losses a token do not compare."""
    if len({result.about["tokenizer"] for result in results}) > 1:
        return " The networks have different tokenizers: compare each with itself only."
    return ""


def _table(results: Sequence[Result], key: str, head: str) -> str:
    """A line for each value of a group's key, a column for each network."""
    cells: dict[Any, dict[str, str]] = {}
    for result in results:
        for row in result.rows:
            if key in row.group and row.metric == "loss":
                cells.setdefault(row.group[key], {})[result.run] = number(row)
    if not cells:
        return ""
    order = sorted(cells, key=lambda place: place if isinstance(place, int) else float(place.split("-")[0]))
    lines = []
    for place in order:
        said = f"{place:,}" if isinstance(place, int) else place
        lines.append([said, *(cells[place].get(result.run, "") for result in results)])
    return markdown_table([head, *(result.run for result in results)], lines, words=0)
