"""Multi-query associative recall as a task: at other lengths and numbers of pairs than a network was trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, ClassVar

from mm_lightning.errors import UserError
from mm_lightning.evaluation.task import Item, Record, Task
from mm_lightning.ranges import Count, Portion, Seed, check_fields

if TYPE_CHECKING:
    from mm_lightning.evaluation.model import Model

TIMES = 1, 2, 4  # the training context


@dataclass
class MQAR(Task):
    """The task `mqar`: values recalled by their keys, for networks trained on `mm data mqar`.

    The examples are those that validation of such data with the same seed, length and number of pairs has.

    Args:
        contexts: lengths in tokens; by default 1, 2 and 4 times the training context.
        pairs: numbers of keys and values in an example, by default an eighth of the training context; lengths of less
            than four times as many are left out.
        power: exponent of the gaps between a pair and its question.
    """

    name: ClassVar[str] = "mqar"

    contexts: list[Count] | None = None
    pairs: list[Count] | None = None
    power: Portion = 0.01
    limit: Count | None = 200
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self, f"{self.name}: ")

    def items(self, model: Model) -> list[Item]:
        """Return the examples of each length and number of pairs.

        Raises:
            UserError: the network was not trained on the task, or no length has room for the pairs.
        """
        from mm_lightning.data.mqar import MQARConfig

        vocabulary = model.tokenizer.vocab_size - 2
        if model.encode(f"k1 v1 v{vocabulary - vocabulary // 2}") != [1, vocabulary // 2, vocabulary - 1]:
            raise UserError(
                "mqar is for networks trained on it: mm data mqar --output data/mqar, then mm fit --config "
                "configs/mqar.yaml"
            )
        lengths = self.contexts or [times * (model.context_length or 64) for times in TIMES]
        pairs = self.pairs or [max(1, (model.context_length or 64) // 8)]
        items = []
        for length, number in product(lengths, pairs):
            if length >= 4 * number:
                data = MQARConfig(number, vocabulary, self.power, test_examples=self.limit or 3000, seed=self.seed)
                group = {"context": length, "pairs": number}
                key = f"{self.seed}:{length}:{number}"
                examples = data.examples("validation", length)
                items += [Item(f"{key}:{n}", group, example) for n, example in enumerate(examples)]
        if not items:
            raise UserError(f"mqar: contexts {lengths} are too short for {pairs} pairs: at least four times as many")
        return items

    def ask(self, model: Model, items: list[Item]) -> Iterator[Record]:
        """Read examples of one length side by side, and predict their answers."""
        import torch

        for batch in model.batches([len(item.content.tokens) for item in items], alike=True):
            tokens = torch.tensor([[model.bos, *items[n].content.tokens] for n in batch], device=model.device)
            with model.computing():
                x, _ = model.network.hidden_states(tokens[:, :-1])
                for n, hidden, row in zip(batch, x, tokens, strict=True):
                    places = torch.tensor(items[n].content.answers, device=model.device)
                    log_probs = model.network.classifier(hidden[places]).float().log_softmax(-1)
                    targets = row[places + 1]
                    right = (log_probs.argmax(-1) == targets).float()
                    loss = -log_probs.gather(1, targets[:, None])
                    scores = {"accuracy": float(right.mean()), "loss": float(loss.mean())}
                    yield items[n].record(scores, right=[int(one) for one in right], places=items[n].content.answers)
