"""Sub-linear reads of a long memory against the exact read, on the keys of a trained network."""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mm_lightning.errors import UserError
from mm_lightning.experiments.benchmark.faiss_index import FaissIndex
from mm_lightning.experiments.benchmark.harness import Benchmark, Case, Options, Row, ready
from mm_lightning.memory.contextual import ContextualMemory
from mm_lightning.memory.kernels import resolve_kernels
from mm_lightning.memory.sublinear.key_clusters import KeyClusters, SublinearRead
from mm_lightning.outputs import check_output
from mm_lightning.ranges import AtLeastTwo, Budget, Count, NonNegative, Place, Range

Index = Literal["ivf", "hnsw"]
StoredPairs = Annotated[int, Range(4096)]
"""Pairs of a memory, at least those that clusters are made of."""


def retrieval_command(
    checkpoint: Place,
    text: Place = "python-stdlib",
    pairs: list[StoredPairs] | None = None,
    budgets: list[Budget] | None = None,
    epsilons: list[NonNegative] | None = None,
    index: list[Index] | None = None,
    neighbors: Count = 4096,
    context: AtLeastTwo = 2048,
    **options: Annotated[Any, Options],
) -> None:
    """Time sub-linear reads of the long-term memory, and measure their error.

    A memory is filled with what a trained network stores of a text, and queried with the keys of the text that follows,
    at the bandwidth of as many pairs: by the exact read of decoding (and torch's, where numba compiles the former), by
    clusters (an option of the state of inference) with several budgets and with proven errors, and through an index of
    faiss, whose nearest neighbors are read and renormalized; then the same with random keys, where nothing is near
    anything. All take turns, one token at a time. Errors are norms of differences, relative to the norm of the exact
    answer; speeds are relative to the exact read.

    Args:
        checkpoint: of the network, a run folder or a checkpoint.
        text: files, a folder or a glob; python-stdlib is the standard library of this Python.
        pairs: stored pairs, at least 4096: [32768, 131072] by default.
        budgets: pairs that a query reads one by one: [4096, 8192, 16384] by default.
        epsilons: proven errors, see SublinearRead: [0.0, 0.01, 0.1] by default.
        index: kinds of faiss's indexes to compare with, ivf and hnsw; [ivf] by default, [] for none.
        neighbors: pairs that an index finds for a query.
        context: tokens of the pieces in which the network reads the text, each as a document.
    """
    from mm_lightning.checkpoint import load_network

    chosen = Options(**options)
    sizes = [32768, 131072] if pairs is None else pairs
    if not sizes:
        raise UserError("pairs is empty: name one or more numbers of pairs")
    if chosen.output:
        check_output(chosen.output, chosen.overwrite, [text])
    bench = Benchmark("retrieval", chosen, {}, repeats=32)
    methods = {f"budget {n:,}": SublinearRead(budget=n) for n in budgets or [4096, 8192, 16384]}
    for epsilon in [0.0, 0.01, 0.1] if epsilons is None else epsilons:
        methods[f"epsilon {epsilon:g}"] = SublinearRead(budget=1024, epsilon=epsilon)
    network, tokenizer = load_network(checkpoint, bench.device)
    groups: list[list[Row]] = []
    with torch.inference_mode():
        tokens = read_tokens(text, tokenizer, max(sizes) + bench.repeats, context, bench.seed)
        layers = fill(network, tokens.to(bench.device))
        layers["random keys"] = layers[next(reversed(layers))].random_like(bench.seed)
        kinds: list[Index] = ["ivf"] if index is None else index
        for count in sizes:
            of_size = {n: measure_layer(bench, n, s, count, methods, kinds, neighbors) for n, s in layers.items()}
            groups += of_size.values()
            groups.append(over_layers([rows for name, rows in of_size.items() if name != "random keys"]))
    columns = {
        "pairs": lambda row: f"{row['pairs']:,}",
        "keys of": lambda row: row["layer"],
        "read by": lambda row: row["case"],
        "share read": lambda row: f"{row['share']:.1%}",
        "error": lambda row: f"{row['error']:.2%}",
        "99th": lambda row: f"{row['error_99']:.2%}",
        "ms/token": lambda row: f"{row['median_seconds'] * 1e3:.2f}",
        "speed": lambda row: f"{row['speedup']:.2f} x",
    }
    config = network.config
    settings = {"heads": config.heads, "head_dim": config.head_dim, "checkpoint": Path(checkpoint).name, "text": text}
    bench.report("reads of a long-term memory", columns, groups, 3, settings={**settings, "context": context})


