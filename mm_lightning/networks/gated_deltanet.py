"""Gated DeltaNet (Yang, Kautz and Hatamizadeh, arXiv 2412.06464), alone and mixed with attention.

Each head keeps a matrix instead of its pairs, to which a token adds what the matrix does not answer yet:

    S_t = alpha_t S_{t-1} + beta_t k_t (v_t - alpha_t k_t S_{t-1}),    answer q_t S_t

with q and k of norm 1, alpha_t = exp(-exp(A) softplus(W_alpha x + b)) and beta_t = sigmoid(W_beta x). The strongest of
the networks whose state does not grow with the text, it is what reading stored pairs is compared with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mm_lightning.errors import UserError
from mm_lightning.memory.documents import Documents
from mm_lightning.memory.kernels import Kernels
from mm_lightning.memory.layers import Linear, Norm
from mm_lightning.memory.state import MemoryState
from mm_lightning.networks.base import ForwardContext, depth_std
from mm_lightning.networks.block import Block, compile_pointwise
from mm_lightning.networks.config import Dimension
from mm_lightning.networks.short_convolution import ShortConvolution
from mm_lightning.networks.transformer import Transformer, TransformerBlock, TransformerConfig
from mm_lightning.ranges import AtLeastTwo

CHUNK = 64
"""Tokens whose updates are solved for at once."""


@dataclass
class GatedDeltaNetConfig(TransformerConfig):
    """Gated DeltaNet: blocks of a gated delta rule and SwiGLU, with attention in every n-th block if asked for.

    Args:
        attention_every: n: every n-th block has attention instead (4 for the paper's 3:1 hybrid); none by default.
        key_dim: dimension of a head's queries and keys; 3/4 of dim / heads by default, as published.
        value_dim: dimension of a head's values; twice key_dim by default, as published.
        convolution: tokens that the short convolution on queries, keys and values sees.
    """

    attention_every: AtLeastTwo | None = None
    key_dim: Dimension | None = None
    value_dim: Dimension | None = None
    convolution: AtLeastTwo = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention_every is not None and self.attention_every > self.layers:
            raise UserError(
                f"attention_every must be at most the number of layers, {self.layers}, got {self.attention_every}: "
                f"no block would have attention; leave it out for none"
            )
        own = TransformerConfig.__annotations__  # settings of attention alone
        given = [name for name in own if getattr(self, name) != getattr(TransformerConfig, name)]
        if self.attention_every is None and given:
            raise UserError(f"without attention_every no block has attention: leave {', '.join(given)} out")

    @property
    def state_dims(self) -> tuple[int, int]:
        """The dimensions (D, D') of a head's keys and values."""
        key = self.key_dim or max(1, 3 * self.head_dim // 4)
        return key, self.value_dim or 2 * key

    def build(self) -> GatedDeltaNet:
        return GatedDeltaNet(self)


def delta_rule_reference(
    q: Tensor, k: Tensor, v: Tensor, log_alpha: Tensor, beta: Tensor, documents: Documents, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the gated delta rule token by token; the chunked form must agree with it.

    Args:
        q, k: (B, T, H, D), of norm 1; q is scaled by the caller.
        v: (B, T, H, D').
        log_alpha: (B, T, H), at most 0.
        beta: (B, T, H), from 0 to 1.
        documents: where the state restarts at 0.
        state: (B, H, D, D'), S before the first token.

    Returns:
        answers (B, T, H, D'), and S after the last token.
    """
    answers = []
    for t in range(q.shape[1]):
        begins = (documents.position[:, t] == 0)[:, None, None, None]
        state = state.masked_fill(begins, 0) * log_alpha[:, t].exp()[..., None, None]
        novelty = v[:, t] - torch.einsum("bhd,bhde->bhe", k[:, t], state)
        state = state + torch.einsum("bhd,bhe->bhde", k[:, t], beta[:, t, :, None] * novelty)
        answers.append(torch.einsum("bhd,bhde->bhe", q[:, t], state))
    return torch.stack(answers, 1), state


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, log_alpha: Tensor, beta: Tensor, documents: Documents, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the gated delta rule in chunks of `CHUNK` tokens; see :func:`delta_rule_reference`.

    Within a chunk what each token adds, u_t = beta_t (v_t - alpha_t k_t S_{t-1}), solves the triangular system

        u_t + beta_t sum_{i<t} exp(g_t - g_i) (k_t.k_i) u_i = beta_t (v_t - exp(g_t) k_t S_0)

    with g the sum of log alpha since the chunk's beginning: all chunks at once, but for S_0, which goes from each to
    the next.
    """
    time = q.shape[1]
    length = min(CHUNK, time)
    padding = -time % length
    position = documents.position
    if padding:  # tokens that add nothing and forget nothing
        q, k, v = (F.pad(x, (0, 0, 0, 0, 0, padding)) for x in (q, k, v))
        log_alpha, beta = (F.pad(x, (0, 0, 0, padding)) for x in (log_alpha, beta))
        more = torch.arange(1, padding + 1, device=position.device)
        position = torch.cat([position, position[:, -1:] + more], 1)
    q, k, v, log_alpha, beta = (
        x.unflatten(1, (-1, length)).movedim(3, 1) for x in (q, k, v, log_alpha, beta)
    )  # (B, H, N, C, ...)
    position = position.unflatten(1, (-1, length))[:, None]
    index = torch.arange(length, device=q.device)
    age = index[:, None] - index
    together = (age >= 0) & (position[..., None] >= age)  # t and i are in one document, i not after t
    goes_on = position > index  # its document began before the chunk
    g = log_alpha.double().cumsum(-1)
    decay = (g[..., None] - g[..., None, :]).masked_fill(~together, -torch.inf).exp().to(q.dtype)  # (B, H, N, C, C)
    since = g.masked_fill(~goes_on, -torch.inf).exp().to(q.dtype)  # of S_0, until each token
    system = (beta[..., None] * decay * (k @ k.mT)).tril(-1)
    right = beta[..., None] * torch.cat([v, since[..., None] * k], -1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    fresh, fade = solved.split([v.shape[-1], k.shape[-1]], -1)
    until_end = (decay[..., -1, :, None] * k).mT  # (B, H, N, D, C)
    states, additions = [], []
    for n in range(q.shape[2]):
        added = fresh[:, :, n] - fade[:, :, n] @ state
        states.append(state)
        additions.append(added)
        state = since[:, :, n, -1, None, None] * state + until_end[:, :, n] @ added
    answers = (since[..., None] * q) @ torch.stack(states, 2) + (decay * (q @ k.mT)) @ torch.stack(additions, 2)
    return answers.movedim(1, 3).flatten(1, 2)[:, :time], state


@cache
def fla_delta_rule() -> Any:
    """Return flash-linear-attention's fused kernel for GPUs, or None where the package is not installed."""
    try:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    except ImportError:
        return None
    return chunk_gated_delta_rule


class DeltaMemory(nn.Module):
    """The gated delta rule of one block, before its output projection.

    Args:
        config: of the network; D and D' are its state_dims.
        std: initial standard deviation of the matrices.

    Attributes:
        kernels: reference for the recurrence token by token, torch for chunks; triton and auto take the kernel of
            flash-linear-attention on a GPU where it is installed.
    """

    kernels: Kernels = "auto"
    compiled = False

    def __init__(self, config: GatedDeltaNetConfig, std: float) -> None:
        super().__init__()
        dim, heads, (key_dim, value_dim) = config.dim, config.heads, config.state_dims
        self.heads, self.key_dim, self.value_dim = heads, key_dim, value_dim
        self.W_q = Linear(dim, heads * key_dim, std)
        self.W_k = Linear(dim, heads * key_dim, std)
        self.W_v = Linear(dim, heads * value_dim, std)
        self.W_gate = Linear(dim, heads * value_dim, std)
        self.W_alpha = Linear(dim, heads, std)
        self.W_beta = Linear(dim, heads, std)
        self.convolution = ShortConvolution(heads * (2 * key_dim + value_dim), config.convolution)
        self.norm = Norm(value_dim, config.norm_eps)
        self.rate = nn.Parameter(torch.empty(heads))  # A
        self.step = nn.Parameter(torch.empty(heads))  # b
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw exp(A) from 1 to 16, and softplus(b) log-uniformly from 0.001 to 0.1, as in Mamba-2."""
        if self.rate.is_meta:
            return
        with torch.no_grad():
            self.rate.uniform_(1, 16).log_()
            step = self.step.uniform_(math.log(0.001), math.log(0.1)).exp()
            self.step.copy_(step + (-(-step).expm1()).log())  # the inverse of softplus

    @property
    def constant_reads(self) -> tuple[int, int]:
        """The hidden size of the answers, and how many pairs would be read for the FLOPs of a step of the state."""
        return self.heads * self.value_dim, 3 * self.key_dim  # k S, the update, q S

    @compile_pointwise
    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return log alpha and beta, (B, T, H) each in float32 or better."""
        alpha, beta = (y.to(torch.promote_types(y.dtype, torch.float32)) for y in (self.W_alpha(x), self.W_beta(x)))
        return -self.rate.exp() * F.softplus(alpha + self.step), beta.sigmoid()

    @compile_pointwise
    def gated_norm(self, answers: Tensor, x: Tensor) -> Tensor:
        """Return the normalized answers (B, T, H, D') times SiLU(W_gate x), (B, T, H D')."""
        return self.norm(answers.to(x.dtype)).flatten(-2) * F.silu(self.W_gate(x))

    def forward(self, x: Tensor, documents: Documents, state: MemoryState | None = None) -> Tensor:
        """Return answers (B, T, H D') from inputs (B, T, d) of whole documents, or of a chunk of a stream."""
        projected = torch.cat([self.W_q(x), self.W_k(x), self.W_v(x)], -1)
        mixed = F.silu(self.convolution(projected, documents, None if state is None else state.carried("convolution")))
        log_alpha, beta = self.gates(x)
        exact = log_alpha.dtype
        q, k, v = mixed.to(exact).split([self.heads * n for n in (self.key_dim, self.key_dim, self.value_dim)], -1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)) for y in (q, k, v))
        q, k = F.normalize(q, dim=-1) * self.key_dim**-0.5, F.normalize(k, dim=-1)
        fused = fla_delta_rule() if x.is_cuda and self.kernels in ("auto", "triton") else None
        with torch.autocast(x.device.type, enabled=False):
            if fused is not None and state is None and mixed.dtype == torch.bfloat16:
                q, k, v = (y.bfloat16() for y in (q, k, v))
                rows = (y.flatten(0, 1)[None] for y in (q, k, v, log_alpha, beta))
                answers, _ = fused(*rows, scale=1.0, cu_seqlens=documents.offsets.long())
                answers = answers.view(*x.shape[:2], self.heads, self.value_dim)
            else:
                carried = {} if state is None else state.carried("matrix")
                empty = (len(x), self.heads, self.key_dim, self.value_dim)
                before = carried["S"] if documents.begin else q.new_zeros(empty)
                compute = delta_rule_reference if self.kernels == "reference" else delta_rule
                answers, carried["S"] = compute(q, k, v, log_alpha, beta, documents, before)
        return self.gated_norm(answers, x)

    def new_state(self) -> MemoryState:
        """Return the empty inference state: S and the inputs of the convolution, whatever the length of the text."""
        return MemoryState()


class DeltaBlock(Block):
    """x += W_o delta(norm(x));  x += SwiGLU(norm(x))"""

    def contextual_memories(self, config: GatedDeltaNetConfig, index: int) -> dict[str, nn.Module]:
        return {"delta": DeltaMemory(config, depth_std(config.dim, index))}

    def output(self, config: GatedDeltaNetConfig, index: int) -> nn.Module:
        width = config.heads * config.state_dims[1]
        return Linear(width, config.dim, depth_std(width, index))

    def read(self, level: str, x: Tensor, context: ForwardContext) -> Tensor:
        memory = self.contextual[level]
        return memory(x, context.documents, context.state_of(memory))


class GatedDeltaNet(Transformer):
    """A language model whose blocks keep a matrix a head, and attention in some of them."""

    config: GatedDeltaNetConfig

    @staticmethod
    def block(config: Any, index: int) -> Block:
        every = config.attention_every
        return (TransformerBlock if every and (index + 1) % every == 0 else DeltaBlock)(config, index)
