"""Trace the reads of one document, small enough for a page: the top pairs of each query and a few values."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mm_lightning.errors import UserError
from mm_lightning.inspection.distributions import effective_pairs
from mm_lightning.inspection.profile import Profile
from mm_lightning.inspection.reads import Read, watch_reads
from mm_lightning.memory.contextual import ContextualMemory
from mm_lightning.memory.documents import Documents, Span
from mm_lightning.networks import Network

STEPS = 3072
"""A weight w is stored as round(-log2(w) STEPS) in 16 bits: to 0.012%, down to 2^-21.3, which stands for 0."""
LEAST = 65535
LONGEST = 65_536
"""Tokens of a document, because distances are stored in 16 bits as well."""
PAIR_BYTES, NUMBER_BYTES = 4, 4
TARGET_BYTES, LARGEST_BYTES = 10_000_000, 30_000_000
CHOICES = (256, 128, 64, 32, 16, 8)
GUESSES = 5
"""The most probable next tokens that are stored at each position."""


@dataclass(frozen=True)
class PageBudget:
    """The layers and pairs of a document that a page has room for.

    Attributes:
        layers: the included layers.
        pairs: the largest number of pairs of a query, of each head.
        bytes: about the size of the page.
    """

    layers: tuple[int, ...]
    pairs: int
    bytes: int


def page_budget(network: Network, time: int, layers: list[int] | None = None, pairs: int | None = None) -> PageBudget:
    """Return the layers and pairs of a document of T tokens that fit into a page.

    Args:
        network: the network that will read it.
        time: number of tokens T.
        layers: the layers to include, counted from 0; all by default.
        pairs: of each query and head; by default as many as make a page of 10 MB, at least 8 and at most 256.

    Raises:
        UserError: no such layer, or the page would be larger than 30 MB.
    """
    if time > LONGEST:
        raise UserError(f"the text has {time:,} tokens and a page has room for {LONGEST:,}: add --max_tokens {LONGEST}")
    config = network.config
    chosen = tuple(range(config.layers)) if layers is None else tuple(sorted(set(layers)))
    wrong = [layer for layer in chosen if not 0 <= layer < config.layers]
    if wrong or not chosen:
        raise UserError(f"layers must be from 0 to {config.layers - 1}, got {', '.join(map(str, wrong)) or 'none'}")
    if pairs is not None and pairs < 1:
        raise UserError(f"pairs must be at least 1, got {pairs}")
    spans = _spans(network, time).values()
    position = torch.arange(time)

    def size(most: int) -> int:
        stored = sum(int(span.count(position).clamp(max=most).sum()) for span in spans)
        numbers = len(spans) * time * 5 * NUMBER_BYTES
        return (stored * PAIR_BYTES + numbers) * len(chosen) * config.heads * 4 // 3 + 100 * time  # base64

    most = pairs or next((choice for choice in CHOICES if size(choice) <= TARGET_BYTES), CHOICES[-1])
    if size(most) > LARGEST_BYTES:
        fitting = max(1, int(time * LARGEST_BYTES / size(most)))
        raise UserError(
            f"a page about {time:,} tokens, {len(chosen)} layers and {most} pairs of each read would have "
            f"{size(most) / 1e6:,.0f} MB, more than {LARGEST_BYTES / 1e6:.0f}: take the beginning of the text "
            f"(--max_tokens {fitting}), fewer layers (--layers '[0]')" + (" or fewer --pairs" if pairs else "")
        )
    return PageBudget(chosen, most, size(most))


def _spans(network: Network, time: int) -> dict[str, Span]:
    return network.context(Documents.whole(1, time)).spans


class Trace:
    """A visitor of reads that collects the data of a page, and adds to a profile.

    Args:
        budget: layers and pairs to include.
        profile: receives all weights, if given.

    Attributes:
        memories: the data of each memory, ready for JSON.
    """

    def __init__(self, budget: PageBudget, profile: Profile | None = None) -> None:
        self.budget, self.profile = budget, profile
        self.memories: list[dict[str, Any]] = []

    def add(self, read: Read) -> None:
        """Add one read of a memory in a batch of one document."""
        if read.layer not in self.budget.layers:
            if self.profile is not None:
                self.profile.add(read)
            return
        time = read.q.shape[1]
        counts = read.span.count(torch.arange(time))
        ages, codes, effective, distance = [], [], [], []
        for queries, weights in read.weights():
            if self.profile is not None:
                self.profile.add_weights(read, queries, weights)
            weights = weights[0]  # (H, T', T)
            age = torch.arange(time, device=weights.device)[queries, None] - torch.arange(time, device=weights.device)
            effective.append(effective_pairs(weights).cpu())
            distance.append((weights * age).sum(-1).cpu())
            nearest, count = read.span.delay, counts[queries, None].to(age.device)
            outside = (age < nearest) | (age >= nearest + count)  # sorted behind pairs whose weight is rounded to 0
            top, index = weights.masked_fill(outside, -1).topk(min(self.budget.pairs, time), -1)
            real = torch.arange(top.shape[-1]) < counts[queries, None]  # (T', K)
            codes.append(encode_weights(top.cpu()[:, real]))
            ages.append(age.expand_as(weights).gather(-1, index).cpu()[:, real])
        self.memories.append(
            {
                "layer": read.layer,
                "level": read.level,
                "delay": read.span.delay,
                "size": read.span.size,
                "ages": packed(torch.cat(ages, -1), "<u2"),  # (H, all pairs of token 0, then of 1, ...)
                "codes": packed(torch.cat(codes, -1), "<u2"),
                "effective": packed(torch.cat(effective, -1), "<f4"),
                "distance": packed(torch.cat(distance, -1), "<f4"),
                **{name: packed(x[0].T, "<f4") for name, x in _features(read).items()},
                **_scalars(read),
            }
        )


def _features(read: Read) -> dict[str, Tensor]:
    features = {"beta": read.beta, "gate": read.gate, "decay": read.decay}
    return {name: x for name, x in features.items() if x is not None}


def _scalars(read: Read) -> dict[str, Any]:
    """Return the learned scalars of a memory, one for each head, and whether values look ahead."""
    if not isinstance(read.memory, ContextualMemory):
        return {"ahead": False}
    scalars = {name: x.tolist() for name, x in read.memory.values.scalars().items()}
    alpha = getattr(read.memory.bandwidth, "alpha", None)
    exponent = {"alpha": alpha.tolist()} if isinstance(alpha, Tensor) else {}
    return {"ahead": "gamma" in scalars, **scalars, **exponent}


def encode_weights(weights: Tensor) -> Tensor:
    """Encode weights as 16-bit numbers; see `STEPS`."""
    return (-weights.log2() * STEPS).round().clamp(0, LEAST)


def packed(x: Tensor, kind: str) -> dict[str, Any]:
    """Return an array for JSON: its shape, a numpy dtype and its bytes in base64."""
    data = x.detach().cpu().double().numpy().astype(np.dtype(kind))
    return {"shape": list(data.shape), "type": kind, "data": base64.b64encode(data.tobytes()).decode()}


def unpacked(array: dict[str, Any]) -> Tensor:
    """Return the float64 tensor of an array of :func:`packed`."""
    data = np.frombuffer(base64.b64decode(array["data"]), array["type"])
    return torch.from_numpy(data.astype(np.float64)).view(array["shape"])


@torch.no_grad()
def trace_document(
    network: Network, tokens: list[int], budget: PageBudget, profile: Profile | None = None
) -> dict[str, Any]:
    """Return the reads of a network in one document and its predictions after each token, ready for JSON.

    Args:
        network: in evaluation mode.
        tokens: the T tokens of the document.
        budget: layers and pairs to include.
        profile: receives the weights of all reads, if given.

    Returns:
        memories: see :class:`Trace`.
        guesses, probabilities: (T, 5), the most probable next tokens.
        loss: (T,) nats of the next token; NaN for the last.
    """
    trace = Trace(budget, profile)
    device = next(network.parameters()).device
    row = torch.tensor([tokens], device=device)
    with watch_reads(network, trace.add):
        hidden, _ = network.hidden_states(row)
    following = torch.cat([row[0, 1:], row.new_zeros(1)])
    guesses, probabilities, losses = [], [], []
    for part, after in zip(hidden[0].split(256), following.split(256), strict=True):  # bounds the memory of logits
        logs = network.classifier(part).to(torch.promote_types(hidden.dtype, torch.float32)).log_softmax(-1)
        top = logs.topk(min(GUESSES, logs.shape[-1]), -1)
        guesses.append(top.indices)
        probabilities.append(top.values.exp())
        losses.append(-logs.gather(-1, after[:, None])[:, 0])
    loss = torch.cat(losses)
    loss[-1] = torch.nan
    return {
        "memories": trace.memories,
        "guesses": packed(torch.cat(guesses), "<u4"),
        "probabilities": packed(torch.cat(probabilities), "<f4"),
        "loss": packed(loss, "<f4"),
    }
