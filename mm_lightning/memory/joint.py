"""The contextual memories of a block together, a token at a time.

What a single token costs beyond its matrix products and reads is not arithmetic but the number of small operations, so
the heads of all levels go through equations (6), (8) and (9) side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mm_lightning.memory.bandwidth import frozen_bandwidth
from mm_lightning.memory.kernels import resolve
from mm_lightning.memory.pairs import Chunk, Pairs
from mm_lightning.memory.recurrence import gated_step, unit
from mm_lightning.memory.retrieval import Span
from mm_lightning.memory.state import Memory
from mm_lightning.memory.units import ContextualMemory, frozen_gates
from mm_lightning.memory.values import frozen_values


class JointMemories:
    """n memories of H heads each that have read something, with their parameters as they are.

    Args:
        memories: of one block, alike in all but what they read.
        states: theirs, which a step changes.
        spans: what each reads.
    """

    def __init__(self, memories: Sequence[ContextualMemory], states: Sequence[Memory], spans: Sequence[Span]) -> None:
        self.memories, self.spans, self.heads = memories, tuple(spans), memories[0].heads
        self.averages = [state.average for state in states]
        self.pairs = [state.pairs for state in states if state.pairs is not None]
        self.gates = frozen_gates([memory.keys for memory in memories])
        self.bandwidth = frozen_bandwidth([memory.bandwidth for memory in memories])
        self.values = frozen_values([memory.values for memory in memories])
        self._scalars: tuple[Tensor, ...] = ()  # gamma and alpha_psi
        self._joined: tuple[Tensor, ...] = ()
        self._given: tuple[Tensor, ...] = ()

    def step(self, x: Tensor, chunk: Chunk) -> Tensor:
        """Stores a token in every memory and answers it: (B, 1, n d) from (B, 1, d)."""
        x = x[:, 0]
        total, scale, before = self._carried()
        if chunk.starts is not None:
            scale = scale.masked_fill(chunk.starts, -torch.inf)
        keys = [memory.keys.W_phi(x) for memory in self.memories]
        values = [memory.W_psi(x) for memory in self.memories]
        if self._native(x):
            return self._native_step(keys, values, *self.gates(x), total, scale, before, chunk)
        ktilde, raw = (torch.cat(parts, -1).view(total.shape) for parts in (keys, values))
        total, scale = gated_step(ktilde, *self.gates(x), total, scale)
        self._carry(total, scale, raw)
        k = unit(total).to(x.dtype)
        # The last pair's value is not complete yet; that of a document's last token never is, and nothing reads it.
        v = self.values.of(before, raw)
        q = k * self.bandwidth(chunk.counts(self.spans, self.heads)).to(k.dtype)[..., None]
        parts = zip(*(y[:, None].chunk(len(self.pairs), 2) for y in (q, k, v)), strict=True)
        answers = []
        for pairs, span, (query, key, value) in zip(self.pairs, self.spans, parts, strict=True):
            pairs.write(key, value, 1)
            answers.append(pairs.read(query, span, chunk))
        return torch.cat(answers, 2).flatten(-2)

    def _native(self, x: Tensor) -> bool:
        """Whether one compiled call does it all: where the pairs lie in plain buffers."""
        if any(type(pairs) is not Pairs or pairs.blocks is not None for pairs in self.pairs):
            return False
        return resolve(self.memories[0].kernels, x.device, x.dtype) == "native"

    def _native_step(
        self,
        keys: list[Tensor],
        values: list[Tensor],
        gate: Tensor,
        decay: Tensor,
        total: Tensor,
        scale: Tensor,
        before: Tensor,
        chunk: Chunk,
    ) -> Tensor:
        from mm_lightning.memory.native_step import step

        exact = total.dtype
        if not self._scalars:
            gamma, alpha = self.values.gamma, self.values.alpha_psi
            self._scalars = ((torch.ones_like(alpha) if gamma is None else gamma).to(exact), alpha.to(exact))
        beta = self.bandwidth(chunk.counts(self.spans, self.heads)).to(exact).expand_as(scale).contiguous()
        at = [pairs.place(1, before) for pairs in self.pairs]
        ranges = [pairs.range(span, chunk) for pairs, span in zip(self.pairs, self.spans, strict=True)]
        low, high = torch.stack([first for first, _ in ranges], 1), [end for _, end in ranges]
        buffers = [(p.keys, p.values) for p in self.pairs]
        scalars = gate.to(exact), decay.to(exact), beta, *self._scalars
        *carried, answer = step(keys, values, before, scalars, total, scale, at, low, high, buffers)
        self._carry(*carried)
        return answer.flatten(1)[:, None]

    def _carried(self) -> tuple[Tensor, ...]:
        """total, scale and the newest raw values of all heads."""
        totals = [average.total for average in self.averages]
        if not self._given or any(x is not y for x, y in zip(totals, self._given, strict=True)):
            parts = [(a.total, a.scale, p.raw) for a, p in zip(self.averages, self.pairs, strict=True)]
            self._joined = tuple(torch.cat(x, 1) for x in zip(*parts, strict=True))
        return self._joined

    def _carry(self, *joined: Tensor) -> None:
        """Gives each memory its part of what :meth:`_carried` will be asked for."""
        self._joined = joined
        self._given, scales, raws = (x.chunk(len(self.pairs), 1) for x in joined)
        for average, pairs, *carried in zip(self.averages, self.pairs, self._given, scales, raws, strict=True):
            average.total, average.scale, pairs.raw = carried
