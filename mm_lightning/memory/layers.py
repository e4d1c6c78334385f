"""The layers every network here is made of, initialised as Table 6 of the v2 paper says.

Each layer initialises itself while it is constructed, so a network can be built inside DeepSpeed's `zero.Init`
(which partitions a layer as soon as it exists) or on the meta device and initialised later by `reset_parameters`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TIMES = 10.0
"""v1 stores its scalars divided by this and multiplies them in use, which speeds their learning tenfold under Adam."""


def clipped_normal_(tensor: Tensor, std: float) -> Tensor:
    """Fills a tensor from a normal distribution, with values beyond 3 standard deviations clipped to 3."""
    with torch.no_grad():
        return tensor.normal_(0.0, std).clamp_(-3 * std, 3 * std)


class Linear(nn.Linear):
    """A linear map without bias, initialised with standard deviation `std`."""

    def __init__(self, in_features: int, out_features: int, std: float):
        self.std = std  # before nn.Linear's constructor, which calls reset_parameters
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        clipped_normal_(self.weight, self.std)


class Embedding(nn.Embedding):
    """A table of vectors, initialised with standard deviation `std`."""

    def __init__(self, num_embeddings: int, embedding_dim: int, std: float):
        self.std = std
        super().__init__(num_embeddings, embedding_dim)

    def reset_parameters(self) -> None:
        clipped_normal_(self.weight, self.std)


class Norm(nn.Module):
    """RMSNorm, x / rms(x) * weight, or LayerNorm without bias, which also takes the mean away.

    Returned in the type the next matrix product wants.
    """

    def __init__(self, dim: int, eps: float, kind: Literal["rms", "layer"] = "rms"):
        super().__init__()
        self.eps, self.kind = eps, kind
        self.weight = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        norm = F.rms_norm if self.kind == "rms" else _layer_norm
        y = norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)
        # Under autocast this casts once what several linear layers would each cast for themselves.
        device = x.device.type
        return y.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else y


def _layer_norm(x: Tensor, shape: tuple[int, ...], weight: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, shape, weight, None, eps)
