"""Training steps of a memory mosaic beside those of other networks of its dimensions."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

from mm_lightning.errors import UserError
from mm_lightning.experiments.benchmark.llama import LlamaOf
from mm_lightning.experiments.benchmark.report import report
from mm_lightning.experiments.benchmark.setup import Opponent, Precision, Setup, setup, transformer_like, v1_like
from mm_lightning.experiments.benchmark.timing import begin, machine, medians, peak_bytes, ratio, take_turns
from mm_lightning.memory.kernels import Kernels
from mm_lightning.networks import Checkpointing
from mm_lightning.ranges import Count, Few, Name, Place, Seed
from mm_lightning.training.compiler import check_compiler

DEFAULTS = {
    "dim": 256,
    "layers": 6,
    "heads": 4,
    "vocab_size": 4096,
    "context_length": 1024,
    "batch_size": 4,
    "precision": "bf16",
}


def step_command(
    network: Literal["v2", "v1"] = "v2",
    against: list[Opponent] | None = None,
    config: Place | list[Place] | None = None,
    dim: Count | None = None,
    layers: Count | None = None,
    heads: Count | None = None,
    persistent_dim: Count | None = None,
    vocab_size: Count | None = None,
    context_length: Count | None = None,
    batch_size: Count | None = None,
    accumulate: Count = 1,
    precision: Precision | None = None,
    kernels: Kernels = "auto",
    checkpointing: Checkpointing = False,
    compile: bool = False,
    apart: bool = False,
    device: Name = "cpu",
    threads: Few | None = None,
    repeats: Count = 7,
    seed: Seed = 0,
    output: Place | None = None,
    overwrite: bool = False,
) -> None:
    """Time a training step of a memory mosaic against other networks of the same dimensions.

    A step is forward, backward, gradient clipping and AdamW on random tokens, one document a row. After a warm-up all
    take turns; the table gives each one's median, the most memory it holds, the share of the device's peak that its
    FLOPs reach where the peak is known, and the median ratio of neighbouring runs, beside the ratio of their
    floating-point operations.

    Args:
        network: v2; or v1, with as many slots as give it the transformer's number of parameters.
        against: transformer, v1 (with as many parameters as the transformer), or hf_llama, the Llama of
            `transformers`, which must be installed; [transformer] by default.
        config: a training config with the dimensions, the context, the micro batch and the precision (and overlays of
            it); what follows wins over it.
        dim: hidden size d; 256 by default.
        layers: blocks L; 6 by default.
        heads: heads H; 4 by default.
        persistent_dim: hidden size f of the persistent memory; 3 d by default.
        vocab_size: vocabulary V; 4096 by default.
        context_length: tokens of a sequence; 1024 by default.
        batch_size: sequences of a forward pass; 4 by default.
        accumulate: forward and backward passes of a step.
        precision: bf16 under autocast, or fp32; bf16 by default.
        kernels: what computes keys and values, as model.kernels of a training config.
        checkpointing: as model.activation_checkpointing of a training config, for our networks.
        compile: as model.compile of a training config for our networks, torch.compile for a Llama.
        apart: build, time and free one network after the other, where not all fit the device's memory: ratios are of
            medians then.
        device: cpu, cuda, cuda:1, ...
        threads: CPU threads; torch's choice by default.
        repeats: timed runs of each.
        seed: of the weights, the tokens and the delays m.
        output: a JSON file for the result.
        overwrite: replace an existing output.
    """
    from mm_lightning.memory.kernels import resolve_kernels

    place, target = begin(device, threads, repeats, output, overwrite)
    given = {
        "dim": dim,
        "layers": layers,
        "heads": heads,
        "persistent_dim": persistent_dim,
        "vocab_size": vocab_size,
        "context_length": context_length,
        "batch_size": batch_size,
        "precision": precision,
    }
    resolve_kernels(kernels, place)
    if compile:
        check_compiler(place)
    what = setup(config, DEFAULTS, **given)
    configs = opponents(network, against or ["transformer"], what)
    options = {"kernels": kernels, "checkpointing": checkpointing, "compile": compile, "accumulate": accumulate}

    def make(name: str) -> TrainingStep:
        return TrainingStep(configs[name], what, place, seed, **options)

    seconds, peaks = _one_by_one(configs, make, repeats, place) if apart else _in_turns(configs, make, repeats, place)
    result = {
        **_compared(configs, seconds, what, accumulate),
        "peak_bytes": peaks,
        "settings": {**what.settings, **options, "apart": apart, "repeats": repeats, "seed": seed},
        **machine(place),
    }
    result["utilisation"] = _utilisation(result, configs, what, place)
    columns = ["", "parameters", "median ms", "tokens/s", "peak GiB", "of peak FLOP/s"]
    report(result, "training step", columns, 1, [_lines(result), _ratios(result)], target)


def opponents(network: str, against: list[Opponent], what: Setup) -> dict[str, Any]:
    """Configurations by name, the one that is timed against the others first.

    Raises:
        UserError: a network is named twice.
    """
    if len({network, *against}) != len(against) + 1:
        raise UserError(f"each network is timed once: {network} against {', '.join(against)} names one twice")
    mosaic = replace(what.network, tied=True) if network == "v1" else what.network
    transformer = transformer_like(mosaic)
    known = {"v2": mosaic, "v1": v1_like(mosaic), "transformer": transformer, "hf_llama": LlamaOf(transformer)}
    return {name: known[name] for name in (network, *against)}


class TrainingStep:
    """One optimisation step on random tokens, to be called again and again.

    Args:
        config: of the network.
        what: batch and precision.
        device: where.
        seed: of weights, tokens and delays.
        kernels: of our networks.
        checkpointing: of our networks.
        compile: by torch.
        accumulate: forward and backward passes.
    """

    def __init__(
        self,
        config: Any,
        what: Setup,
        device: Any,
        seed: int,
        kernels: Kernels = "auto",
        checkpointing: Checkpointing = False,
        compile: bool = False,
        accumulate: int = 1,
    ) -> None:
        import torch

        from mm_lightning.memory.kernels import set_kernels
        from mm_lightning.networks.block import set_compiled

        torch.manual_seed(seed)
        with device:
            self.network = config.build()
            shape = (what.batch_size, what.context_length + 1)
            tokens = torch.randint(what.network.vocab_size, shape)
        self.tokens, self.targets = tokens[:, :-1], tokens[:, 1:].contiguous()
        if isinstance(config, LlamaOf):
            if compile:
                self.network.llama.compile()
        else:
            set_compiled(self.network, compile)
            set_kernels(self.network, kernels)
            self.network.activation_checkpointing = checkpointing
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, fused=True)
        self.numbers, self.seed, self.accumulate = itertools.count(), seed, accumulate
        self.autocast = {"device_type": device.type, "dtype": torch.bfloat16, "enabled": what.precision == "bf16"}

    def __call__(self) -> None:
        import torch

        draw = self.network.step_randomness(self.seed, next(self.numbers))
        for _ in range(self.accumulate):
            with torch.autocast(**self.autocast):
                loss = self.network(self.tokens, targets=self.targets, **draw)
            (loss / self.accumulate).backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @property
    def bytes(self) -> int:
        """Of the weights and the optimizer's states."""
        states = (value for state in self.optimizer.state.values() for value in state.values())
        return sum(x.nbytes for x in [*self.network.parameters(), *states])


