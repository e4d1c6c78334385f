"""Results as `mm evaluate` leaves them, made of given numbers."""

import json
import math
from pathlib import Path

SESSION = {
    "started": "2026-01-31T23:59:59+00:00",
    "packages": {"mm-lightning": "0.1.0"},
    "code": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
    "cpu": {"model": "Test CPU", "cores": 2},
    "gpus": [],
}


def network(weights: str, **more) -> dict:
    """What results.json says of a network."""
    base = {
        "checkpoint": f"runs/{weights}/0/checkpoints/step=500.ckpt",
        "run_folder": f"runs/{weights}/0",
        "step": 500,
        "architecture": "MemoryMosaic",
        "levels": ["long", "short"],
        "parameters": 1_500_000,
        "training_tokens": 1_024_000,
        "forward_flops_per_token": 3_000_000,
        "context_length": 512,
        "tokenizer": "t" * 64,
        "precision": "32",
        "device": "cpu",
        "weights": weights,
        "long_term": True,
        "inference_delay": None,
    }
    return base | more


def removed(about: dict) -> dict:
    """The same without its long-term memory."""
    return about | {"long_term": False, "levels": ["short"], "parameters": about["parameters"] - 300_000}


def share(right: int, count: int, metric: str = "accuracy", **group) -> dict:
    """A row of answers that are right or wrong, its standard error that of the sample."""
    p = right / count
    return row(p, math.sqrt(p * (1 - p) / (count - 1)), count, metric, **group)


def row(value: float, stderr: float | None, count: int, metric: str, **group) -> dict:
    return {"group": group, "metric": metric, "value": value, "stderr": stderr, "count": count}


def write(folder: Path, run: str, task: str, rows: list[dict], about: dict, session=None, **settings) -> Path:
    """A finished task."""
    place = folder / run / task
    place.mkdir(parents=True)
    found = {"task": task, "run": run, "rows": rows, "settings": {"version": 1, **settings}, "network": about}
    found |= {"seconds": 1.0, "sessions": [{**SESSION, **(session or {})}]}
    (place / "results.json").write_text(json.dumps(found))
    return place


def write_partial(folder: Path, run: str, task: str, records: list[dict], about: dict, **settings) -> Path:
    """A task of which some questions are answered; the last line was cut short."""
    place = folder / run / task
    place.mkdir(parents=True)
    options = {name: about[name] for name in ("weights", "long_term", "inference_delay", "precision")}
    identity = {"task": task, "settings": {"version": 1, **settings}, "network": options}
    (place / "settings.json").write_text(json.dumps({"identity": identity, "sessions": [SESSION]}))
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (place / "samples.jsonl").write_text(lines + '{"key": "torn')
    return place


LONG = {"limit": 500, "seed": 0, "gold_position": "even"}
CONTEXTS = (4096, 8192, 16384, 32768)


def write_qa(folder: Path, run: str, about: dict, right: dict[str, list[int]], count: int = 500, **settings) -> None:
    """qa_1 and qa_2 by length, with the answers of a length spread over ten depths."""
    for task, numbers in right.items():
        contexts = CONTEXTS[: len(numbers)]
        rows = [share(n, count, length=length) for n, length in zip(numbers, contexts, strict=True)]
        for n, length in zip(numbers, contexts, strict=True):
            for depth in range(10):
                some = max(0, min(count // 10, n // 10 + (depth - 4) * count // 200))
                name = f"{depth * 10}-{depth * 10 + 10}%"
                rows.append(share(some, count // 10, length=length, depth=name))
        data = {"data_dir": "squad" if task == "qa_1" else "hotpotqa", "data_hash": task}
        write(folder, run, task, rows, about, **{**LONG, "contexts": list(contexts), **data, **settings})


STRATEGIES = ("newline", "newline-shuffled", "space", "space-shuffled")
SHOTS = {"demonstration_seeds": 3, "limit": 500, "seed": 0, "strategies": list(STRATEGIES), "data_hash": "d"}


def write_in_context(folder: Path, run: str, task: str, about: dict, curves: dict, **settings) -> None:
    """Classification: by kind of labels and shots, an accuracy to which strategies add 0, 1, 2 and 3 points."""
    rows = []
    for labels, curve in curves.items():
        for shots, accuracy in curve.items():
            for number, strategy in enumerate((*STRATEGIES, "best")):
                for metric, less in (("likelihood", 0.0), ("greedy", 0.05)):
                    value = max(0.0, accuracy - less) + 0.01 * min(number, 3)
                    group = {"labels": labels, "shots": shots, "strategy": strategy}
                    rows.append(row(value, 0.02, 1500, metric, **group))
    shots = sorted({n for curve in curves.values() for n in curve})
    write(folder, run, task, rows, about, **{**SHOTS, "shots": shots, "labels": list(curves), **settings})
