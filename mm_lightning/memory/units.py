"""A contextual memory: keys, values, bandwidth and the read, together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mm_lightning.memory.bandwidth import AdaptiveBandwidth, FixedBandwidth, frozen_bandwidth
from mm_lightning.memory.blocks import BlockStore
from mm_lightning.memory.documents import Documents
from mm_lightning.memory.kernels import Kernels, gated_keys
from mm_lightning.memory.layers import TIMES, Linear
from mm_lightning.memory.pairs import Chunk, Pairs
from mm_lightning.memory.retrieval import Span, fused_attention, read
from mm_lightning.memory.state import Memory
from mm_lightning.memory.values import Values, frozen_values

Keys = Literal["gated", "leaky"]
Bandwidth = Literal["adaptive", "fixed"]


class GatedKeys(nn.Module):
    """Keys of equation (8): a gated, time-variant average of W_phi x over the document so far, of norm 1."""

    def __init__(self, dim: int, heads: int, std: float):
        super().__init__()
        self.heads = heads
        self.W_phi = Linear(dim, dim, std)
        self.W_g = Linear(dim, heads, std)
        self.W_lambda = Linear(dim, heads, std)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Raw keys (B, T, H, D), log g and log lambda (B, T, H) from (B, T, d) inputs."""
        return self.W_phi(x).unflatten(-1, (self.heads, -1)), self.W_g(x), -self.W_lambda(x).abs()


