"""Values, equation (9). A pair's value describes the near future, so it looks one token ahead.

vtilde = W_psi x,    vbar_T = gamma vtilde_T + (1 - gamma) vtilde_{T+1},    v_T = alpha_psi Norm(vbar_T)
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mm_lightning.memory.documents import Documents
from mm_lightning.memory.kernels import Kernels
from mm_lightning.memory.kernels.dispatch import ahead_values, dispatch_kernels
from mm_lightning.memory.kernels.torch_features import normalize, normalized_mix
from mm_lightning.memory.keys import Carried
from mm_lightning.memory.layers import V1_SCALAR_SCALE, MemoryPart

Scale = Literal["exp_abs", "exp"]


class Values(MemoryPart):
    """The values of a memory. Derive from it, and define :meth:`forward`, for another kind.

    The constructor's arguments are those of :class:`mm_lightning.memory.keys.Keys`.

    Attributes:
        late: how many tokens pass before a value is complete: 1 if it looks at the next token, else 0.
    """

    late: Literal[0, 1] = 0

    def forward(self, vtilde: Tensor, documents: Documents, carried: Carried | None = None) -> Tensor:
        """Return values (B, T, H, D) from raw values of this shape.

        Args:
            vtilde: raw values W_psi x.
            documents: where documents begin. A document's last value is never read.
            carried: in inference, the state after the tokens before `documents.begin`; updated in place. With
                `documents.begin` above 0, the values are those of the tokens `late` before.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no forward(vtilde, documents, carried)")


class LookAheadValues(Values):
    """The values of equation (9), with learned gamma and alpha_psi, one of each per head.

    In v2 alpha_psi = exp(min(|theta|, 15)) with theta = 0 at first (Table 6). The derivative of |theta| at 0 is taken
    as 1: with the usual 0 it could never leave its initial value. In v1 alpha_psi = exp(10 theta), -0.5 / 10 at first.

    Args:
        heads: H.
        look_ahead: whether a value looks at the next token; without, v = alpha_psi Norm(W_psi x).
        scale: the form of alpha_psi, exp_abs (v2) or exp (v1).
    """

    late = 1

    def __init__(self, heads: int, look_ahead: bool = True, scale: Scale = "exp_abs"):
        super().__init__()
        self.scale = scale
        self.gamma = nn.Parameter(torch.empty(heads)) if look_ahead else None
        self.alpha_psi_theta = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.gamma is not None:
            nn.init.uniform_(self.gamma)
        nn.init.constant_(self.alpha_psi_theta, 0 if self.scale == "exp_abs" else -0.5 / V1_SCALAR_SCALE)

    @property
    def alpha_psi(self) -> Tensor:
        """The norm of the values, (H,)."""
        theta = self.alpha_psi_theta.to(torch.promote_types(self.alpha_psi_theta.dtype, torch.float32))
        if self.scale == "exp":
            return (V1_SCALAR_SCALE * theta).exp()
        return torch.where(theta < 0, -theta, theta).clamp(max=15).exp()

    def scalars(self) -> dict[str, Tensor]:
        """Return gamma, if there is a look-ahead, and alpha_psi, (H,) each."""
        gamma = {} if self.gamma is None else {"gamma": self.gamma}
        return {**gamma, "alpha_psi": self.alpha_psi}

    def forward(self, vtilde: Tensor, documents: Documents, carried: Carried | None = None) -> Tensor:
        """Return values (B, T, H, D) from raw values of this shape; see :meth:`Values.forward`."""
        return look_ahead_values(vtilde, self.gamma, self.alpha_psi, documents, self.kernels, carried)


def look_ahead_values(
    vtilde: Tensor,
    gamma: Tensor | None,
    alpha: Tensor,
    documents: Documents,
    kernels: Kernels = "auto",
    carried: Carried | None = None,
) -> Tensor:
    """Return the values of equation (9), (B, T, H, D) in vtilde's type, of whole documents or of a chunk of a stream.

    Args:
        vtilde: (B, T, H, D) raw values W_psi x.
        gamma: (H,) weight of the present token; None: 1.
        alpha: (H,) norm of the values, above 0.
        documents: a document's last token has no next one, which counts as 0.
        kernels: the kernels that compute them in whole documents.
        carried: the raw value (B, H, D) of the token before, replaced by the last one's. With `documents.begin` above 0
            the values are those of the tokens one before.
    """
    exact = torch.promote_types(vtilde.dtype, torch.float32)
    if documents.begin > 0:
        assert carried is not None
        now = torch.cat([carried["raw"][:, None], vtilde[:, :-1]], 1).to(exact)
        unscaled = normalize(now) if gamma is None else normalized_mix(now, vtilde.to(exact), gamma.to(exact))
        values = (unscaled * alpha[:, None]).to(vtilde.dtype)
    elif (kernels := dispatch_kernels(kernels, vtilde.device, vtilde.dtype, vtilde.shape[-1])) != "reference":
        values = ahead_values(vtilde, gamma, alpha, documents, kernels)
    else:
        raw = vtilde.to(exact)
        unscaled = normalize(raw) if gamma is None else look_ahead_reference(raw, gamma, documents)
        values = unscaled.to(vtilde.dtype) * alpha[:, None].to(vtilde.dtype)
    if carried is not None:
        carried["raw"] = vtilde[:, -1].contiguous()
    return values


def look_ahead_reference(vtilde: Tensor, gamma: Tensor, documents: Documents) -> Tensor:
    """Compute Norm(vbar) of equation (9) as it is written; every faster form must agree with it.

    Args:
        vtilde: (B, T, H, D) raw values W_psi x.
        gamma: (H,) weight of the present token.
        documents: a document's last token has no next one, which counts as 0. (Nothing ever reads that pair.)

    Returns:
        (B, T, H, D) values of norm 1, computed in float32 or better.
    """
    dtype = vtilde.dtype
    vtilde = vtilde.to(torch.promote_types(dtype, torch.float32))
    last = F.pad(documents.position[:, 1:] == 0, (0, 1), value=True)  # (B, T)
    ahead = F.pad(vtilde[:, 1:], (0, 0, 0, 0, 0, 1)).masked_fill(last[..., None, None], 0)
    return normalized_mix(vtilde, ahead, gamma.to(vtilde.dtype)).to(dtype)
