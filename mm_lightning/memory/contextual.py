"""A contextual memory: keys, values, bandwidth and the read, together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mm_lightning.errors import UserError
from mm_lightning.memory.bandwidth import Bandwidth
from mm_lightning.memory.documents import Documents, Span
from mm_lightning.memory.kernels import is_plain, resolve_kernels
from mm_lightning.memory.keys import AverageKeys, Keys, averages
from mm_lightning.memory.layers import Linear
from mm_lightning.memory.pair_cache import PairCache
from mm_lightning.memory.retrieval import Retrieval, SoftmaxRetrieval
from mm_lightning.memory.state import MemoryState
from mm_lightning.memory.values import LookAheadValues, Values


class ContextualMemory(nn.Module):
    """H associative memories over the documents' own past, one a head, whose queries are their keys.

    The span that the caller gives decides which pairs are read: the short-term and the long-term memory of v2 and the
    contextual memory of v1 are this one module.

    Args:
        dim: d.
        heads: H.
        keys: computes keys and queries: equation (8) or (7).
        values: computes values from raw values: equation (9).
        bandwidth: computes how sharply the memory is read: equation (6).
        retrieval: reads it: equation (4).
        std: initial standard deviation of W_psi.
        dropout: share of the retrieval weights dropped in training.
        bias: whether W_psi has a bias.

    Raises:
        UserError: dropout for a retrieval that has none.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        keys: Keys,
        values: Values,
        bandwidth: Bandwidth,
        retrieval: Retrieval,
        std: float,
        dropout: float = 0.0,
        bias: bool = False,
    ):
        super().__init__()
        if dropout and not retrieval.has_dropout:
            name = type(retrieval).__name__
            raise UserError(f"{name} has no dropout of retrieval weights, got dropout {dropout}: set dropout 0")
        self.heads, self.dropout = heads, dropout
        self.keys = keys
        self.W_psi = Linear(dim, dim, std, bias)
        self.values = values
        self.bandwidth = bandwidth
        self.retrieval = retrieval

    def forward(self, x: Tensor, span: Span, documents: Documents, state: MemoryState | None = None) -> Tensor:
        """Return retrieved values (B, T, d) from inputs (B, T, d) of whole documents, or of a chunk of a stream.

        Args:
            x: inputs.
            span: the pairs a query reads.
            documents: where documents begin.
            state: in inference, the state after the tokens before these; updated in place.
        """
        beta = self.bandwidth(documents.count(span), x)
        vtilde = self.W_psi(x).unflatten(-1, (self.heads, -1))
        if state is not None and self._decodes_fused(vtilde, documents, state):
            return self._decode(x, beta, vtilde, span, documents, state).flatten(-2)
        carried = (None, None) if state is None else (state.carried("keys"), state.carried("values"))
        q, k = self.keys(x, beta, documents, carried[0])
        v = self.values(vtilde, documents, carried[1])
        pairs, dropout = None if state is None else state.pairs, self.dropout if self.training else 0.0
        return self.retrieval(q, k, v, span, documents, pairs, self.values.late, 1.0, dropout).flatten(-2)

    def _decodes_fused(self, vtilde: Tensor, documents: Documents, state: MemoryState) -> bool:
        """Return whether one compiled call computes this: a single token on a CPU, by equations (8), (9) and (4).

        Its pairs must lie in plain buffers of the same type, which differ where autocast was switched on or off.
        """
        if not documents.step or type(state.pairs) is not PairCache or not is_plain(vtilde):
            return False
        if not averages(self.keys) or type(self.values) is not LookAheadValues:
            return False
        if type(self.retrieval) is not SoftmaxRetrieval or state.pairs.buffers[0].dtype != vtilde.dtype:
            return False
        raw = state.carried("values")["raw"]
        return raw.dtype == vtilde.dtype and resolve_kernels(self.keys.kernels, vtilde.device, vtilde.dtype) == "numba"

    def _decode(
        self, x: Tensor, beta: Tensor, vtilde: Tensor, span: Span, documents: Documents, state: MemoryState
    ) -> Tensor:
        """Store a single token of each row and return its answers, (B, 1, H, D)."""
        from mm_lightning.memory.kernels.numba_decode import step

        keys, values, pairs = self.keys, self.values, state.pairs
        assert isinstance(keys, AverageKeys)
        assert isinstance(values, LookAheadValues)
        assert pairs is not None
        average, before = state.carried("keys"), state.carried("values")
        if documents.begins_here:
            average["scale"].masked_fill_(documents.starts, -torch.inf)
        gate, decay = (y[:, 0] for y in keys.gates(x))
        at, end = pairs.place(1, vtilde), documents.begin + 1 - span.delay
        place = at, 0 if span.size is None else max(0, end - span.size), end, pairs.offset
        first = documents.begin - documents.position[:, 0]
        beta = beta if beta.dim() == 1 else beta[:, 0]
        scalars = values.gamma, values.alpha_psi
        carried = average["total"], average["scale"], before["raw"]
        return step(keys.W_phi(x), gate, decay, beta, vtilde, *scalars, first, carried, pairs.buffers, place)[:, None]

    @property
    def sublinear(self) -> bool:
        """Whether sub-linear reads support this memory: they need equation (4) and keys of norm 1."""
        return averages(self.keys) and type(self.retrieval) is SoftmaxRetrieval

    def new_state(self, span: Span, capacity: int, pairs: PairCache | None = None) -> MemoryState:
        """Return the empty inference state.

        Args:
            span: the pairs that queries read.
            capacity: pairs to preallocate.
            pairs: an empty cache for them; a plain :class:`PairCache` by default.
        """
        return MemoryState(pairs or PairCache(span.keep, capacity))

    def scalars(self) -> dict[str, Tensor]:
        """Return the learned scalars by name, (H,) each."""
        return {**self.bandwidth.scalars(), **self.values.scalars(), **self.keys.scalars()}
