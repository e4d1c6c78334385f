"""The forget gate of FoX, attention whose weights decay as the text says (arXiv 2503.02130).

A weight is multiplied by the gates f of all tokens after its pair: the score of pair i at t gains c_t - c_i, with c the
sum of log f since the document's beginning. c_t is common to all pairs of a query and cancels, so that -c_i is one more
dimension of the keys, met by a 1 in the queries, and any attention kernel computes it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mm_lightning.memory.documents import Documents
from mm_lightning.memory.keys import Carried
from mm_lightning.memory.layers import Linear

MULTIPLE = 8
"""Head dimensions are filled up to multiples of this, which fused kernels ask for."""


class ForgetGate(nn.Module):
    """Compute log f of each head, and add its sums to queries and keys.

    Args:
        dim: d.
        heads: heads of keys.
        std: initial standard deviation of W_f.
    """

    def __init__(self, dim: int, heads: int, std: float):
        super().__init__()
        self.W_f = Linear(dim, heads, std, bias=True)

    def sums(self, x: Tensor, documents: Documents, carried: Carried | None = None) -> Tensor:
        """Return c, (B, T, H) in float32 or better, from inputs (B, T, d).

        Args:
            x: inputs.
            documents: where c restarts.
            carried: in inference, c of the token before; replaced by that of the last token.
        """
        logits = self.W_f(x)
        log_f = F.logsigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))
        # In float64, so that a document's sum does not lose the accuracy that a whole row's takes.
        until = F.pad(log_f.double().cumsum(1), (0, 0, 1, 0))  # (B, T + 1, H)
        begin = torch.arange(x.shape[1], device=x.device) - documents.position  # below 0: before this chunk
        c = until[:, 1:] - until.gather(1, begin.clamp(min=0)[..., None].expand_as(log_f))
        if carried is not None:
            if documents.begin:
                c = c + carried["sum"][:, None].masked_fill((begin >= 0)[..., None], 0)
            carried["sum"] = c[:, -1]
        return c.to(log_f.dtype)

    @staticmethod
    def extend(q: Tensor, k: Tensor, v: Tensor, c: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k and v with more dimensions, in which scale * q.k gains -c; those of v are 0.

        In 16-bit types -c takes three dimensions, its parts of decreasing size, and so keeps float32's accuracy.
        """
        parts, rest = [], -c / scale
        for _ in range(1 if k.dtype == rest.dtype or k.dtype == torch.float64 else 3):
            parts.append(rest.to(k.dtype))
            rest = rest - parts[-1].to(rest.dtype)
        extra = torch.stack(parts, -1)  # (B, T, H, 1 or 3)
        fill = -(k.shape[-1] + len(parts)) % MULTIPLE
        ones = q.new_ones(*q.shape[:-1], len(parts))
        return (
            F.pad(torch.cat([q, ones], -1), (0, fill)),
            F.pad(torch.cat([k, extra], -1), (0, fill)),
            F.pad(v, (0, len(parts) + fill)),
        )
