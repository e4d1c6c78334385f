"""Prefill and decoding side by side: a memory mosaic, our transformer, and the Llama of `transformers`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

from mm_lightning.errors import UserError
from mm_lightning.experiments.benchmark import machine, take_turns
from mm_lightning.experiments.benchmark_report import report
from mm_lightning.outputs import check_output

TOKENS = 16
"""Decoded in a timed run."""


def decode_command(
    contexts: list[int] | int | None = None,
    dim: int = 512,
    layers: int = 8,
    heads: int = 8,
    persistent_dim: int | None = None,
    vocab_size: int = 4096,
    llama: bool = True,
    precision: Literal["fp32", "bf16"] = "fp32",
    device: str = "cpu",
    threads: int | None = None,
    repeats: int = 9,
    seed: int = 0,
    output: str | None = None,
) -> None:
    """Time prefill and decoding of v2 against transformers of the same dimensions.

    For each context length every network reads a random document of so many tokens, then they decode greedily in turns,
    one row, a token at a time: v2 and our transformer through the state of inference, and the Llama of `transformers`
    in a bare loop with its key-value cache. The table gives medians, the median ratio of neighbouring runs, and the
    bytes that a token of context adds to what is carried.

    Args:
        contexts: tokens read before decoding: [1024, 8192] by default.
        dim: hidden size d.
        layers: blocks L.
        heads: heads H.
        persistent_dim: hidden size f of the persistent memory; 3 d by default.
        vocab_size: vocabulary V.
        llama: also time the Llama of `transformers`, which must be installed.
        precision: of the weights.
        device: cpu, cuda, cuda:1, ...
        threads: CPU threads; torch's choice by default.
        repeats: timed runs of each, of 16 tokens.
        seed: of the weights and the tokens.
        output: a JSON file for the result.
    """
    import torch

    from mm_lightning.inference.generate import choose_device
    from mm_lightning.networks import MemoryMosaicConfig, TransformerConfig

    lengths = [1024, 8192] if contexts is None else [contexts] if isinstance(contexts, int) else contexts
    if repeats < 1 or not lengths or min(lengths) < 1:
        raise UserError(f"repeats and contexts must be at least 1, got {repeats} and {lengths}")
    target = None if output is None else check_output(output)
    if threads:
        torch.set_num_threads(threads)
    place = choose_device(device)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    dimensions = {
        "dim": dim,
        "layers": layers,
        "heads": heads,
        "persistent_dim": persistent_dim or 3 * dim,
        "vocab_size": vocab_size,
    }
    torch.manual_seed(seed)
    readers: dict[str, Reader] = {}
    with place, torch.inference_mode():
        readers["v2"] = OurReader(MemoryMosaicConfig(**dimensions).build().to(dtype).eval())
        readers["transformer"] = OurReader(TransformerConfig(**dimensions).build().to(dtype).eval())
        if llama:
            readers["Llama of transformers"] = LlamaReader(dimensions, dtype)
        found = [_at_length(readers, torch.randint(vocab_size, (1, length)), repeats, place) for length in lengths]
    settings = {**dimensions, "precision": precision, "seed": seed, "repeats": repeats}
    result = {"benchmark": "decode", "contexts": found, "settings": settings, **machine(place)}
    columns = ["context", "", "ms/token", "v2 takes", "prefill s", "v2 takes", "bytes/token"]
    report(result, "decoding", columns, 2, map(_lines, found), target)


class OurReader:
    """One of our networks with its state."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def read(self, tokens: Any) -> None:
        """Takes in a document, whatever was read before."""
        self.state = self.network.new_state(1, tokens.shape[1] + 4096)
        self.token = self.network(tokens, state=self.state, last=1).argmax(-1)

    def decode(self) -> None:
        """Some tokens more."""
        for _ in range(TOKENS):
            self.token = self.network(self.token, state=self.state).argmax(-1)

    @property
    def bytes(self) -> int:
        """What it carries."""
        return self.state.bytes


class LlamaReader:
    """The Llama of `transformers` of the same dimensions, with random weights."""

    def __init__(self, dimensions: dict[str, int], dtype: Any) -> None:
        try:
            from mm_lightning.training.checkpoint import calm_deepspeed

            calm_deepspeed()  # which transformers imports
            from transformers import LlamaConfig, LlamaForCausalLM
        except ImportError as error:
            raise UserError("transformers is not installed: pip install transformers, or add --llama false") from error
        config = LlamaConfig(
            hidden_size=dimensions["dim"],
            num_hidden_layers=dimensions["layers"],
            num_attention_heads=dimensions["heads"],
            intermediate_size=dimensions["persistent_dim"],
            vocab_size=dimensions["vocab_size"],
            max_position_embeddings=1 << 20,
        )
        self.network = LlamaForCausalLM(config).to(dtype).eval()

    def read(self, tokens: Any) -> None:
        """Takes in a document, whatever was read before."""
        from transformers import DynamicCache

        self.cache = DynamicCache(config=self.network.config)
        self.token = self._next(tokens)

    def _next(self, tokens: Any) -> Any:
        return self.network(tokens, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits.argmax(-1)

    def decode(self) -> None:
        """Some tokens more."""
        for _ in range(TOKENS):
            self.token = self._next(self.token)

    @property
    def bytes(self) -> int:
        """What it carries."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)


Reader = OurReader | LlamaReader


def _at_length(readers: dict[str, Reader], tokens: Any, repeats: int, device: Any) -> dict[str, Any]:
    """Times of all readers at one context length."""
    length = tokens.shape[1]
    prefill = take_turns({name: partial(reader.read, tokens) for name, reader in readers.items()}, 1, device)
    carried = {name: reader.bytes for name, reader in readers.items()}
    runs: dict[str, Callable[[], Any]] = {name: reader.decode for name, reader in readers.items()}
    seconds = take_turns(runs, repeats, device)
    first = "v2"
    return {
        "context": length,
        "prefill_seconds": {name: times[0] for name, times in prefill.items()},
        "milliseconds_per_token": {name: statistics.median(s) / TOKENS * 1e3 for name, s in seconds.items()},
        "ratio": {
            name: statistics.median(a / b for a, b in zip(seconds[first], seconds[name], strict=True))
            for name in readers
        },
        "prefill_ratio": {name: prefill[first][0] / prefill[name][0] for name in readers},
        "bytes": carried,
        "bytes_per_token": {name: count / length for name, count in carried.items()},
        "seconds": seconds,
    }


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Of the table, at one context length."""
    for name, milliseconds in found["milliseconds_per_token"].items():
        yield (
            f"{found['context']:,}",
            name,
            f"{milliseconds:.2f}",
            f"{found['ratio'][name]:.2f} x",
            f"{found['prefill_seconds'][name]:.2f}",
            f"{found['prefill_ratio'][name]:.2f} x",
            f"{found['bytes_per_token'][name]:,.0f}",
        )
