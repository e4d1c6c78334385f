"""Training steps of a memory mosaic beside those of other networks of its dimensions."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Annotated, Any, Literal

import torch

from mm_lightning.experiments.benchmark.harness import Benchmark, Case, Options
from mm_lightning.experiments.benchmark.workload import LlamaOf, NetworkLike, Opponent, Workload, opponents
from mm_lightning.memory.kernels import Kernels, resolve_kernels, set_kernels
from mm_lightning.networks import Checkpointing
from mm_lightning.networks.block import set_compiled
from mm_lightning.networks.cost import parameters, training_flops_per_token
from mm_lightning.ranges import Count
from mm_lightning.training.compiler import check_compiler
from mm_lightning.training.peak_flops import peak_flops

DEFAULTS = {
    "dim": 256,
    "layers": 6,
    "heads": 4,
    "persistent_dim": None,
    "vocab_size": 4096,
    "context_length": 1024,
    "batch_size": 4,
    "precision": "bf16",
}


def step_command(
    network: Literal["v2", "v1"] = "v2",
    against: list[Opponent] | None = None,
    accumulate: Count = 1,
    kernels: Kernels = "auto",
    checkpointing: Checkpointing = False,
    compile: bool = False,
    apart: bool = False,
    **options: Annotated[Any, Options],
) -> None:
    """Time a training step of a memory mosaic against other networks of the same dimensions.

    A step is forward, backward, gradient clipping and AdamW on random tokens, one document a row. After a warm-up all
    take turns; the table gives medians, the most memory that each holds, the model FLOPs utilization where the device's
    peak is known, how many times as long as each the first network takes (the median over neighboring runs), and the
    same ratio of their FLOPs. By default d 256, L 6, H 4, V 4096, 4 sequences of 1024 tokens, bf16.

    Args:
        network: v2; or v1, with as many slots as give it the transformer's number of parameters.
        against: transformer, v1, or hf_llama, the Llama of `transformers`, which must be installed; [transformer] by
            default.
        accumulate: forward and backward passes of a step.
        kernels: kernels of keys and values, as model.kernels of a training config.
        checkpointing: as model.activation_checkpointing of a training config, for our networks.
        compile: as model.compile of a training config for our networks, torch.compile for a Llama.
        apart: build, time and free one network after the other, where not all fit the device's memory.
    """
    bench = Benchmark("step", Options(**options), DEFAULTS)
    work, device = bench.work, bench.device
    resolve_kernels(kernels, device)
    if compile:
        check_compiler(device)
    configs = opponents(network, against or ["transformer"], work.network)
    peak = peak_flops(device, work.dtype) if device.type == "cuda" else None
    how: dict[str, Any] = {"accumulate": accumulate, "checkpointing": checkpointing}
    how |= {"kernels": kernels, "compile": compile}
    tokens = accumulate * work.batch_size * work.context_length
    cases = []
    for name, config in configs.items():
        like = config.like if isinstance(config, LlamaOf) else config
        flops = tokens * training_flops_per_token(like, work.context_length)
        counts = {"tokens": tokens, "flops": flops, "parameters": parameters(like)}
        build: Any = partial(TrainingStep, config, work, device, bench.seed, **how)
        cases.append(Case(name, build, counts, finish=lambda step: {"held_bytes": step.bytes}))
    rows = bench.measure(cases, peak=True, apart=apart)
    for row in rows:
        row["peak_bytes"] += row["held_bytes"]
        row["flops_ratio"] = rows[0]["flops"] / row["flops"]
        row["utilization"] = row["flops_per_second"] / peak if peak else None
    columns = {
        "": lambda row: row["case"],
        "parameters": lambda row: f"{row['parameters']:,}",
        "median ms": lambda row: f"{row['median_seconds'] * 1e3:,.1f}",
        "tokens/s": lambda row: f"{row['tokens_per_second']:,.0f}",
        "peak GiB": lambda row: f"{row['peak_bytes'] / 2**30:.2f}",
        "of peak FLOP/s": lambda row: "" if row["utilization"] is None else f"{row['utilization']:.1%}",
        f"{network} takes": lambda row: f"{row['speedup']:.2f} x",
        "by FLOPs": lambda row: f"{row['flops_ratio']:.2f} x",
    }
    bench.report("training step", columns, [rows], settings={**how, "apart": apart})


class TrainingStep:
    """A training step on random tokens: call it again and again.

    Args:
        config: the network's configuration.
        work: batch and precision.
        device: where to compute.
        seed: seed of weights, tokens and delays.
        kernels, checkpointing: of our networks.
        compile: compile the network with torch.compile.
        accumulate: forward and backward passes.
    """

    def __init__(
        self,
        config: NetworkLike,
        work: Workload,
        device: torch.device,
        seed: int,
        kernels: Kernels = "auto",
        checkpointing: Checkpointing = False,
        compile: bool = False,
        accumulate: int = 1,
    ) -> None:
        torch.manual_seed(seed)
        with device:
            self.network: Any = config.build()
            tokens = torch.randint(work.network.vocab_size, (work.batch_size, work.context_length + 1))
        self.tokens, self.targets = tokens[:, :-1], tokens[:, 1:].contiguous()
        if isinstance(config, LlamaOf):
            if compile:
                self.network.llama.compile()
        else:
            set_compiled(self.network, compile)
            set_kernels(self.network, kernels)
            self.network.activation_checkpointing = checkpointing
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, fused=True)
        self.steps, self.seed, self.accumulate = itertools.count(), seed, accumulate
        self.autocast: Any = {
            "device_type": device.type,
            "dtype": torch.bfloat16,
            "enabled": work.precision == "bf16",
        }

    def __call__(self) -> None:
        randomness = self.network.step_randomness(self.seed, next(self.steps))
        for _ in range(self.accumulate):
            with torch.autocast(**self.autocast):
                loss = self.network(self.tokens, targets=self.targets, **randomness)
            (loss / self.accumulate).backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @property
    def bytes(self) -> int:
        """The bytes of weights and optimizer states."""
        states = (value for state in self.optimizer.state.values() for value in state.values())
        return sum(x.nbytes for x in [*self.network.parameters(), *states])
