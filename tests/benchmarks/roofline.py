"""Time each operation of a v2 training step beside the least time that its FLOPs and its bytes could take here.

python tests/benchmarks/roofline.py --config configs/quickstart.yaml
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import torch
from recurrence import KEYS_MOVE, VALUES_MOVE, measure_peaks
from torch import Tensor, nn

from mm_lightning.errors import UserError
from mm_lightning.experiments.benchmark.harness import Benchmark, Case, Options, Row, ready
from mm_lightning.experiments.benchmark.step import DEFAULTS, TrainingStep
from mm_lightning.experiments.benchmark.workload import Workload
from mm_lightning.function_command import run_function
from mm_lightning.memory.documents import Documents
from mm_lightning.memory.kernels import Kernels, resolve_kernels, set_kernels
from mm_lightning.memory.kernels.fused_read import fused_read
from mm_lightning.memory.keys import average_keys

SUMMED = ("flops", "bytes", "total_seconds", "floor_seconds")


def roofline_command(kernels: Kernels = "auto", **options: Annotated[Any, Options]) -> None:
    """Time each operation of a v2 training step beside its floor.

    The floor of an operation is the longer of its floating-point operations at the device's peak and its bytes at the
    device's bandwidth. Both peaks are measured on the spot: a large matrix product in the step's precision, and a large
    copy. Bytes are those that have to move if everything is read and written once in each direction, forward and
    backward; weights are read in float32 under autocast. A whole step and all operations take turns; the table gives
    medians, for all blocks of the network together, and what share of them the floor is. Dimensions by default as in
    `mm benchmark step`.

    Args:
        kernels: kernels of keys and values, as model.kernels of a training config.
    """
    bench = Benchmark("roofline", Options(**options), DEFAULTS)
    work, device = bench.work, bench.device
    network = work.network
    if (network.keys, network.persistent, network.bandwidth) != ("gated", "swiglu", "adaptive"):
        raise UserError("roofline is for v2: keys gated, bandwidth adaptive and persistent swiglu")
    resolve_kernels(kernels, device)
    peaks = measure_peaks(bench)
    step = TrainingStep(network, work, device, bench.seed, kernels)
    operations = [*Operations(work, device, bench.seed, kernels).all(), optimization(step)]
    whole, *rows = bench.measure([Case("whole step", ready(step)), *operations], least=0.005)
    for row in rows:
        floor = max(row["flops"] / peaks["flops_per_second"], row["bytes"] / peaks["bytes_per_second"])
        row |= {"flops": row["times"] * row["flops"], "bytes": row["times"] * row["bytes"]}
        row |= {"total_seconds": row["times"] * row["median_seconds"], "floor_seconds": row["times"] * floor}
    total: Row = {"case": "all of them", **{key: sum(row[key] for row in rows) for key in SUMMED}}
    whole |= {**total, "case": "whole step", "total_seconds": whole["median_seconds"]}
    columns = {
        "": lambda row: row["case"],
        "times": lambda row: f"{row.get('times', '')}",
        "GFLOP": lambda row: f"{row['flops'] / 1e9:,.2f}",
        "MB": lambda row: f"{row['bytes'] / 1e6:,.1f}",
        "ms": lambda row: f"{row['total_seconds'] * 1e3:,.2f}",
        "of the step": lambda row: f"{row['total_seconds'] / whole['total_seconds']:.1%}",
        "floor ms": lambda row: f"{row['floor_seconds'] * 1e3:,.2f}",
        "floor of it": lambda row: f"{row['floor_seconds'] / row['total_seconds']:.1%}",
    }
    tflops, gigabytes = peaks["flops_per_second"] / 1e12, peaks["bytes_per_second"] / 1e9
    title = f"operations of a training step; peaks {tflops:.2f} TFLOP/s and {gigabytes:.1f} GB/s"
    bench.report(title, columns, [rows, [total, whole]], peaks=peaks, settings={"kernels": kernels})


class Operations:
    """The forward and backward passes of a step, on the modules of one block and on random inputs.

    Args:
        work: dimensions, batch and precision.
        device: where to compute.
        seed: seed of weights and inputs.
        kernels: kernels of keys and values.
    """

    def __init__(self, work: Workload, device: torch.device, seed: int, kernels: Kernels) -> None:
        torch.manual_seed(seed)
        config = self.config = work.network
        self.device, self.dtype = device, work.dtype
        batch, time, d = work.batch_size, work.context_length, config.dim
        self.tokens, self.element = batch * time, work.dtype.itemsize

        def random(*shape: int, dtype: torch.dtype = work.dtype) -> Tensor:
            return torch.randn(batch, time, *shape, dtype=dtype, requires_grad=True)

        with device:
            self.network: Any = replace(config, layers=1).build()
            self.words = torch.randint(config.vocab_size, (batch, time))
            self.stream, self.input = random(d, dtype=torch.float32), random(d)
            self.outputs = random(len(config.levels) * d)
            self.raw = random(config.heads, config.head_dim)
        set_kernels(self.network, kernels)
        self.block: Any = self.network.blocks[0]
        self.memory: Any = next(self.network.get_submodule("blocks.0.contextual").children())
        self.documents = Documents.whole(batch, time, device)

    def all(self) -> Iterator[Case]:
        """Yield the operations in the order of a step; counts are those of one, and how many `times` a step does it."""
        network, block, stream, x, size = self.network, self.block, self.stream, self.input, self.element
        n, d, f, layers = self.tokens, self.config.dim, self.config.persistent_dim, self.config.layers
        embedding = self.config.vocab_size * d * 4  # bytes of the weights, or of their gradient
        one_way = n * d * (4 + size)  # a stream in float32, and its part of a block
        case = self._case
        look_up = network.embedding
        yield case("embedding", 1, 0, 3 * n * d * 4 + embedding, lambda: look_up(self.words), look_up)
        moved = one_way + n * d * (8 + size)
        norm = block.contextual_norm
        yield case("norms", 2 * layers + 1, 20 * n * d, moved, lambda: norm(stream), stream, norm)
        yield case("residual sums", 2 * layers, n * d, 2 * one_way + n * d * 4, lambda: stream + x, stream, x)
        yield from self._features()
        yield from self._reads()
        counts = self._product(self.outputs.shape[-1], d)
        yield case("W_o", layers, *counts, lambda: block.W_o(self.outputs), self.outputs, block.W_o)
        parts = [self._product(d, 2 * f), self._product(f, d), (15 * n * f, 8 * n * f * size)]
        flops, moved = (sum(numbers) for numbers in zip(*parts, strict=True))
        yield case("SwiGLU", layers, flops, moved, lambda: block.persistent(x), x, block.persistent)
        flops, moved = 6 * n * d * self.config.vocab_size, 3 * n * d * 4 + 3 * embedding
        loss = lambda: network.classifier(stream, self.words)  # noqa: E731
        yield case("classifier and loss", 1, flops, moved, loss, stream, network.classifier)

    def _features(self) -> Iterator[Case]:
        memory, x, raw, documents, keys = self.memory, self.input, self.raw, self.documents, self.memory.keys
        d, times = self.config.dim, len(self.config.levels) * self.config.layers
        elements = self.tokens * d
        with torch.no_grad(), self._autocast():
            computed = (*keys.gates(x), memory.bandwidth(documents.position + 1))
        gate, decay, beta = scalars = [t.detach().requires_grad_() for t in computed]
        project = lambda: (keys.W_phi(x), *keys.gates(x), memory.W_psi(x))  # noqa: E731
        average = lambda: average_keys(raw, gate, decay, beta, documents, keys.kernels)  # noqa: E731
        counts = self._product(d, 2 * d + 2 * self.config.heads)
        yield self._case("projections", times, *counts, project, x, keys, memory.W_psi)
        yield self._case("keys", times, 24 * elements, KEYS_MOVE * elements * self.element, average, raw, *scalars)
        moved, values = VALUES_MOVE * elements * self.element, memory.values
        yield self._case("values", times, 24 * elements, moved, lambda: values(raw, documents), raw, values)

    def _reads(self) -> Iterator[Case]:
        config, memory, documents = self.config, self.memory, self.documents
        with torch.no_grad():
            v = memory.values(self.raw, documents)
            k = v / memory.values.alpha_psi[:, None].to(v.dtype)
        q, k, v = (x.detach().requires_grad_() for x in (4 * k, k, v))
        moved = 12 * self.tokens * config.dim * self.element  # q, k, v, output; these, its gradient, and three more
        for level in config.levels:
            span = config.span(level, sum(config.long_term_delay) // 2)
            flops = 12 * config.dim * int(span.count(documents.position).sum())
            name = "read" if level == "full" else f"{level}-term read"
            yield self._case(name, config.layers, flops, moved, partial(fused_read, q, k, v, span, documents), q, k, v)

    def _product(self, into: int, out: int) -> tuple[int, int]:
        """Return FLOPs and bytes of a linear map: three products; weights are read twice, their gradient is written."""
        return 6 * self.tokens * into * out, self.tokens * (3 * into + 2 * out) * self.element + 3 * into * out * 4

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def _case(
        self,
        name: str,
        times: int,
        flops: float,
        moved: float,
        forward: Callable[[], Any],
        *sources: Tensor | nn.Module,
    ) -> Case:
        """Return both passes of a function, with gradients of its inputs and of the parameters of its modules."""
        inputs = [x for s in sources for x in (s.parameters() if isinstance(s, nn.Module) else [s])]
        gradients: list[Tensor] = []

        def run() -> None:
            with self._autocast():
                result = forward()
            outputs = list(result) if isinstance(result, tuple) else [result]
            gradients[:] = gradients or [torch.randn_like(x) for x in outputs]
            torch.autograd.grad(outputs, inputs, gradients)

        return Case(name, ready(run), {"times": times, "flops": flops, "bytes": moved})


def optimization(step: TrainingStep) -> Case:
    """Return clipping and AdamW of a step's network, on gradients of their own."""
    parameters = list(step.network.parameters())

    def run() -> None:
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.full_like(parameter, 1e-6)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        step.optimizer.step()

    count = sum(p.numel() for p in parameters)
    # the norm reads gradients and writes them scaled; AdamW reads four elements and writes three
    return Case("gradient norm, AdamW", ready(run), {"times": 1, "flops": 18 * count, "bytes": 10 * 4 * count})


if __name__ == "__main__":
    run_function("roofline", roofline_command, sys.argv[1:])