@dataclass
class Stored:
    """The content of one memory: keys and values (1, H, n, D), and its bandwidth for a number of pairs."""

    keys: Tensor
    values: Tensor
    bandwidth: Callable[..., Tensor]

    def random_like(self, seed: int) -> Stored:
        """Return random unit keys and values of the same shape."""
        generator = torch.Generator().manual_seed(seed)
        keys, values = (torch.randn(self.keys.shape, generator=generator).to(self.keys) for _ in range(2))
        return Stored(F.normalize(keys, dim=-1), F.normalize(values, dim=-1), self.bandwidth)


def read_tokens(text: str, tokenizer: Any, count: int, context: int, seed: int) -> Tensor:
    """Return at least `count` tokens of a text's documents in random order, (pieces, context).

    Raises:
        UserError: the text is shorter.
    """
    from mm_lightning.data.corpora import Piece
    from mm_lightning.data.source_files import ReadSettings, list_files
    from mm_lightning.data.tokenize_units import documents_of

    settings = ReadSettings()
    files = list_files([text], settings)
    order = [Piece(number) for number in range(len(files))]
    random.Random(seed).shuffle(order)
    needed = -(-count // context) * context
    tokens: list[int] = []
    for document in documents_of(files, order, settings, []):
        tokens += [tokenizer.bos, *tokenizer.encode(document)]
        if len(tokens) >= needed:
            return torch.tensor(tokens[:needed]).view(-1, context)
    raise UserError(
        f"{text} has {len(tokens):,} tokens, {needed:,} are needed: name more text or ask for fewer --pairs"
    )


def fill(network: Any, tokens: Tensor) -> dict[str, Stored]:
    """Return what every memory without a window stores of pieces of text, by its name.

    Args:
        network: in evaluation mode.
        tokens: (pieces, context), each piece read as a document of its own.

    Raises:
        UserError: the network has no such memory.
    """
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for rows in tokens.split(4):
        state = network.new_state(len(rows), tokens.shape[1])
        network(rows, state=state, logits_to_keep=1)
        for name, part in state.parts.items():
            memory = network.get_submodule(name)
            if isinstance(memory, ContextualMemory) and part.pairs is not None and part.pairs.keep is None:
                pairs = part.pairs.tensors()
                keys, values = (pairs[which].transpose(0, 1).flatten(1, 2) for which in ("keys", "values"))
                parts.setdefault(name, []).append((keys, values))
    if not parts:
        raise UserError("this network has no long-term memory: name the checkpoint of a memory mosaic that has one")
    stored = {}
    for name, pieces in parts.items():
        keys, values = (torch.cat(x, 1)[None] for x in zip(*pieces, strict=True))
        stored[name] = Stored(keys, values, network.get_submodule(name).bandwidth)
    return stored


def measure_layer(
    bench: Benchmark,
    name: str,
    stored: Stored,
    count: int,
    methods: Mapping[str, SublinearRead],
    kinds: Sequence[Index],
    neighbors: int,
) -> list[Row]:
    """Return the rows of all reads of `count` pairs of one memory, the exact one first."""
    size = next(iter(methods.values())).cluster_size
    k, v = (F.pad(x[:, :, :count], (0, 0, 0, -count % size)) for x in (stored.keys, stored.values))
    keys, values = (x[:, :, :count] for x in (k, v))
    device = keys.device
    query, exact, first = torch.empty(0), torch.empty(0), torch.zeros(1, dtype=torch.int64, device=device)
    beta = stored.bandwidth(torch.tensor([[count]], device=device), keys.new_zeros(1, 1, 0)).reshape(-1, 1)
    results: dict[str, list[tuple[Tensor, float]]] = {}  # errors by head, and the share of pairs that was read

    def next_query(number: int) -> None:
        nonlocal query
        query = stored.keys[:, :, count + number] * beta.to(keys.dtype)

    @cache
    def clusters_of(proven: bool) -> tuple[KeyClusters, Tensor, Tensor]:
        settings = next(one for one in methods.values() if (one.epsilon is not None) == proven)
        clusters, sorted_keys, sorted_values = KeyClusters(settings), k.clone(), v.clone()
        clusters.extend(sorted_keys, sorted_values, count)
        return clusters, sorted_keys, sorted_values

    def case(name: str, build: Callable[[], Any], share: Callable[[], float] = lambda: 1.0) -> Case:
        def observe(answer: Tensor) -> None:
            nonlocal exact
            exact = answer if name == "exact" else exact
            error = (answer - exact).norm(dim=-1) / exact.norm(dim=-1)
            results.setdefault(name, []).append((error, share()))

        def summary(call: Any) -> Row:
            errors = torch.cat([error.flatten() for error, _ in results[name]])
            return {"share": statistics.mean(share for _, share in results[name]), **error_statistics(errors)}

        return Case(name, build, observe=observe, finish=summary)

    def by_clusters(name: str, settings: SublinearRead) -> Case:
        proven = settings.epsilon is not None

        def read() -> Tensor:
            clusters, sorted_keys, sorted_values = clusters_of(proven)
            clusters.settings = settings
            return clusters.read(query, sorted_keys, sorted_values, count, first)

        return case(name, lambda: clusters_of(proven) and read, lambda: clusters_of(proven)[0].share)

    def by_index(kind: Index) -> Case:
        index = FaissIndex(kind, keys[0], values[0].clone(), neighbors)
        return case(f"faiss {kind}", ready(lambda: index.read(query)), lambda: index.share)

    def by_torch() -> Tensor:
        return F.scaled_dot_product_attention(query[:, :, None], keys, values, scale=1.0)[:, :, 0]

    exact_reads = [case("exact", ready(by_torch))]
    if resolve_kernels("auto", device, keys.dtype) == "numba" and torch.get_num_threads() == 1:  # as decoding reads
        from mm_lightning.memory.kernels.numba_decode import PAIR_TILE, read_pairs
        from mm_lightning.memory.kernels.numba_support import flat

        heads = [tuple(map(flat, pairs)) for pairs in zip(keys[0], values[0], strict=True)]
        scores = flat(keys.new_empty(PAIR_TILE))

        def by_numba() -> Tensor:
            answers = torch.empty_like(query)
            for q, pairs, answer in zip(query[0], heads, answers[0], strict=True):
                read_pairs(flat(q), *pairs, 0, count, scores, flat(answer))
            return answers

        exact_reads = [case("exact", ready(by_numba)), case("exact, torch", ready(by_torch))]
    others = [*itertools.starmap(by_clusters, methods.items()), *map(by_index, kinds)]
    labels = {"pairs": count, "layer": name}
    return bench.measure([*exact_reads, *others], labels, before_round=next_query)


def error_statistics(errors: Tensor) -> Row:
    """Return mean and 99th percentile of relative errors, and the errors."""
    return {"error": errors.mean().item(), "error_99": errors.quantile(0.99).item(), "errors": errors.tolist()}


def over_layers(layers: Sequence[Sequence[Row]]) -> list[Row]:
    """Return a row for each read with means over all layers of a network, and the sums of times."""
    rows: list[Row] = []
    for of_read in zip(*layers, strict=True):
        seconds = sum(row["median_seconds"] for row in of_read)
        errors = torch.tensor([error for row in of_read for error in row["errors"]])
        rows.append(
            {
                "pairs": of_read[0]["pairs"],
                "layer": "all layers",
                "case": of_read[0]["case"],
                "share": statistics.mean(row["share"] for row in of_read),
                **error_statistics(errors),
                "median_seconds": seconds,
                "speedup": (rows[0]["median_seconds"] if rows else seconds) / seconds,
            }
        )
    return rows
