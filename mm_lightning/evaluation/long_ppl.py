"""LongPPL (arXiv 2410.23771): the perplexity of tokens that a long context makes much more probable than a short one.

A token is a *key token* if, with the losses in nats,

    loss behind the short context - loss behind the long context > alpha       (long-short difference, LSD)
    log-likelihood behind the long context                        > beta        (long-context likelihood, LCL)

The long context is all that comes before in the sequence, the short one the last K to K + d - 1 tokens: windows begin
every d tokens, each with the token that begins a document, and predict the d tokens behind their first K.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from mm_lightning.errors import UserError
from mm_lightning.evaluation.measurement import Measurement, Row
from mm_lightning.evaluation.task import Item, Record
from mm_lightning.evaluation.text_task import ReadingTask
from mm_lightning.ranges import Count, Place, Range

if TYPE_CHECKING:
    from torch import Tensor

    from mm_lightning.evaluation.model import Model

SHOWN = 16  # key tokens of a sequence that its record shows
WORDS = 12  # tokens before a shown one
Nats = Annotated[float, Range(-100, 100)]


@dataclass
class LongPPL(ReadingTask):
    """The task `long_ppl`, by default up to 8 times the training context.

    Args:
        short_context: K, tokens of the short context, an eighth of the longest context by default (the paper has 4,096
            of 32k).
        stride: d, tokens between the beginnings of short contexts; a quarter of K by default, as in the paper.
        alpha: a key token's loss falls by more than so many nats when the long context is given.
        beta: a key token's log-likelihood behind the long context is above so many nats.
        evaluator: a checkpoint or run folder of another network with the same tokenizer, which decides on key tokens
            (the paper takes one large network for all); by default each network decides for itself, and key tokens of
            several networks are not the same.
    """

    name: ClassVar[str] = "long_ppl"
    least: ClassVar[int] = 64
    multiples: ClassVar[tuple[int, ...]] = (1, 2, 4, 8)

    short_context: Count | None = None
    stride: Count | None = None
    alpha: Nats = 2.0
    beta: Nats = -2.0
    evaluator: Place | None = None

    def settings_for(self, checkpoint: Path | None) -> dict[str, Any]:
        """Return the settings; the evaluator counts by its weights, not by its place."""
        from mm_lightning.checkpoint import find_checkpoint, fingerprint

        weights = self.evaluator and fingerprint(find_checkpoint(self.evaluator))
        return {**super().settings_for(checkpoint), "evaluator": weights}

    def windows(self, longest: int) -> tuple[int, int]:
        """Return K and d.

        Raises:
            UserError: no token stands behind more than a short context.
        """
        short = self.short_context or max(1, longest // 8)
        stride = self.stride or max(1, short // 4)
        if short + stride >= longest:
            raise UserError(
                f"long_ppl: short_context {short} and stride {stride} leave nothing of contexts of {longest}: make "
                f"them smaller, or --contexts longer"
            )
        return short, stride

    def items(self, model: Model) -> list[Item]:
        """Return the sequences, of the longest context."""
        documents, longest = self.documents(model), self.lengths(model)[-1]
        self.windows(longest)
        return [Item(key, {}, stretch) for key, stretch in self.sequences(documents, longest).items()]

    def ask(self, model: Model, items: list[Item]) -> Iterator[Record]:
        """Read one sequence after the other, whole and by windows."""
        import torch

        lengths = self.lengths(model)
        short, stride = self.windows(lengths[-1])
        judge = self._judge(model)
        for item in items:
            tokens = torch.from_numpy(item.content.tokens).long()
            loss = long_losses(model, tokens)
            judged = loss if judge is model else long_losses(judge, tokens)
            fall = short_losses(judge, tokens, short, stride) - judged[short:]
            key = (fall > self.alpha) & (judged[short:] < -self.beta)
            sums, behind = {}, loss[short:]
            for length in (length for length in lengths if length > short):
                part, chosen = behind[: length - short], key[: length - short]
                sums[str(length)] = [float(part[chosen].sum()), int(chosen.sum()), float(part.sum()), len(part)]
            most = [
                int(n) for n in torch.where(key, fall, -math.inf).argsort(descending=True)[: int(key.sum())][:SHOWN]
            ]
            shown = [
                {
                    "position": short + n,
                    "before": model.decode(tokens[max(0, short + n - WORDS) : short + n].tolist()),
                    "token": model.decode([int(tokens[short + n])]),
                    "loss": float(behind[n]),
                    "fall": float(fall[n]),
                }
                for n in most
            ]
            yield item.record({}, sums=sums, short_context=short, stride=stride, key_tokens=shown)

    def _judge(self, model: Model) -> Model:
        """Return the network that decides on key tokens."""
        from mm_lightning.evaluation.model import Model, Precision

        if self.evaluator is None:
            return model
        precision: Precision = "bf16" if model.bf16 else "32"
        judge = Model.load(self.evaluator, str(model.device), precision=precision, batch_size=model.batch_size)
        if judge.tokenizer.sha256 != model.tokenizer.sha256:
            raise UserError(
                f"long_ppl: evaluator {self.evaluator} has another tokenizer than the network: give another"
            )
        return judge

    def measurements(self, records: Sequence[Record]) -> list[Measurement]:
        """Return for each context the losses of key tokens and of all behind K, and the share of key tokens."""
        measurements = []
        for length in records[0]["sums"]:
            sums = {record["key"]: record["sums"][length] for record in records}
            for name, at in (("key", 0), ("all", 2)):
                weights = {key: float(values[at + 1]) for key, values in sums.items() if values[at + 1]}
                means = {key: sums[key][at] / weight for key, weight in weights.items()}
                if means:
                    group = {"context": int(length), "tokens": name}
                    measurements.append(Measurement(group, self.metric("loss"), means, weights))
            share = {key: values[1] / values[3] for key, values in sums.items()}
            measurements.append(Measurement({"context": int(length), "tokens": "key"}, self.metric("share"), share))
        return measurements

    def rows(self, records: list[Record]) -> list[Row]:
        """Return the same, and perplexities: LongPPL is that of the key tokens."""
        rows = super().rows(records)
        losses = [row for row in rows if row.metric == "loss"]
        return [*(perplexity(row) for row in losses), *rows]

    def headline(self, rows: list[Row]) -> list[Row]:
        """Return LongPPL and the share of key tokens."""
        return [row for row in rows if row.group["tokens"] == "key" and row.metric != "loss"]

    def compared(self, rows: list[Row]) -> list[Row]:
        """Return the logarithms of perplexities and the share of key tokens; without an evaluator key tokens differ."""
        return [row for row in rows if self.evaluator or (row.group["tokens"], row.metric) != ("key", "loss")]


def perplexity(row: Row) -> Row:
    """Return the perplexity of a loss in nats, with the ends of its interval."""
    low, high = (None if end is None else math.exp(end) for end in (row.low, row.high))
    return Row(row.group, "perplexity", math.exp(row.value), None, row.count, "perplexity", low, high)


def long_losses(model: Model, tokens: Tensor) -> Tensor:
    """Return the (T,) loss of each token of a document behind all tokens before it."""
    import torch

    row = torch.cat([torch.tensor([model.bos]), tokens])
    return torch.cat([piece.double().cpu() for piece in model.losses(row[None])], 1)[0]


def short_losses(model: Model, tokens: Tensor, short: int, stride: int) -> Tensor:
    """Return the (T - K,) loss of each token from K on, behind the last K to K + d - 1 tokens before it."""
    import torch

    starts = range(0, len(tokens) - short, stride)
    rows = [torch.cat([torch.tensor([model.bos]), tokens[at : at + short + stride]]) for at in starts]
    losses: list[Tensor] = []
    for batch in model.batches([len(row) for row in rows], alike=True):  # the last may be shorter, and comes last
        together = torch.stack([rows[n] for n in batch])
        parts = torch.cat([piece.double().cpu() for piece in model.losses(together)], 1)[:, short:]
        losses += parts.unbind(0)
    return torch.cat(losses)
