"""Sample the next tokens of a batch of documents from their logits."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mm_lightning.errors import UserError
from mm_lightning.ranges import Count, Penalty, Portion, Seed, Share, Temperature, check_fields

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """The settings of sampling.

    The filters work in the order repetition_penalty, temperature, top_k, top_p, min_p; each gets the probabilities that
    the one before has left, scaled to a sum of 1.

    Args:
        temperature: divides the logits: lower is safer, higher is more varied; 0 always takes the most probable token.
        top_k: draw from the k most probable tokens only.
        top_p: draw from the fewest tokens whose probabilities reach p.
        min_p: draw from tokens at least so many times as probable as the most probable one.
        repetition_penalty: above 1 makes tokens that the document has already less likely: a positive logit is
            divided by it, a negative one multiplied.
        seed: of the draws.

    Raises:
        UserError: a setting is out of range.
    """

    temperature: Temperature = 0.8
    top_k: Count | None = None
    top_p: Portion | None = None
    min_p: Share | None = None
    repetition_penalty: Penalty = 1.0
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)


DEFAULTS = Sampling()


def candidates(logits: Tensor, sampling: Sampling, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the probabilities of the next tokens after all filters.

    Args:
        logits: (B, V).
        sampling: the filters.
        seen: (B, V) bool, the tokens of the document, for the repetition penalty.

    Returns:
        (B, K) probabilities in float32, 0 where a filter took the token out, and (B, K) int64 tokens.
    """
    import torch

    logits = logits.float()
    if seen is not None:
        penalty = sampling.repetition_penalty
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    best = logits.amax(-1, keepdim=True)
    if not best.isfinite().all():
        raise UserError("the network's logits are not finite: its weights are damaged, or its training diverged")
    if sampling.temperature == 0:
        return torch.ones_like(best), logits.argmax(-1, keepdim=True)
    logits = (logits - best) / sampling.temperature
    if sampling.top_k is not None:
        logits, tokens = logits.topk(min(sampling.top_k, logits.shape[-1]))
    elif sampling.top_p is not None:
        logits, tokens = logits.sort(descending=True, stable=True)
    else:
        tokens = torch.arange(logits.shape[-1], device=logits.device).expand_as(logits)
    probabilities = logits.softmax(-1)
    if sampling.top_p is not None:
        before = probabilities.cumsum(-1) - probabilities  # a token stays if those before it have not reached p yet
        probabilities = probabilities.masked_fill(before >= sampling.top_p, 0)
    if sampling.min_p is not None:
        least = sampling.min_p * probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least, 0)
    return probabilities / probabilities.sum(-1, keepdim=True), tokens


class Sampler:
    """A sampler of the next tokens of B documents, each with a random generator of its own.

    The draws of a document depend on the seed, its number and its logits, not on the other documents or the device.

    Args:
        sampling: the settings.
        documents: the tokens of each so far, for the repetition penalty.
        numbers: the documents' numbers, which seed their generators; 0, 1, ... if not given.
    """

    def __init__(
        self, sampling: Sampling, documents: Sequence[Sequence[int]], numbers: Sequence[int] | None = None
    ) -> None:
        self.sampling = sampling
        numbers = range(len(documents)) if numbers is None else numbers
        self._random = [random.Random(f"document {number} of seed {sampling.seed}") for number in numbers]
        self._documents = documents
        self._seen: Tensor | None = None  # (B, V) bool

    def draw(self, logits: Tensor) -> Tensor:
        """Draw (B,) int64 tokens from (B, V) logits."""
        import torch

        if self.sampling.repetition_penalty != 1 and self._seen is None:
            self._seen = torch.zeros_like(logits, dtype=torch.bool)
            for row, document in enumerate(self._documents):
                self._seen[row, torch.tensor(sorted(set(document)), dtype=torch.int64, device=logits.device)] = True
        probabilities, tokens = candidates(logits, self.sampling, self._seen)
        place = torch.zeros_like(tokens[:, :1])
        if self.sampling.temperature > 0:
            # 32 random bits: in float64 a share of the total is then below the total also after rounding
            share = [generator.getrandbits(32) / 2**32 for generator in self._random]
            cumulative = probabilities.double().cumsum(-1)
            shares = torch.tensor(share, dtype=cumulative.dtype, device=cumulative.device)
            place = torch.searchsorted(cumulative, shares[:, None] * cumulative[:, -1:], right=True)
        drawn = tokens.gather(1, place)
        if self._seen is not None:
            self._seen.scatter_(1, drawn, True)
        return drawn[:, 0]

    def keep(self, rows: list[int]) -> None:
        """Drop all documents but these."""
        self._random = [self._random[row] for row in rows]
        self._documents = [self._documents[row] for row in rows]
        if self._seen is not None:
            self._seen = self._seen[rows]
