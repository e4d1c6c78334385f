"""Prefill and decoding side by side: a memory mosaic, our transformer, and the Llama of `transformers`."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from mm_lightning.errors import UserError
from mm_lightning.experiments.benchmark.harness import Benchmark, Case, Options, Row, ready
from mm_lightning.experiments.benchmark.workload import LlamaOf, NetworkLike, Opponent, opponents
from mm_lightning.memory.kernels import Kernels, resolve_kernels, set_kernels
from mm_lightning.ranges import Count

TOKENS = 16
"""Tokens decoded in a timed run."""

DEFAULTS = {"dim": 512, "layers": 8, "heads": 8, "persistent_dim": None, "vocab_size": 4096, "precision": "fp32"}


def decode_command(
    contexts: list[Count] | None = None,
    network: Literal["v2", "v1"] = "v2",
    against: list[Opponent] | None = None,
    kernels: Kernels = "auto",
    prefills: Count = 3,
    **options: Annotated[Any, Options],
) -> None:
    """Time prefill and decoding of a memory mosaic against other networks of the same dimensions.

    For each context length every network reads a random document of that many tokens, in turns; then they decode
    greedily in turns, one row, a token at a time, 16 tokens a run: ours through the state of inference, the Llama of
    `transformers` in a bare loop with its key-value cache. The table gives medians, how many times as long as each the
    first network takes (the median over neighboring runs), and the bytes of state per token of context. By default
    d 512, L 8, H 8, V 4096; fp32, whatever the config says.

    Args:
        contexts: tokens read before decoding: [1024, 8192] by default.
        network: v2; or v1, with as many slots as give it the transformer's number of parameters.
        against: transformer, v1, or hf_llama, the Llama of `transformers`, which must be installed;
            [transformer, hf_llama] by default.
        kernels: kernels of keys and values in a prefill, as model.kernels of a training config.
        prefills: timed runs of each prefill.
    """
    chosen = Options(**options)
    bench = Benchmark("decode", chosen, DEFAULTS)
    dtype = torch.bfloat16 if chosen.precision == "bf16" else torch.float32
    bench.settings["precision"] = chosen.precision or "fp32"
    if contexts == []:
        raise UserError("contexts is empty: name one or more whole numbers")
    resolve_kernels(kernels, bench.device, dtype)
    configs = opponents(network, against or ["transformer", "hf_llama"], bench.work.network)
    torch.manual_seed(bench.seed)
    groups = []
    with torch.inference_mode():
        # a default device slows the start of every operation, so it ends before anything is timed
        with bench.device:
            readers = {name: make_reader(config, dtype, kernels) for name, config in configs.items()}
            texts = [torch.randint(bench.work.network.vocab_size, (1, n)) for n in contexts or [1024, 8192]]
        for text in texts:
            length = text.shape[1]
            prefill, decoding = [], []
            for name, reader in readers.items():
                read, state_bytes = partial(reader.read, text), partial(_bytes_by_token, reader, length)
                prefill.append(Case(name, ready(read), {"tokens": length}, finish=state_bytes))
                decoding.append(Case(name, ready(reader.decode), {"tokens": TOKENS}))
            groups.append(bench.measure(prefill, {"context": length, "pass": "prefill"}, prefills))
            groups.append(bench.measure(decoding, {"context": length, "pass": "decoding"}))
    columns = {
        "context": lambda row: f"{row['context']:,}",
        "pass": lambda row: row["pass"],
        "": lambda row: row["case"],
        "s": lambda row: f"{row['median_seconds']:.2f}",
        "ms/token": lambda row: f"{1e3 / row['tokens_per_second']:.2f}",
        f"{network} takes": lambda row: f"{row['speedup']:.2f} x",
        "bytes/token": lambda row: f"{row['bytes_per_token']:,.0f}" if "bytes_per_token" in row else "",
    }
    bench.report("prefill and decoding", columns, groups, 3, settings={"kernels": kernels, "prefills": prefills})


class OurReader:
    """One of our networks with its state: it reads a document, then decodes :data:`TOKENS` tokens a call."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def read(self, tokens: Tensor) -> None:
        self.state = self.network.new_state(1, tokens.shape[1] + 4096)
        self.token = self.network(tokens, state=self.state, logits_to_keep=1).argmax(-1)

    def decode(self) -> None:
        for _ in range(TOKENS):
            self.token = self.network(self.token, state=self.state).argmax(-1)

    @property
    def bytes(self) -> int:
        return self.state.bytes


class LlamaReader:
    """The same of the Llama of `transformers` with its cache."""

    def __init__(self, llama: Any) -> None:
        self.llama = llama

    def read(self, tokens: Tensor) -> None:
        from transformers import DynamicCache

        self.cache: Any = DynamicCache(config=self.llama.config)
        self.token = self._next(tokens)

    def _next(self, tokens: Tensor) -> Tensor:
        from mm_lightning.inference.modeling import CACHE

        return self.llama(tokens, **{CACHE: self.cache}, use_cache=True, logits_to_keep=1).logits.argmax(-1)

    def decode(self) -> None:
        from mm_lightning.memory.kernels.fused_read import any_shape

        with any_shape(self.token):  # by the kernels of our networks: every token makes another shape
            for _ in range(TOKENS):
                self.token = self._next(self.token)

    @property
    def bytes(self) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)


Reader = OurReader | LlamaReader


def _bytes_by_token(reader: Reader, length: int, call: Any) -> Row:
    return {"state_bytes": reader.bytes, "bytes_per_token": reader.bytes / length}


def make_reader(config: NetworkLike, dtype: torch.dtype, kernels: Kernels) -> Reader:
    """Return a network with random weights in this type."""
    network: Any = config.build().to(dtype).eval()
    if isinstance(config, LlamaOf):
        return LlamaReader(network.llama)
    set_kernels(network, kernels)
    return OurReader(network)
