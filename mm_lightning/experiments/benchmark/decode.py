"""Prefill and decoding side by side: a memory mosaic, our transformer, and the Llama of `transformers`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

from mm_lightning.experiments.benchmark.llama import LlamaOf
from mm_lightning.experiments.benchmark.report import report
from mm_lightning.experiments.benchmark.setup import Opponent, Precision, setup
from mm_lightning.experiments.benchmark.step import opponents
from mm_lightning.experiments.benchmark.timing import begin, machine, medians, numbers, ratio, take_turns
from mm_lightning.memory.kernels import Kernels
from mm_lightning.ranges import Count, Few, Name, Place, Seed

TOKENS = 16
"""Decoded in a timed run."""

DEFAULTS = {
    "dim": 512,
    "layers": 8,
    "heads": 8,
    "vocab_size": 4096,
    "context_length": 1,
    "batch_size": 1,
    "precision": "fp32",
}


def decode_command(
    contexts: list[Count] | Count | None = None,
    network: Literal["v2", "v1"] = "v2",
    against: list[Opponent] | None = None,
    config: Place | list[Place] | None = None,
    dim: Count | None = None,
    layers: Count | None = None,
    heads: Count | None = None,
    persistent_dim: Count | None = None,
    vocab_size: Count | None = None,
    precision: Precision | None = None,
    kernels: Kernels = "auto",
    device: Name = "cpu",
    threads: Few | None = None,
    repeats: Count = 9,
    prefills: Count = 3,
    seed: Seed = 0,
    output: Place | None = None,
    overwrite: bool = False,
) -> None:
    """Time prefill and decoding of a memory mosaic against other networks of the same dimensions.

    For each context length every network reads a random document of so many tokens, in turns, then they decode
    greedily in turns, one row, a token at a time: ours through the state of inference, and the Llama of `transformers`
    in a bare loop with its key-value cache. The table gives medians, the median ratio of neighbouring runs, and the
    bytes that a token of context adds to what is carried.

    Args:
        contexts: tokens read before decoding: [1024, 8192] by default.
        network: v2; or v1, with as many slots as give it the transformer's number of parameters.
        against: transformer, v1, or hf_llama, the Llama of `transformers`, which must be installed;
            [transformer, hf_llama] by default.
        config: a training config with the dimensions (and overlays of it); what follows wins over it.
        dim: hidden size d; 512 by default.
        layers: blocks L; 8 by default.
        heads: heads H; 8 by default.
        persistent_dim: hidden size f of the persistent memory; 3 d by default.
        vocab_size: vocabulary V; 4096 by default.
        precision: of the weights; fp32 by default, whatever the config says.
        kernels: what computes keys and values of a prefill, as model.kernels of a training config.
        device: cpu, cuda, cuda:1, ...
        threads: CPU threads; torch's choice by default.
        repeats: timed runs of each, of 16 tokens.
        prefills: timed runs of each prefill.
        seed: of the weights and the tokens.
        output: a JSON file for the result.
        overwrite: replace an existing output.
    """
    import torch

    from mm_lightning.memory.kernels import resolve_kernels

    place, target = begin(device, threads, repeats, output, overwrite)
    lengths = numbers(contexts, [1024, 8192], "contexts")
    given = {"dim": dim, "layers": layers, "heads": heads, "persistent_dim": persistent_dim, "vocab_size": vocab_size}
    what = setup(config, DEFAULTS, **given, precision=precision or "fp32")
    dtype = torch.bfloat16 if what.precision == "bf16" else torch.float32
    resolve_kernels(kernels, place, dtype)
    configs = opponents(network, against or ["transformer", "hf_llama"], what)
    torch.manual_seed(seed)
    with torch.inference_mode():
        # Under a default device every operation takes longer to start, so it ends before anything is timed.
        with place:
            readers = {name: reader_of(one, dtype, kernels) for name, one in configs.items()}
            texts = [torch.randint(what.network.vocab_size, (1, length)) for length in lengths]
        found = [_at_length(readers, text, repeats, prefills, place) for text in texts]
    left_out = ("context_length", "batch_size")
    settings = {name: value for name, value in what.settings.items() if name not in left_out}
    settings |= {"kernels": kernels, "seed": seed, "repeats": repeats, "prefills": prefills}
    result = {"benchmark": "decode", "contexts": found, "settings": settings, **machine(place)}
    columns = ["context", "", "ms/token", f"{network} takes", "prefill s", f"{network} takes", "bytes/token"]
    report(result, "decoding", columns, 2, map(_lines, found), target)


class OurReader:
    """One of our networks with its state."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def read(self, tokens: Any) -> None:
        """Takes in a document, whatever was read before."""
        self.state = self.network.new_state(1, tokens.shape[1] + 4096)
        self.token = self.network(tokens, state=self.state, logits_to_keep=1).argmax(-1)

    def decode(self) -> None:
        """Some tokens more."""
        for _ in range(TOKENS):
            self.token = self.network(self.token, state=self.state).argmax(-1)

    @property
    def bytes(self) -> int:
        """What it carries."""
        return self.state.bytes


class LlamaReader:
    """The Llama of `transformers` with its cache."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def read(self, tokens: Any) -> None:
        """Takes in a document, whatever was read before."""
        from transformers import DynamicCache

        self.cache = DynamicCache(config=self.network.config)
        self.token = self._next(tokens)

    def _next(self, tokens: Any) -> Any:
        from mm_lightning.inference.modeling import CACHE

        return self.network(tokens, **{CACHE: self.cache}, use_cache=True, logits_to_keep=1).logits.argmax(-1)

    def decode(self) -> None:
        """Some tokens more, by the kernels that ours are read by: every token makes another shape."""
        from mm_lightning.memory.kernels.fused_read import any_shape

        with any_shape(self.token):
            for _ in range(TOKENS):
                self.token = self._next(self.token)

    @property
    def bytes(self) -> int:
        """What it carries."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)


Reader = OurReader | LlamaReader


def reader_of(config: Any, dtype: Any, kernels: Kernels) -> Reader:
    """A network with random weights in this type."""
    from mm_lightning.memory.kernels import set_kernels

    network = config.build().to(dtype).eval()
    if isinstance(config, LlamaOf):
        return LlamaReader(network.llama)
    set_kernels(network, kernels)
    return OurReader(network)


def _at_length(readers: dict[str, Reader], tokens: Any, repeats: int, prefills: int, device: Any) -> dict[str, Any]:
    """Times of all readers at one context length."""
    length, first = tokens.shape[1], next(iter(readers))
    prefill = take_turns({name: partial(reader.read, tokens) for name, reader in readers.items()}, prefills, device)
    carried = {name: reader.bytes for name, reader in readers.items()}
    runs: dict[str, Callable[[], Any]] = {name: reader.decode for name, reader in readers.items()}
    seconds = take_turns(runs, repeats, device)
    return {
        "context": length,
        "prefill_seconds": medians(prefill),
        "milliseconds_per_token": {name: s / TOKENS * 1e3 for name, s in medians(seconds).items()},
        "ratio": {name: ratio(seconds, first, name) for name in readers},
        "prefill_ratio": {name: ratio(prefill, first, name) for name in readers},
        "bytes": carried,
        "bytes_per_token": {name: count / length for name, count in carried.items()},
        "seconds": seconds,
        "seconds_of_prefill": prefill,
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
