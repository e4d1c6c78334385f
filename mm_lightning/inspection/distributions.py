"""Distributions of gates, decays, bandwidths and effective numbers of pairs of all memories over a text."""

from __future__ import annotations

import torch
from torch import Tensor

from mm_lightning.inspection.reads import Read, watch_reads
from mm_lightning.memory.documents import Documents
from mm_lightning.networks import Network


def effective_pairs(weights: Tensor) -> Tensor:
    """Return the effective number of pairs: exp of the entropy of (..., T) retrieval weights; 0 without pairs."""
    entropy = torch.special.entr(weights).sum(-1)
    return torch.where(weights.sum(-1) > 0, entropy.exp(), 0)


@torch.no_grad()
def memory_distributions(network: Network, tokens: Tensor, documents: Documents | None = None) -> dict[str, Tensor]:
    """Return the distributions of each level over heads and positions of a text.

    Args:
        network: in evaluation mode.
        tokens: (B, T) int64.
        documents: their boundaries; by default every row is one document.

    Returns:
        By `LEVEL/NAME` a flat float32 tensor over all layers, heads and positions: `effective_pairs` of the queries
        that have a pair to read; of memories also their `bandwidth`, and `gate` g and `decay` lambda.
    """
    values_by_name: dict[str, list[Tensor]] = {}

    def visit(read: Read) -> None:
        def add(name: str, values: Tensor) -> None:
            values_by_name.setdefault(f"{read.level}/{name}", []).append(values)

        has_pairs = read.span.count(read.documents.position) > 0  # (B, T)
        for queries, weights in read.weights():
            add("effective_pairs", effective_pairs(weights).transpose(1, 2)[has_pairs[:, queries]])
        if read.beta is not None:
            add("bandwidth", read.beta[has_pairs])
        for name, values in (("gate", read.gate), ("decay", read.decay)):
            if values is not None:
                add(name, values)

    with watch_reads(network, visit):
        network.hidden_states(tokens, documents)
    return {name: torch.cat([x.flatten().float().cpu() for x in parts]) for name, parts in values_by_name.items()}
