"""Keys: the gated, time-variant average of equation (8) of the v2 paper, and the leaky one of equation (7) of v1.

    ktilde = W_phi x,    kbar_T = g_T ktilde_T + lambda_T kbar_{T-1},    k_T = Norm(kbar_T)

with g = exp(W_g x) and lambda = exp(-|W_lambda x|) in (8), g = 1 and one learned lambda a head in (7), restarted at
each document's first token. A positive factor common to all of kbar_T disappears in the norm, so everything is computed
relative to the largest weight seen so far and nothing can overflow, whatever the gates.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mm_lightning.memory.documents import Documents
from mm_lightning.memory.kernels import Kernels
from mm_lightning.memory.kernels.dispatch import dispatch_kernels, gated_keys
from mm_lightning.memory.kernels.torch_features import EPS, normalize, queries
from mm_lightning.memory.layers import V1_SCALAR_SCALE, Linear, MemoryPart

Carried = dict[str, Tensor]
"""The state of one part of a memory between two chunks of tokens: tensors (B, ...) by name; empty at first."""


class Keys(MemoryPart):
    """The keys of a memory, which are its queries too. Derive from it, and define :meth:`keys`, for another kind.

    The constructor's arguments are dim (d), heads (H), std (the initial standard deviation of a matrix, by its fan-in),
    and whatever a config's `init_args` name.
    """

    def keys(self, x: Tensor, documents: Documents, carried: Carried | None) -> Tensor:
        """Return keys (B, T, H, D) from inputs (B, T, d). A key depends on no later token, nor on other documents.

        Args:
            x: inputs.
            documents: where documents begin.
            carried: in inference, the state after the tokens before `documents.begin`; updated in place.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no keys(x, documents, carried)")

    def forward(
        self, x: Tensor, beta: Tensor, documents: Documents, carried: Carried | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return queries q = beta k and keys k, (B, T, H, D) each; beta is (B, T, H) or (H,)."""
        k = self.keys(x, documents, carried)
        return queries(k, beta), k


class AverageKeys(Keys):
    """Keys of norm 1 that average W_phi x over the document so far: equations (7) and (8)."""

    W_phi: Linear
    heads: int

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return log g and log lambda, (B, T, H) each, from inputs (B, T, d)."""
        raise NotImplementedError

    def keys(self, x: Tensor, documents: Documents, carried: Carried | None) -> Tensor:
        """Return keys (B, T, H, D) from inputs (B, T, d)."""
        return self._average(x, torch.ones((), device=x.device), documents, carried)[1]

    def forward(
        self, x: Tensor, beta: Tensor, documents: Documents, carried: Carried | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return queries q = beta k and keys k, (B, T, H, D) each; beta is (B, T, H) or (H,)."""
        compute = self._average if type(self).keys is AverageKeys.keys else super().forward
        return compute(x, beta, documents, carried)

    def _average(self, x: Tensor, beta: Tensor, documents: Documents, carried: Carried | None) -> tuple[Tensor, Tensor]:
        ktilde = self.W_phi(x).unflatten(-1, (self.heads, -1))
        return average_keys(ktilde, *self.gates(x), beta, documents, self.kernels, carried)


def averages(keys: Keys) -> bool:
    """Return whether keys are those of equation (8) or (7), with any gates: a derived class may change them further."""
    kind = type(keys)
    return kind.forward is AverageKeys.forward and kind.keys is AverageKeys.keys


class GatedKeys(AverageKeys):
    """The keys of equation (8).

    Args:
        dim: d.
        heads: H.
        std: initial standard deviation of the matrices.
    """

    def __init__(self, dim: int, heads: int, std: float):
        super().__init__()
        self.heads = heads
        self.W_phi = Linear(dim, dim, std)
        self.W_g = Linear(dim, heads, std)
        self.W_lambda = Linear(dim, heads, std)

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return log g and log lambda, (B, T, H) each, from inputs (B, T, d)."""
        return self.W_g(x), -self.W_lambda(x).abs()


class LeakyKeys(AverageKeys):
    """The keys of v1, equation (7): one learned lambda = exp(-|s|) a head.

    s is stored divided by ten and begins at 0.5 for the first head, rising linearly to 5 for the last.

    Args:
        dim: d.
        heads: H.
        std: initial standard deviation of W_phi.
        bias: whether W_phi has one.
    """

    def __init__(self, dim: int, heads: int, std: float, bias: bool = False):
        super().__init__()
        self.heads = heads
        self.W_phi = Linear(dim, dim, std, bias)
        self.leak = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.leak.copy_(torch.linspace(0.5, 5, self.heads, device="cpu") / V1_SCALAR_SCALE)

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return log g = 0 and log lambda, (B, T, H) each, from inputs (B, T, d)."""
        decay = self.log_lambda.expand(*x.shape[:-1], self.heads)
        return torch.zeros_like(decay), decay

    @property
    def log_lambda(self) -> Tensor:
        """log lambda, (H,)."""
        return -(V1_SCALAR_SCALE * self.leak).abs()

    def scalars(self) -> dict[str, Tensor]:
        """Return lambda, (H,)."""
        return {"lambda": self.log_lambda.exp()}


def gated_average_reference(ktilde: Tensor, gate: Tensor, decay: Tensor, documents: Documents) -> Tensor:
    """Compute the keys of equation (8) token by token; every faster form must agree with it.

    Args:
        ktilde: (B, T, H, D) raw keys W_phi x.
        gate: (B, T, H) log g = W_g x.
        decay: (B, T, H) log lambda = -|W_lambda x|, at most 0.
        documents: where to restart.

    Returns:
        (B, T, H, D) keys of norm 1, computed in float32 or better and their logs in float64.
    """
    dtype, exact = ktilde.dtype, torch.promote_types(ktilde.dtype, torch.float32)
    ktilde = ktilde.to(exact)
    total = torch.zeros_like(ktilde[:, 0])  # (B, H, D), kbar_t / exp(scale)
    scale = torch.full_like(gate[:, 0], -torch.inf, dtype=torch.float64)  # (B, H)
    keys = []
    for t in range(ktilde.shape[1]):
        scale = scale.masked_fill((documents.position[:, t] == 0)[:, None], -torch.inf)
        total, scale = gated_step(ktilde[:, t], gate[:, t], decay[:, t], total, scale)
        keys.append(F.normalize(total, dim=-1, eps=EPS))
    return torch.stack(keys, dim=1).to(dtype)


def gated_step(ktilde: Tensor, gate: Tensor, decay: Tensor, total: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Add one token to the average of equation (8), with kbar_t = exp(scale) total.

    Args:
        ktilde: (B, H, D) raw keys.
        gate: (B, H) log g.
        decay: (B, H) log lambda.
        total: (B, H, D) of the token before.
        scale: (B, H) of the token before; -inf where a document begins.

    Returns:
        total and scale of this token.
    """
    logs = torch.stack([scale + decay, gate])
    scale = logs.amax(0).detach()  # scale invariance: no gradient flows through it
    fade, fresh = (logs - scale).exp().to(total.dtype)[..., None]
    return torch.addcmul(fade * total, fresh, ktilde), scale


def average_keys(
    ktilde: Tensor,
    gate: Tensor,
    decay: Tensor,
    beta: Tensor,
    documents: Documents,
    kernels: Kernels = "auto",
    carried: Carried | None = None,
) -> tuple[Tensor, Tensor]:
    """Return queries q = beta k and keys k of equation (8), of whole documents or of a chunk that continues a state.

    Args:
        ktilde: (B, T, H, D) raw keys W_phi x.
        gate: (B, T, H) log g.
        decay: (B, T, H) log lambda, at most 0.
        beta: bandwidths, (B, T, H) or (H,).
        documents: where to restart.
        kernels: the kernels that compute them.
        carried: total (B, H, D) and scale (B, H) of :func:`gated_step`, replaced by those after the last token.

    Returns:
        (B, T, H, D) each, in ktilde's type.
    """
    kernels = dispatch_kernels(kernels, ktilde.device, ktilde.dtype, ktilde.shape[-1])
    if carried is None:
        return _in_documents(ktilde, gate, decay, beta, documents, kernels)
    if documents.step:
        scale = carried["scale"]
        if documents.begins_here:
            scale = scale.masked_fill(documents.starts, -torch.inf)
        total, scale = gated_step(ktilde[:, 0], gate[:, 0], decay[:, 0], carried["total"], scale)
        k = normalize(total).to(ktilde.dtype)[:, None]
        q = queries(k, beta)
    elif documents.begin == 0:
        q, k = _in_documents(ktilde, gate, decay, beta, documents, kernels)
        total, scale = _last_step(ktilde, gate, decay, documents)
    else:  # the state is one token more, before the chunk
        raw = torch.cat([carried["total"][:, None], ktilde.to(carried["total"].dtype)], 1)
        gate = torch.cat([carried["scale"][:, None], gate.double()], 1)
        decay = F.pad(decay, (0, 0, 1, 0))
        _, k = _in_documents(raw, gate, decay, raw.new_ones(()), documents.carried, kernels)
        k = k[:, 1:].to(ktilde.dtype)
        q = queries(k, beta)
        total, scale = _last_step(raw, gate, decay, documents.carried)
    carried.update(total=total.contiguous(), scale=scale.contiguous())
    return q, k


def _in_documents(
    ktilde: Tensor, gate: Tensor, decay: Tensor, beta: Tensor, documents: Documents, kernels: Kernels
) -> tuple[Tensor, Tensor]:
    """Return q and k of equation (8), of whole documents."""
    if kernels != "reference":
        return gated_keys(ktilde, gate, decay, beta, documents, kernels)
    k = gated_average_reference(ktilde, gate, decay, documents)
    return queries(k, beta), k


def _last_step(ktilde: Tensor, gate: Tensor, decay: Tensor, documents: Documents) -> tuple[Tensor, Tensor]:
    """Return total and scale of :func:`gated_step` after the last token."""
    until_end = decay.double().flip(1).cumsum(1).flip(1) - decay
    age = torch.arange(ktilde.shape[1] - 1, -1, -1, device=ktilde.device)
    others = age > documents.position[:, -1:]  # tokens of earlier documents
    logs = (gate + until_end).masked_fill(others[..., None], -torch.inf)  # (B, T, H)
    scale = logs.amax(1)
    exact = ktilde.to(torch.promote_types(ktilde.dtype, torch.float32))
    with torch.autocast(ktilde.device.type, enabled=False):
        return torch.einsum("bth,bthd->bhd", (logs - scale[:, None]).exp().to(exact.dtype), exact), scale
