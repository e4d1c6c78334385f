"""The contextual memories of a block together, a token at a time.

What a single token costs beyond its matrix products and reads is not arithmetic but the number of small operations, so
the heads of all levels go through equations (6), (8) and (9) side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mm_lightning.memory.bandwidth import frozen_bandwidth
from mm_lightning.memory.kernels import plain, resolve
from mm_lightning.memory.pairs import Chunk, Pairs
from mm_lightning.memory.recurrence import gated_step, queries, unit
from mm_lightning.memory.retrieval import Span
from mm_lightning.memory.state import Memory
from mm_lightning.memory.units import ContextualMemory, frozen_gates
from mm_lightning.memory.values import frozen_values

if TYPE_CHECKING:
    from mm_lightning.memory.native_step import Step

Carried = tuple[Tensor, Tensor, Tensor]


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
        self._joined: Carried | None = None
        self._parts: tuple[Tensor, ...] = ()
        self._step: Step | None = None

    def step(self, x: Tensor, chunk: Chunk) -> Tensor:
        """Stores a token in every memory and answers it: (B, 1, n d) from (B, 1, d)."""
        x = x[:, 0]
        total, scale, before = carried = self._carried()
        if chunk.starts is not None:
            scale.masked_fill_(chunk.starts, -torch.inf)
        keys = [memory.keys.W_phi(x) for memory in self.memories]
        values = [memory.W_psi(x) for memory in self.memories]
        if self._native(keys[0]):
            return self._native_step(keys, values, *self.gates(x), carried, chunk)
        ktilde, raw = (torch.cat(parts, -1).view(total.shape) for parts in (keys, values))
        new_total, new_scale = gated_step(ktilde, *self.gates(x), total, scale)
        k = unit(new_total).to(x.dtype)
        # The last pair's value is not complete yet; that of a document's last token never is, and nothing reads it.
        v = self.values.of(before, raw)
        for kept, new in zip(carried, (new_total, new_scale, raw), strict=True):
            kept.copy_(new)
        q = queries(k, self.bandwidth(chunk.counts(self.spans, self.heads)))
        parts = zip(*(y[:, None].chunk(len(self.pairs), 2) for y in (q, k, v)), strict=True)
        answers = []
        for pairs, span, (query, key, value) in zip(self.pairs, self.spans, parts, strict=True):
            pairs.write(key, value, 1)
            answers.append(pairs.read(query, span, chunk))
        return torch.cat(answers, 2).flatten(-2)

    def _native(self, x: Tensor) -> bool:
        """Whether one compiled call does it all: where the pairs lie in plain buffers, of the type of what comes in.

        (They are of another where autocast was switched on or off meanwhile.)
        """
        if any(type(pairs) is not Pairs or pairs.blocks is not None for pairs in self.pairs):
            return False
        held = [y for pairs in self.pairs for y in (pairs.keys, pairs.raw)]
        if not plain(x) or any(y is None or y.dtype != x.dtype for y in held):
            return False
        return resolve(self.memories[0].kernels, x.device, x.dtype) == "native"

    def _native_step(
        self,
        keys: list[Tensor],
        values: list[Tensor],
        gate: Tensor,
        decay: Tensor,
        carried: Carried,
        chunk: Chunk,
    ) -> Tensor:
        if self._step is None:
            from mm_lightning.memory.native_step import Step

            gamma, alpha_psi = self.values.gamma, self.values.alpha_psi
            gamma = torch.ones_like(alpha_psi) if gamma is None else gamma
            self._step = Step(self.bandwidth, gamma, alpha_psi, carried)
        memories = []
        for pairs, span in zip(self.pairs, self.spans, strict=True):
            at, end = pairs.place(1, carried[2]), chunk.begin + 1 - span.delay
            low = 0 if span.size is None else max(0, end - span.size)
            memories.append((pairs.keys, pairs.values, (at, low, end, pairs.offset)))
        return self._step(keys, values, gate, decay, chunk.first[:, 0], memories).flatten(1)[:, None]

    def _carried(self) -> Carried:
        """total, scale and the newest raw values of all heads, of which each memory's are parts, to change in place."""
        totals = [average.total for average in self.averages]
        if self._joined is None or any(x is not y for x, y in zip(totals, self._parts, strict=True)):
            own = [(a.total, a.scale, p.raw) for a, p in zip(self.averages, self.pairs, strict=True)]
            total, scale, raw = (torch.cat(parts, 1) for parts in zip(*own, strict=True))
            self._joined, self._step = (total, scale, raw), None
            self._parts, scales, raws = (x.chunk(len(self.pairs), 1) for x in self._joined)
            for average, pairs, *views in zip(self.averages, self.pairs, self._parts, scales, raws, strict=True):
                average.total, average.scale, pairs.raw = views
        return self._joined
