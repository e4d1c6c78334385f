"""Sub-linear reads of a long memory against the exact read, on the keys of a trained network."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mm_lightning.errors import UserError
from mm_lightning.experiments.benchmark.faiss_index import FaissIndex
from mm_lightning.experiments.benchmark.report import report
from mm_lightning.experiments.benchmark.timing import machine
from mm_lightning.outputs import check_output
from mm_lightning.ranges import AtLeastTwo, Budget, Count, Few, Name, NonNegative, Place, Range, Seed

if TYPE_CHECKING:
    import torch

Index = Literal["ivf", "hnsw"]

SMALLEST = 4096
"""Pairs of a memory that clusters are made of."""

StoredPairs = Annotated[int, Range(SMALLEST)]


def retrieval_command(
    checkpoint: Place,
    text: Place = "python-stdlib",
    pairs: list[StoredPairs] | StoredPairs | None = None,
    budgets: list[Budget] | None = None,
    epsilons: list[NonNegative] | None = None,
    index: list[Index] | None = None,
    neighbours: Count = 4096,
    queries: Count = 32,
    context: AtLeastTwo = 2048,
    random_keys: bool = True,
    device: Name = "cpu",
    threads: Few | None = None,
    seed: Seed = 0,
    output: Place | None = None,
    overwrite: bool = False,
) -> None:
    """Time sub-linear reads of the long-term memory, and measure their error.

    A memory is filled with what a trained network stores of a text, and asked with the keys of the text that follows,
    at the bandwidth of so many pairs: by the exact read of decoding (and torch's, where numba compiles the former), by
    clusters (an option of the state of inference) with several budgets and with proven errors, and through an index of
    faiss, whose nearest neighbours are read and renormalised.
    All take turns, one token at a time. Errors are norms of differences, relative to the norm of the exact answer.

    Args:
        checkpoint: of the network, a run folder or a checkpoint.
        text: files, a folder or a glob; python-stdlib is the standard library of this Python.
        pairs: stored pairs, at least 4096: [32768, 131072] by default.
        budgets: pairs that a query reads one by one: [4096, 8192, 16384] by default.
        epsilons: proven errors, see SublinearRead: [0.0, 0.01, 0.1] by default.
        index: kinds of faiss's indexes to compare with, ivf and hnsw; [ivf] by default, [] for none.
        neighbours: pairs that an index finds for a query.
        queries: tokens asked with.
        context: tokens of the pieces in which the network reads the text, each as a document.
        random_keys: also the same with random keys and values, where nothing is near anything.
        device: cpu, cuda, ...
        threads: CPU threads; torch's choice by default.
        seed: of the order of the text's files, and of random keys.
        output: a JSON file for the result.
        overwrite: replace an existing output.
    """
    import torch

    from mm_lightning.checkpoint import load_network
    from mm_lightning.inference.generate import choose_device

    sizes = [32768, 131072] if pairs is None else [pairs] if isinstance(pairs, int) else pairs
    if not sizes:
        raise UserError("pairs is empty: name one or more numbers of pairs")
    target = None if output is None else check_output(output, overwrite, [text])
    if threads:
        torch.set_num_threads(threads)
    place = choose_device(device)
    methods = _stores(budgets or [4096, 8192, 16384], [0.0, 0.01, 0.1] if epsilons is None else epsilons)
    network, tokenizer = load_network(checkpoint, place)
    with torch.inference_mode():
        tokens = read_tokens(text, tokenizer, max(sizes) + queries, context, seed)
        layers = fill(network, tokens.to(place))
        if random_keys:
            layers["random keys"] = _random_like(next(reversed(layers.values())), seed)
        found = [
            _measure(name, filled, count, queries, methods, ["ivf"] if index is None else index, neighbours)
            for count in sizes
            for name, filled in layers.items()
        ]
    settings = {"checkpoint": Path(checkpoint).name, "text": text, "context": context, "queries": queries, "seed": seed}
    result = {
        "benchmark": "retrieval",
        "dimensions": {"heads": network.config.heads, "head_dim": network.config.dim // network.config.heads},
        "layers": found,
        "all": [_over_all([x for x in found if x["pairs"] == n and x["layer"] != "random keys"]) for n in sizes],
        "settings": settings,
        **machine(place),
    }
    columns = ["pairs", "keys of", "read by", "share read", "error", "99th", "ms/token", "speed"]
    report(result, "reads of a long-term memory", columns, 3, map(_lines, [*found, *result["all"]]), target)


@dataclass
class Filled:
    """What one memory stores: keys and values (1, H, n, D), and its bandwidth for a number of pairs."""

    keys: torch.Tensor
    values: torch.Tensor
    bandwidth: Callable[[Any], Any]


def _stores(budgets: Sequence[int], epsilons: Sequence[float]) -> dict[str, Any]:
    from mm_lightning.memory.sublinear.key_clusters import SublinearRead

    stores = {f"budget {budget:,}": SublinearRead(budget=budget) for budget in budgets}
    return stores | {f"epsilon {epsilon:g}": SublinearRead(budget=1024, epsilon=epsilon) for epsilon in epsilons}


def read_tokens(text: str, tokenizer: Any, count: int, context: int, seed: int) -> Any:
    """At least so many tokens of a text's documents, in random order and one after the other, (pieces, context).

    Raises:
        UserError: the text is shorter.
    """
    import torch

    from mm_lightning.data.corpora import Piece
    from mm_lightning.data.source_files import ReadSettings, list_files
    from mm_lightning.data.tokenize_units import documents_of

    settings = ReadSettings()
    files = list_files([text], settings)
    order = [Piece(number) for number in range(len(files))]
    random.Random(seed).shuffle(order)
    wanted = -(-count // context) * context
    tokens: list[int] = []
    for document in documents_of(files, order, settings, []):
        tokens += [tokenizer.bos, *tokenizer.encode(document)]
        if len(tokens) >= wanted:
            return torch.tensor(tokens[:wanted]).view(-1, context)
    raise UserError(
        f"{text} has {len(tokens):,} tokens, {wanted:,} are needed: name more text or ask for fewer --pairs"
    )


def fill(network: Any, tokens: Any) -> dict[str, Filled]:
    """What every memory without a window stores of pieces of text, by its name.

    Args:
        network: in evaluation mode.
        tokens: (pieces, context), each piece read as a document of its own.

    Raises:
        UserError: the network has no such memory.
    """
    import torch

    from mm_lightning.memory.contextual import ContextualMemory

    found: dict[str, list[tuple[Any, Any, Any]]] = {}
    for rows in tokens.split(4):
        state = network.new_state(len(rows), tokens.shape[1])
        network(rows, state=state, logits_to_keep=1)
        for name, part in state.parts.items():
            memory = network.get_submodule(name)
            if isinstance(memory, ContextualMemory) and part.pairs is not None and part.pairs.keep is None:
                stored = part.pairs.tensors()
                k, v = (stored[which].transpose(0, 1).flatten(1, 2) for which in ("keys", "values"))
                found.setdefault(name, []).append((k, v, memory.bandwidth))
    if not found:
        raise UserError("this network has no long-term memory: name the checkpoint of a memory mosaic that has one")
    return {
        name: Filled(torch.cat([k for k, _, _ in x], 1)[None], torch.cat([v for _, v, _ in x], 1)[None], x[0][2])
        for name, x in found.items()
    }


def _random_like(filled: Filled, seed: int) -> Filled:
    import torch
    from torch.nn import functional as F

    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(filled.keys.shape, generator=generator).to(filled.keys) for _ in range(2))
    return Filled(F.normalize(keys, dim=-1), F.normalize(values, dim=-1), filled.bandwidth)


def _measure(
    name: str, filled: Filled, count: int, queries: int, stores: dict[str, Any], index: Sequence[str], neighbours: int
) -> dict[str, Any]:
    """Errors and times of every method at one layer, for so many stored pairs."""
    import torch
    from torch.nn import functional as F

    from mm_lightning.memory.kernels import resolve_kernels
    from mm_lightning.memory.sublinear.key_clusters import KeyClusters

    size = next(iter(stores.values())).cluster_size
    padded = [F.pad(x[:, :, :count], (0, 0, 0, -count % size)) for x in (filled.keys, filled.values)]
    keys, values = (x[:, :, :count] for x in padded)
    others = {kind: FaissIndex(kind, keys[0], values[0].clone(), neighbours) for kind in index}
    built = {kind: other.seconds for kind, other in others.items()}
    filled_clusters: dict[bool, tuple[Any, list[Any]]] = {}  # by whether errors are proven, which takes float64
    for store in stores.values():
        if (proven := store.epsilon is not None) not in filled_clusters:
            begin = time.perf_counter()
            clusters, buffers = KeyClusters(store), [x.clone() for x in padded]
            clusters.extend(*buffers, count)
            built["clusters, proven" if proven else "clusters"] = time.perf_counter() - begin
            filled_clusters[proven] = clusters, buffers
    first = torch.zeros(1, dtype=torch.int64, device=keys.device)

    def by_clusters(store: Any, q: Any) -> Any:
        clusters, buffers = filled_clusters[store.epsilon is not None]
        clusters.settings = store
        return clusters.read(q, *buffers, count, first)

    def by_torch(q: Any) -> Any:
        return F.scaled_dot_product_attention(q[:, :, None], keys, values, scale=1.0)[:, :, 0]

    runs: dict[str, Callable[[Any], Any]] = {"exact": by_torch}
    if resolve_kernels("auto", keys.device, keys.dtype) == "numba" and torch.get_num_threads() == 1:
        from mm_lightning.memory.kernels.numba_decode import read

        runs = {"exact": lambda q: read(q, *padded, count), "exact, torch": by_torch}  # the first as decoding reads
    runs |= {method: partial(by_clusters, store) for method, store in stores.items()}
    runs |= {f"faiss {kind}": other.read for kind, other in others.items()}
    pairs = torch.tensor([[count]], device=keys.device)
    beta = filled.bandwidth(pairs, keys.new_zeros(1, 1, 0)).reshape(-1, 1).to(keys.dtype)
    errors: dict[str, list[Any]] = {method: [] for method in runs}
    shares: dict[str, list[float]] = {method: [] for method in runs}
    seconds: dict[str, list[float]] = {method: [] for method in runs}
    for number in range(-1, queries):  # the first warms up
        q = filled.keys[:, :, count + max(number, 0)] * beta
        exact = runs["exact"](q)
        for method, run in runs.items():
            answer, passed = _timed(run, q)
            if number >= 0:
                seconds[method].append(passed)
                errors[method].append((answer - exact).norm(dim=-1) / exact.norm(dim=-1))
                kind = method.removeprefix("faiss ")
                if method in stores:
                    shares[method].append(filled_clusters[stores[method].epsilon is not None][0].share)
                else:
                    shares[method].append(others[kind].share if kind in others else 1)
    rows = {}
    for method in runs:
        error = torch.cat(errors[method]).flatten()
        rows[method] = {
            "share": statistics.mean(shares[method]),
            "error": error.mean().item(),
            "error_99": error.quantile(0.99).item(),
            "milliseconds": statistics.median(seconds[method]) * 1e3,
            "speed": statistics.median(a / b for a, b in zip(seconds["exact"], seconds[method], strict=True)),
            "errors": error.tolist(),
        }
    return {"layer": name, "pairs": count, "build_seconds": built, "methods": rows}


def _timed(run: Callable[[Any], Any], q: Any) -> tuple[Any, float]:
    import torch

    def now() -> float:
        if q.is_cuda:
            torch.cuda.synchronize(q.device)
        return time.perf_counter()

    begin = now()
    answer = run(q)
    return answer, now() - begin


def _over_all(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and sums over the layers of a network."""
    import torch

    rows = {}
    for method in layers[0]["methods"]:
        each = [layer["methods"][method] for layer in layers]
        errors = torch.tensor([error for x in each for error in x["errors"]])
        milliseconds = sum(x["milliseconds"] for x in each)
        rows[method] = {
            "share": statistics.mean(x["share"] for x in each),
            "error": errors.mean().item(),
            "error_99": errors.quantile(0.99).item(),
            "milliseconds": milliseconds,
            "speed": sum(layer["methods"]["exact"]["milliseconds"] for layer in layers) / milliseconds,
        }
    return {"layer": "all layers", "pairs": layers[0]["pairs"], "methods": rows}


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Of the table, for one layer."""
    for method, row in found["methods"].items():
        yield (
            f"{found['pairs']:,}",
            found["layer"],
            method,
            f"{row['share']:.1%}",
            f"{row['error']:.2%}",
            f"{row['error_99']:.2%}",
            f"{row['milliseconds']:.2f}",
            f"{row['speed']:.2f} x",
        )
