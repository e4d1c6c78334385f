"""The operations of a v2 training step one by one: forward and backward, with their FLOPs and bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mm_lightning.experiments.benchmark.setup import Setup
from mm_lightning.experiments.benchmark.step import TrainingStep
from mm_lightning.memory.documents import Documents
from mm_lightning.memory.kernels import Kernels, set_kernels
from mm_lightning.memory.kernels.fused_read import fused_read
from mm_lightning.memory.keys import average_keys

KEYS_MOVE = 8
"""Numbers of a token's d that keys read and write at least: raw to q and k; raw, k and two gradients to one."""

VALUES_MOVE = 6
"""The same of values: raw to v; raw, v and a gradient to one."""


@dataclass(frozen=True)
class Operation:
    """Of a step.

    Attributes:
        run: one forward and backward pass.
        times: how often a step does it.
        flops: of one.
        bytes: that one has to move.
    """

    run: Callable[[], Any]
    times: int
    flops: float
    bytes: float


class Operations:
    """Those of the forward and backward pass, on the modules of one block and on random numbers.

    Args:
        what: dimensions, batch and precision.
        device: where.
        seed: of weights and numbers.
        kernels: for keys and values.
    """

    def __init__(self, what: Setup, device: torch.device, seed: int, kernels: Kernels) -> None:
        torch.manual_seed(seed)
        self.config, self.device = what.network, device
        self.half = what.precision == "bf16"
        self.number = 2 if self.half else 4
        """Bytes of one that goes into a matrix product."""
        batch, time = what.batch_size, what.context_length
        d, heads = self.config.dim, self.config.heads
        self.tokens = batch * time
        dtype = torch.bfloat16 if self.half else torch.float32

        def random(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.randn(batch, time, *shape, dtype=dtype, requires_grad=True)

        with device:
            self.network: Any = replace(self.config, layers=1).build()
            self.words = torch.randint(self.config.vocab_size, (batch, time))
            self.stream = random(d, dtype=torch.float32)
            self.input = random(d)
            self.answers = random(len(self.config.levels) * d)
            self.raw = random(heads, d // heads)
        set_kernels(self.network, kernels)
        self.block = self.network.blocks[0]
        self.memory = next(iter(self.block.contextual.values()))
        self.documents = Documents.whole(batch, time, device)

    def all(self) -> dict[str, Operation]:
        """By name, in the order of a step."""
        return {**self._stream(), **self._features(), **self._reads(), **self._products()}

    def _stream(self) -> dict[str, Operation]:
        network, block, stream, x = self.network, self.block, self.stream, self.input
        d, n, layers = self.config.dim, self.tokens, self.config.layers
        one_way = n * d * (4 + self.number)  # a stream in float32, and its part of a block
        return {
            "embedding": self._operation(
                lambda: network.embedding(self.words), [], [network.embedding], 1, 0, 3 * n * d * 4 + self._weights
            ),
            "norms": self._operation(
                lambda: block.contextual_norm(stream),
                [stream],
                [block.contextual_norm],
                2 * layers + 1,
                20 * n * d,
                one_way + n * d * (8 + self.number),
            ),
            "residual sums": self._operation(
                lambda: stream + x, [stream, x], [], 2 * layers, n * d, 2 * one_way + n * d * 4
            ),
        }

    @property
    def _weights(self) -> int:
        """Bytes of the embedding's weights, or of their gradient."""
        return self.config.vocab_size * self.config.dim * 4

    def _features(self) -> dict[str, Operation]:
        memory, x, raw, documents = self.memory, self.input, self.raw, self.documents
        d, n, heads = self.config.dim, self.tokens, self.config.heads
        times = len(self.config.levels) * self.config.layers
        with torch.no_grad(), self._autocast():
            gate, decay = memory.keys.gates(x)
            beta = memory.bandwidth(documents.position + 1)
        gate, decay, beta = (t.detach().requires_grad_() for t in (gate, decay, beta))
        return {
            "projections": self._operation(
                lambda: (memory.keys.W_phi(x), *memory.keys.gates(x), memory.W_psi(x)),
                [x],
                [memory.keys, memory.W_psi],
                times,
                *self._product(d, 2 * d + 2 * heads),
            ),
            "keys": self._operation(
                lambda: average_keys(raw, gate, decay, beta, documents, memory.keys.kernels),
                [raw, gate, decay, beta],
                [],
                times,
                24 * n * d,
                KEYS_MOVE * n * d * self.number,
            ),
            "values": self._operation(
                lambda: memory.values(raw, documents),
                [raw],
                [memory.values],
                times,
                24 * n * d,
                VALUES_MOVE * n * d * self.number,
            ),
        }

    def _reads(self) -> dict[str, Operation]:
        config, memory, documents = self.config, self.memory, self.documents
        with torch.no_grad():
            v = memory.values(self.raw, documents)
            k = v / memory.values.alpha_psi[:, None].to(v.dtype)
        q, k, v = (x.detach().requires_grad_() for x in (4 * k, k, v))
        found = {}
        for level in config.levels:
            span = config.span(level, sum(config.long_term_delay) // 2)
            pairs = int(span.count(documents.position).sum())
            found["read" if level == "full" else f"{level}-term read"] = self._operation(
                lambda span=span: fused_read(q, k, v, span, documents),
                [q, k, v],
                [],
                config.layers,
                12 * config.dim * pairs,
                12 * self.tokens * config.dim * self.number,  # q, k, v, answer; these, its gradient, and three more
            )
        return found

    def _products(self) -> dict[str, Operation]:
        network, block, stream, x, answers = self.network, self.block, self.stream, self.input, self.answers
        d, f, n, layers = self.config.dim, self.config.persistent_dim, self.tokens, self.config.layers
        parts = [self._product(d, 2 * f), self._product(f, d), (15 * n * f, 8 * n * f * self.number)]
        return {
            "W_o": self._operation(
                lambda: block.W_o(answers), [answers], [block.W_o], layers, *self._product(answers.shape[-1], d)
            ),
            "SwiGLU": self._operation(
                lambda: block.persistent(x),
                [x],
                [block.persistent],
                layers,
                sum(flops for flops, _ in parts),
                sum(moved for _, moved in parts),
            ),
            "classifier and loss": self._operation(
                lambda: network.classifier(stream, self.words),
                [stream],
                [network.classifier],
                1,
                6 * n * d * self.config.vocab_size,
                3 * n * d * 4 + 3 * self._weights,
            ),
        }

    def _product(self, into: int, out: int) -> tuple[int, int]:
        """FLOPs and bytes of a linear map: three products; its weights are read twice and their gradient is written."""
        return 6 * self.tokens * into * out, self.tokens * (3 * into + 2 * out) * self.number + 3 * into * out * 4

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)

    def _operation(
        self,
        forward: Callable[[], Any],
        inputs: list[Tensor],
        modules: list[torch.nn.Module],
        times: int,
        flops: float,
        moved: float,
    ) -> Operation:
        """Both passes of a function, with derivatives by its inputs and by the parameters of modules."""
        wanted = [*inputs, *(p for module in modules for p in module.parameters())]
        down: list[Tensor] = []

        def run() -> None:
            with self._autocast():
                out = forward()
            outs = list(out) if isinstance(out, tuple) else [out]
            down[:] = down or [torch.randn_like(x) for x in outs]
            torch.autograd.grad(outs, wanted, down)

        return Operation(run, times, flops, moved)


def optimization(step: TrainingStep) -> Operation:
    """Clipping and AdamW of a step's network, on gradients of its own."""
    parameters = list(step.network.parameters())

    def run() -> None:
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.full_like(parameter, 1e-6)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        step.optimizer.step()

    count = sum(p.numel() for p in parameters)
    # the norm reads gradients and writes them scaled; AdamW reads four numbers and writes three
    return Operation(run, 1, 18 * count, 10 * 4 * count)
