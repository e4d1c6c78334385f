"""RegBench as a task: how well a language is learned from the words of it that were read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mm_lightning.errors import UserError
from mm_lightning.evaluation.measurement import Measurement
from mm_lightning.evaluation.metrics import Metric
from mm_lightning.evaluation.task import Item, Record, Task
from mm_lightning.ranges import Count, Seed, check_fields

if TYPE_CHECKING:
    import numpy as np

    from mm_lightning.data.regbench import Sample
    from mm_lightning.evaluation.model import Model

METRICS = ("accuracy", "total_variation")
BINS = ((0, 0), (1, 1), (2, 3), (4, 7), (8, 18))
"""Words read before, first and last of a line."""


@dataclass
class RegBench(Task):
    """The task `regbench`: next letters of random automata's words, one automaton a sequence.

    The sequences are those of the validation split of `mm data regbench` with the same seed, which no training sequence
    of that seed shares an automaton with.
    """

    name: ClassVar[str] = "regbench"
    limit: Count | None = 200
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self, f"{self.name}: ")

    def samples(self) -> list[Sample]:
        """The sequences."""
        from mm_lightning.data.regbench import RegBenchConfig, generate

        return list(generate(RegBenchConfig(test_sequences=self.limit or 1000, seed=self.seed), "validation", set()))

    def items(self, model: Model) -> list[Item]:
        """Return an item for each sequence.

        Raises:
            UserError: the network was not trained on RegBench.
        """
        from mm_lightning.data.regbench import BOS, EOS

        if (model.bos, model.eos) != (BOS, EOS) or model.tokenizer.vocab_size != EOS + 1:
            raise UserError(
                "regbench is for networks trained on it: mm data regbench --output data/regbench, then "
                "mm fit --config configs/regbench.yaml"
            )
        samples = self.samples()
        return [Item(f"{self.seed}:{n}", {}, sample) for n, sample in enumerate(samples)]

    def ask(self, model: Model, items: list[Item]) -> Iterator[Record]:
        """Predicts every letter of some sequences at a time."""
        import torch

        for at in range(0, len(items), model.batch_size):
            part = items[at : at + model.batch_size]
            rows = [item.content.tokens() for item in part]
            longest = max(map(len, rows))
            # padded behind their ends, which nothing reads
            tokens = torch.tensor([row + [model.eos] * (longest - len(row)) for row in rows], device=model.device)
            with model.computing():
                logits = model.network(tokens).float().cpu()
            for item, row, scores in zip(part, rows, logits, strict=True):
                yield self._record(item, scores[: len(row)].numpy())

    def _record(self, item: Item, logits: np.ndarray) -> Record:
        """Sums of both measures and the letters behind them, by words read before."""
        import torch

        from mm_lightning.data.regbench import BETWEEN
        from mm_lightning.data.regbench_metrics import measures

        allowed, tokens = torch.tensor(item.content.allowed()), torch.tensor(item.content.tokens())
        read = (tokens == BETWEEN).cumsum(0)
        by_words_read = {}
        for low, high in BINS:
            masks = torch.where((read >= low) & (read <= high), allowed, 0)
            letters = int((masks != 0).sum())
            if letters:
                values = measures()
                values.update(torch.from_numpy(logits), masks)
                by_words_read[label(low, high)] = [*(float(values[name].sum) for name in METRICS), letters]  # type: ignore[arg-type]
        whole = [sum(part) for part in zip(*by_words_read.values(), strict=True)]
        scores = {name: whole[n] / whole[-1] for n, name in enumerate(METRICS)}
        words = ["".join(chr(ord("a") + letter) for letter in word) for word in item.content.words]
        return item.record(scores, words=words, by_words_read=by_words_read)

    def measurements(self, records: Sequence[Record]) -> list[Measurement]:
        """Means over letters, as RegBench defines them: of all, and by words read before; items are sequences."""
        parts = {"all": {r["key"]: [sum(x) for x in zip(*r["by_words_read"].values(), strict=True)] for r in records}}
        for low, high in BINS:
            name = label(low, high)
            parts[name] = {r["key"]: r["by_words_read"][name] for r in records if name in r["by_words_read"]}
        return [
            ratio(
                {"words_read": name},
                self.metric(metric),
                {key: (sums[n], sums[-1]) for key, sums in part.items()},
            )
            for name, part in parts.items()
            if part
            for n, metric in enumerate(METRICS)
        ]

    def references(self) -> dict[str, dict[str, float]]:
        """Return the scores of simple predictors on the same letters."""
        import numpy as np

        from mm_lightning.data.regbench_metrics import baselines

        samples = self.samples()
        simple = baselines([np.array(s.tokens()) for s in samples], [np.array(s.allowed()) for s in samples])
        names = next(iter(simple.values()))
        return {name: {metric: simple[f"validation/{metric}"][name] for metric in METRICS} for name in names}


def label(low: int, high: int) -> str:
    """0, or 2-3"""
    return str(low) if low == high else f"{low}-{high}"


def ratio(group: dict[str, str], metric: Metric, pairs: dict[str, tuple[float, float]]) -> Measurement:
    """A mean over letters, from the sum and the number of letters of each sequence."""
    values = {key: total / letters for key, (total, letters) in pairs.items()}
    return Measurement(group, metric, values, {key: letters for key, (_, letters) in pairs.items()})
