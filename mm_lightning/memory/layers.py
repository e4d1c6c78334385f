"""Linear maps, embeddings and norms, initialized as in Table 6 of the v2 paper.

Each layer initializes itself while it is constructed, so a network can be built inside DeepSpeed's `zero.Init`
(which partitions a layer as soon as it exists) or on the meta device and initialized later by `reset_parameters`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mm_lightning.memory.kernels import Kernels

V1_SCALAR_SCALE = 10.0
"""The factor by which v1 multiplies its stored scalars in use, which speeds their learning tenfold under Adam."""


def clipped_normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill a tensor from a normal distribution of this standard deviation, clipped at 3 of them."""
    if tensor.is_meta:  # has no values; drawing them would import the compiler
        return tensor
    with torch.no_grad():
        return tensor.normal_(0.0, std).clamp_(-3 * std, 3 * std)


class MemoryPart(nn.Module):
    """A part of a memory: its keys, values, bandwidth or retrieval.

    Attributes:
        kernels: the kernels that compute it; see :func:`mm_lightning.memory.kernels.set_kernels`.
    """

    kernels: Kernels = "auto"

    def scalars(self) -> dict[str, Tensor]:
        """Return the learned scalars by name, (H,) each."""
        return {}


class Linear(nn.Linear):
    """A linear map with weights of initial standard deviation `std`, by default without a bias."""

    def __init__(self, in_features: int, out_features: int, std: float, bias: bool = False):
        self.std = std  # before nn.Linear's constructor, which calls reset_parameters
        super().__init__(in_features, out_features, bias=bias)

    def reset_parameters(self) -> None:
        clipped_normal_(self.weight, self.std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Embedding(nn.Embedding):
    """An embedding with weights of initial standard deviation `std`."""

    def __init__(self, num_embeddings: int, embedding_dim: int, std: float):
        self.std = std
        super().__init__(num_embeddings, embedding_dim)

    def reset_parameters(self) -> None:
        clipped_normal_(self.weight, self.std)


class Norm(nn.Module):
    """RMSNorm, x / rms(x) * weight, or LayerNorm, which also subtracts the mean and may have a bias.

    The result has the type of the next matrix product: autocast's, where it is enabled.
    """

    def __init__(self, dim: int, eps: float, kind: Literal["rms", "layer"] = "rms", bias: bool = False):
        super().__init__()
        assert kind == "layer" or not bias
        self.eps, self.kind = eps, kind
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        weight, shape = self.weight.to(x.dtype), (x.shape[-1],)
        if self.kind == "rms":
            y = F.rms_norm(x, shape, weight, self.eps)
        else:
            y = F.layer_norm(x, shape, weight, None if self.bias is None else self.bias.to(x.dtype), self.eps)
        # Under autocast this casts once what several linear layers would each cast for themselves.
        device = x.device.type
        return y.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else y
