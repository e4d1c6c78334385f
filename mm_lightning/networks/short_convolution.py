"""A short causal convolution over the tokens of a document, one filter for each channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mm_lightning.memory.documents import Documents
from mm_lightning.memory.keys import Carried


class ShortConvolution(nn.Module):
    """The depthwise causal convolution y_t = sum_a w_a x_{t-a} over the last `width` tokens of the document.

    Args:
        channels: C.
        width: the number of tokens that a filter sees, its own included.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, width))  # w_a in column a
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw uniformly up to 1 / sqrt(width), as `torch.nn.Conv1d` does."""
        if not self.weight.is_meta:
            nn.init.uniform_(self.weight, -(self.weight.shape[1] ** -0.5), self.weight.shape[1] ** -0.5)

    def forward(self, x: Tensor, documents: Documents, carried: Carried | None = None) -> Tensor:
        """Return (B, T, C) from (B, T, C), of whole documents or of a chunk that continues a state.

        Args:
            x: inputs.
            documents: where to restart.
            carried: in inference, the last width - 1 inputs, (B, width - 1, C); replaced by those after this chunk.
        """
        weight, time = self.weight.to(x.dtype), x.shape[1]
        before = self.weight.shape[1] - 1
        if carried is not None and documents.begin:
            rows = torch.cat([carried["inputs"].to(x.dtype), x], 1)
        else:
            rows = nn.functional.pad(x, (0, 0, before, 0))
        y = x * weight[:, 0]
        for age in range(1, before + 1):
            earlier = rows[:, before - age : before - age + time]
            if not documents.single or documents.begin:
                earlier = earlier.masked_fill((documents.position < age)[..., None], 0)
            y = torch.addcmul(y, earlier, weight[:, age])
        if carried is not None:
            carried["inputs"] = rows[:, time:].clone()
        return y
