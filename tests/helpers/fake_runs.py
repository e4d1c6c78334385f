"""Run folders as `mm fit` and `mm sweep` leave them, made of given numbers."""

import json
from pathlib import Path

ENVIRONMENT = {
    "started": "2026-01-31T23:59:59+00:00",
    "python": "3.11.7",
    "packages": {"mm-lightning": "0.1.0", "torch": "2.15.0"},
    "code": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
    "cpu": {"model": "Test CPU", "cores": 2},
    "gpus": [],
    "earlier": [],
}


def write_run(
    folder: Path, lines: list[dict], config: str = "", references=None, seconds: float | None = 60.0, **environment
) -> Path:
    """A run folder with these lines in metrics.jsonl; `seconds` None: not finished."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    (folder / "environment.json").write_text(json.dumps({**ENVIRONMENT, **environment}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if seconds is not None:
        (folder / "finished.json").write_text(json.dumps({"step": 20, "seconds": seconds}))
    if references:
        (folder / "baselines.json").write_text(json.dumps(references))
    return folder


def curve(losses: dict[int, float], speed: float = 100.0, **more: float) -> list[dict]:
    """A train line and a validation line a step."""
    lines = []
    for step, loss in losses.items():
        lines.append({"step": step, "train/loss": loss, "train/tokens": step * 10, "train/tokens_per_second": speed})
        lines.append({"step": step, "validation/loss": loss, **{f"validation/{k}": v for k, v in more.items()}})
    return lines


def write_sweep(folder: Path, runs: list[dict], **settings) -> Path:
    """A sweep folder; each run has variant, seed, lines, and what else sweep.json says of it.

    `lines` None: not started. `seconds` None: not finished.
    """
    planned = []
    for run in runs:
        run = {
            "parameters": 1000,
            "training_flops_per_token": 6000,
            "steps": 20,
            "step_tokens": 10,
            "values": {},
            **run,
        }
        lines, references = run.pop("lines"), run.pop("references", None)
        seconds, log = run.pop("seconds", 60.0), run.pop("log", None)
        environment = run.pop("environment", {})
        name = f"{run['variant']}/seed-{run['seed']}"
        planned.append({"values": {}, **run, "folder": name})
        if lines is None:
            continue
        write_run(folder / name / "0", lines, references=references, seconds=seconds, **environment)
        if log:
            (folder / name / "log.txt").write_text(log)
    sweep = {"name": "trial", "command": "mm sweep trial.yaml", "baseline": planned[0]["variant"], "axes": {}}
    folder.mkdir(exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps({**sweep, **settings, "runs": planned}))
    return folder
