"""The map from the last hidden states to logits, or straight to the loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mm_lightning.memory.documents import IGNORE_INDEX
from mm_lightning.memory.kernels import Kernels
from mm_lightning.memory.layers import Linear
from mm_lightning.networks.loss import linear_cross_entropy


class Classifier(Linear):
    """The linear map onto the vocabulary, and the loss: with many tokens, without having all logits at once.

    Attributes:
        kernels: the kernels that compute the loss; see :func:`mm_lightning.memory.kernels.set_kernels`.
    """

    kernels: Kernels = "auto"

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Return (B, T, V) logits; or, in float32 or better, the mean cross-entropy in nats over (B, T) targets.

        -100 is no target.
        """
        if targets is None:
            return super().forward(x)
        x, targets = x.flatten(0, -2), targets.flatten()
        tokens, dim = x.shape
        exact = torch.promote_types(x.dtype, torch.float32)
        if tokens < dim or self.out_features <= dim:
            return F.cross_entropy(super().forward(x).to(exact), targets, ignore_index=IGNORE_INDEX)
        # torch's F.linear_cross_entropy rounds the loss to the type of its inputs, and on a CPU takes longer.
        return linear_cross_entropy(x, self.weight, targets, self.kernels)
