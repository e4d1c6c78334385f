"""Cross-entropy of logits and its derivative, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from mm_lightning.memory.documents import IGNORE_INDEX


def errors_reference(logits: Tensor, targets: Tensor, exact: torch.dtype, learns: bool = True) -> tuple[Tensor, Tensor]:
    """Return the loss of each token, (N,), and its derivatives by its logits, (N, V), both in the type `exact`.

    Args:
        logits: (N, V).
        targets: (N,) int64; -100 where there is none.
        exact: float32 or float64.
        learns: whether to compute derivatives; otherwise the logits are returned in their place.
    """
    counts = targets != IGNORE_INDEX
    index = targets.where(counts, 0)[:, None]
    logits = logits.to(exact)
    scale = logits.logsumexp(-1, keepdim=True)
    log_probability = logits.gather(-1, index) - scale
    if learns:
        logits = logits.sub_(scale).exp_().scatter_(-1, index, log_probability.exp() - 1).mul_(counts[:, None])
    return -log_probability.squeeze(-1).where(counts, 0), logits