class LeakyKeys(nn.Module):
    """Keys of v1, equation (7): kbar_T = ktilde_T + lambda kbar_{T-1} with one learned lambda = exp(-|s|) a head.

    s is stored divided by ten and begins at 0.5 for the first head, rising linearly to 5 for the last.
    """

    def __init__(self, dim: int, heads: int, std: float, bias: bool = False):
        super().__init__()
        self.heads = heads
        self.W_phi = Linear(dim, dim, std, bias)
        self.leak = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.leak.copy_(torch.linspace(0.5, 5, self.heads) / TIMES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Raw keys (B, T, H, D), log g = 0 and log lambda (B, T, H) from (B, T, d) inputs."""
        raw = self.W_phi(x).unflatten(-1, (self.heads, -1))
        decay = self.log_lambda.expand(raw.shape[:-1])
        return raw, torch.zeros_like(decay), decay

    @property
    def log_lambda(self) -> Tensor:
        """(H,)"""
        return -(TIMES * self.leak).abs()


def make_keys(kind: Keys, dim: int, heads: int, std: float, bias: bool = False) -> GatedKeys | LeakyKeys:
    """The features of equation (8) or (7)."""
    return GatedKeys(dim, heads, std) if kind == "gated" else LeakyKeys(dim, heads, std, bias)


def frozen_gates(keys: Sequence[GatedKeys | LeakyKeys]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """log g and log lambda of the heads of several memories of one kind, with the present parameters, for inference.

    Returns:
        A function of (B, d) inputs to two tensors (B, H), with H heads in all.
    """
    if isinstance(keys[0], LeakyKeys):
        decay = torch.cat([k.log_lambda for k in keys if isinstance(k, LeakyKeys)]).detach()
        log_g = torch.zeros_like(decay)
        return lambda x: (log_g.expand(len(x), -1), decay.expand(len(x), -1))
    gated = [k for k in keys if isinstance(k, GatedKeys)]
    weight = torch.cat([k.W_g.weight for k in gated] + [k.W_lambda.weight for k in gated]).detach()

    def gates(x: Tensor) -> tuple[Tensor, Tensor]:
        log_g, decay = F.linear(x, weight).chunk(2, -1)
        return log_g, -decay.abs()

    return gates


class ContextualMemory(nn.Module):
    """H associative memories over the documents' own past, one a head.

    Query and key are the same vector. Which pairs are read is decided by the caller's span, so that the short-term
    and the long-term memory of v2 and the contextual memory of v1 are this one module.

    Args:
        dim: d.
        heads: H.
        std: of the matrices' initial values.
        keys: gated (8) or leaky (7).
        bandwidth: adaptive (6) or fixed.
        values: how values are made; see :class:`Values`.
        dropout: share of the retrieval weights dropped in training.
        bias: whether leaky keys and values have a bias.

    Attributes:
        kernels: what computes keys and values; see :func:`mm_lightning.memory.kernels.set_kernels`.
    """

    kernels: Kernels = "auto"

    def __init__(
        self,
        dim: int,
        heads: int,
        std: float,
        keys: Keys = "gated",
        bandwidth: Bandwidth = "adaptive",
        values: Values | None = None,
        dropout: float = 0.0,
        bias: bool = False,
    ):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.keys = make_keys(keys, dim, heads, std, bias)
        self.W_psi = Linear(dim, dim, std, bias)
        self.values = values or Values(heads)
        self.bandwidth = AdaptiveBandwidth(heads) if bandwidth == "adaptive" else FixedBandwidth(heads)

    def forward(self, x: Tensor, span: Span, documents: Documents | Chunk, memory: Memory | None = None) -> Tensor:
        """(B, T, d) retrieved values from (B, T, d) inputs: whole documents, or a chunk that goes on from a state."""
        ktilde, gate, decay = self.keys(x)
        raw = self.W_psi(x).unflatten(-1, (self.heads, -1))
        beta = self.bandwidth(span.count(documents.position))
        if memory is not None and isinstance(documents, Chunk):
            q, k = memory.average.extend(ktilde, gate, decay, beta, documents, self.kernels)
            return self._continued(q, k, raw, span, documents, memory).flatten(-2)
        assert isinstance(documents, Documents)
        q, k = gated_keys(ktilde, gate, decay, beta, documents, self.kernels)
        v = self.values(raw, documents, self.kernels)
        return self._read(q, k, v, span, documents).flatten(-2)

    def _read(self, q: Tensor, k: Tensor, v: Tensor, span: Span, documents: Documents) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return read(q, k, v, span, documents, dropout=dropout, reference=self.kernels == "reference")

    def _continued(self, q: Tensor, k: Tensor, raw: Tensor, span: Span, chunk: Chunk, memory: Memory) -> Tensor:
        """(B, T, H, D) answers to a chunk, which is stored."""
        assert memory.pairs is not None
        if chunk.begin > 0:
            return memory.ask(q, k, raw, span, chunk)
        v = self.values(raw, chunk.documents, self.kernels)  # nothing is stored yet: read as in training
        memory.pairs.write_first(k, v, raw)
        return self._read(q, k, v, span, chunk.documents)

    def new_state(self, span: Span, capacity: int, store: BlockStore | None = None) -> Memory:
        """Of an empty memory, with room for so many pairs at first; read by blocks if there is a store for it."""
        pairs = Pairs(None if span.size is None else span.delay + span.size, capacity, store, self.kernels)
        return Memory(pairs, frozen_bandwidth([self.bandwidth]), frozen_values([self.values]))

    def scalars(self) -> dict[str, Tensor]:
        """The learned scalars by name, (H,) each."""
        found = {**self.bandwidth.scalars(), **self.values.scalars()}
        if isinstance(self.keys, LeakyKeys):
            found["lambda"] = self.keys.log_lambda.exp()
        return found


class SlotMemory(nn.Module):
    """v1's persistent memory: S learned key-value pairs a head, read by a leaky average of the input.

        W_c [exp(s_o) softmax_i(exp(2 kappa) k.P_k,i) P_v,i],    k = Norm(leaky average of W_phi x)

    With several banks of slots their answers are averaged. kappa = 1 and s_o = -0.5 at first, stored divided by ten.

    Args:
        dim: d.
        heads: H.
        slots: S, pairs of each head (and bank).
        banks: C.
        std: of the two matrices' initial values; slots begin with 1/sqrt(D).
        bias: whether the two linear maps have one.

    Attributes:
        kernels: what computes the keys.
    """

    kernels: Kernels = "auto"

    def __init__(self, dim: int, heads: int, slots: int, banks: int, std: float, bias: bool = False):
        super().__init__()
        self.heads = heads
        self.keys = LeakyKeys(dim, heads, std, bias)
        self.bandwidth = FixedBandwidth(heads, scaled_sides=1)
        self.slot_keys = nn.Parameter(torch.empty(banks, heads, slots, dim // heads))
        self.slot_values = nn.Parameter(torch.empty(banks, heads, slots, dim // heads))
        self.answer_scale = nn.Parameter(torch.empty(heads))
        self.W_c = Linear(dim, dim, std, bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for slots in (self.slot_keys, self.slot_values):
            nn.init.normal_(slots, std=slots.shape[-1] ** -0.5)
        nn.init.constant_(self.answer_scale, -0.5 / TIMES)

    def new_state(self) -> Memory:
        """Of a memory whose average is empty; its pairs are learned."""
        return Memory()

    def forward(self, x: Tensor, documents: Documents | Chunk, memory: Memory | None = None) -> Tensor:
        """(B, T, d) from (B, T, d)."""
        ktilde, gate, decay = self.keys(x)
        beta = self.bandwidth.beta
        if memory is not None and isinstance(documents, Chunk):
            q, _ = memory.average.extend(ktilde, gate, decay, beta, documents, self.kernels)
        else:
            assert isinstance(documents, Documents)
            q, _ = gated_keys(ktilde, gate, decay, beta, documents, self.kernels)
        # The batch is folded into the rows: every token reads the same slots.
        rows = q.flatten(0, 1).transpose(0, 1)[None]  # (1, H, B T, D)
        slot_keys, slot_values = self.slot_keys.to(q.dtype), self.slot_values.to(q.dtype)
        answers = [fused_attention(rows, pk[None], pv[None]) for pk, pv in zip(slot_keys, slot_values, strict=True)]
        answer = sum(answers) / len(answers)  # (1, H, B T, D)
        answer = answer * (TIMES * self.answer_scale).exp()[:, None, None].to(q.dtype)
        return self.W_c(answer[0].transpose(0, 1).reshape(x.shape))