def _in_turns(configs: dict[str, Any], make: Any, repeats: int, device: Any) -> tuple[dict, dict]:
    """Seconds of all runs, and the most bytes that each network held."""
    steps = {name: make(name) for name in configs}
    seconds = take_turns(steps, repeats, device)
    return seconds, {name: step.bytes + peak_bytes(step, device) for name, step in steps.items()}


def _one_by_one(configs: dict[str, Any], make: Any, repeats: int, device: Any) -> tuple[dict, dict]:
    import torch

    seconds, peaks = {}, {}
    for name in configs:
        found, peak = _in_turns({name: configs[name]}, make, repeats, device)
        seconds |= found
        peaks |= peak
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return seconds, peaks


def _compared(configs: dict[str, Any], seconds: dict[str, list[float]], what: Setup, accumulate: int) -> dict[str, Any]:
    """Medians, speeds and ratios; the first is divided by each of the others."""
    first, *others = configs
    median, flops = medians(seconds), {name: flops_per_token(c, what.context_length) for name, c in configs.items()}
    tokens = accumulate * what.batch_size * what.context_length
    return {
        "benchmark": "step",
        "median_seconds": median,
        "seconds": seconds,
        "tokens_per_second": {name: tokens / s for name, s in median.items()},
        "ratio": {name: ratio(seconds, first, name) for name in others},
        "flops_ratio": {name: flops[first] / flops[name] for name in others},
        "parameters": {name: _parameters(config) for name, config in configs.items()},
    }


def flops_per_token(config: Any, context_length: int) -> int:
    """Of a training step; a Llama's are those of our transformer."""
    from mm_lightning.networks.cost import training_flops_per_token

    return training_flops_per_token(config.like if isinstance(config, LlamaOf) else config, context_length)


def _parameters(config: Any) -> int:
    from mm_lightning.networks.cost import parameters

    return parameters(config.like if isinstance(config, LlamaOf) else config)


def _utilisation(result: dict[str, Any], configs: dict[str, Any], what: Setup, device: Any) -> dict[str, float]:
    """The share of the device's peak that each one's useful FLOPs reach; nothing where the peak is not known."""
    import torch

    from mm_lightning.training.peak_flops import peak_flops

    if device.type != "cuda":
        return {}
    peak = peak_flops(device, torch.bfloat16 if what.precision == "bf16" else torch.float32)
    speeds = result["tokens_per_second"]
    return {n: speeds[n] * flops_per_token(c, what.context_length) / peak for n, c in configs.items()} if peak else {}


def _lines(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Of the table."""
    for name, seconds in result["median_seconds"].items():
        used = result["utilisation"].get(name)
        yield (
            name,
            f"{result['parameters'][name]:,}",
            f"{seconds * 1e3:,.1f}",
            f"{result['tokens_per_second'][name]:,.0f}",
            f"{result['peak_bytes'][name] / 2**30:.2f}",
            "" if used is None else f"{used:.1%}",
        )


def _ratios(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    first = next(iter(result["median_seconds"]))
    for name, value in result["ratio"].items():
        yield f"{first} / {name}", "", f"{value:.2f}", "", "", ""
        yield "  of their FLOPs", "", f"{result['flops_ratio'][name]:.2f}", "", "", ""
