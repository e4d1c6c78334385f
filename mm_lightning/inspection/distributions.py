"""Distributions of what memories do with a text: gates, decays, bandwidths, and how many pairs they really read."""

from __future__ import annotations

import torch
from torch import Tensor

from mm_lightning.inspection.reads import Read, watch_reads
from mm_lightning.memory.documents import Documents
from mm_lightning.networks import Network


def effective_pairs(weights: Tensor) -> Tensor:
    """exp of the entropy of (..., T) retrieval weights: as many pairs, read alike, would have that entropy. 0 for no
    pairs at all."""
    entropy = torch.special.entr(weights).sum(-1)
    return torch.where(weights.sum(-1) > 0, entropy.exp(), 0)


@torch.no_grad()
def memory_distributions(network: Network, tokens: Tensor, documents: Documents | None = None) -> dict[str, Tensor]:
    """What the heads of each level do at all positions of a text.

    Args:
        network: in evaluation mode.
        tokens: (B, T) int64.
        documents: their boundaries; by default every row is one document.

    Returns:
        by `LEVEL/NAME`, over all layers, heads and positions, one dimension of numbers in float32: `effective_pairs`
        of the queries that have a pair to read; of memories also the `bandwidth` there, `gate` g and `decay` lambda.
    """
    found: dict[str, list[Tensor]] = {}

    def visit(read: Read) -> None:
        # (B, T)
        full = read.span.count(read.documents.position) > 0
        for queries, weights in read.weights():
            pairs = effective_pairs(weights).transpose(1, 2)[full[:, queries]]
            found.setdefault(f"{read.level}/effective_pairs", []).append(pairs)
        if read.beta is not None:
            found.setdefault(f"{read.level}/bandwidth", []).append(read.beta[full])
        for name, values in (("gate", read.gate), ("decay", read.decay)):
            if values is not None:
                found.setdefault(f"{read.level}/{name}", []).append(values)

    with watch_reads(network, visit):
        network.hidden_states(tokens, documents)
    return {name: torch.cat([part.flatten().float().cpu() for part in parts]) for name, parts in found.items()}
