"""Runs of a tiny network that end in the middle of a step, as after kill -9, and go on; and what their steps saw."""

import hashlib
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import forks
import launch
from lightning.pytorch import Callback

from mm_lightning.training.commands import run_training


class Killed(Exception):
    """The end of a piece."""


class Trail(Callback):
    """Writes a JSON line a batch: step, place in it, what it was and what came of it.

    Args:
        folder: for RANK.jsonl.
        until: ends the run before anything else happens after so many steps: no validation, no batch.
    """

    def __init__(self, folder: str, until: int) -> None:
        self.folder, self.until = Path(folder), until
        self.line: dict[str, Any] = {}

    def on_train_start(self, trainer, pl_module):
        self.folder.mkdir(parents=True, exist_ok=True)
        self.out = open(self.folder / f"{trainer.global_rank}.jsonl", "a")  # noqa: SIM115
        draw = pl_module.network.step_randomness

        def drawn(*place):
            self.line["m"] = draw(*place)
            return draw(*place)

        pl_module.network.step_randomness = drawn

    def _end(self, trainer):
        if trainer.global_step >= self.until:
            self.out.close()
            raise Killed

    def on_validation_start(self, trainer, pl_module):
        self._end(trainer)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._end(trainer)
        place = self.line["batch"] + 1 if self.line and self.line["step"] == trainer.global_step else 0
        tokens = [hashlib.sha256(row.numpy().tobytes()).hexdigest()[:16] for row in batch.tokens]
        groups = [(group["lr"], group["weight_decay"]) for group in trainer.optimizers[0].param_groups]
        self.line = {"step": trainer.global_step, "batch": place, "tokens": tokens, "groups": groups}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.line["loss"] = (float(outputs["loss"]) * trainer.accumulate_grad_batches).hex()
        self.out.write(json.dumps(self.line) + "\n")

    def on_train_end(self, trainer, pl_module):
        self.out.close()


class Sleeper(Callback):
    """One process falls asleep after a step."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.global_rank, trainer.global_step) == (self.rank, self.step):
            time.sleep(300)


@dataclass
class Case:
    """One run in pieces.

    Attributes:
        name: its folder below `root`.
        settings: options of `mm fit`.
        kills: after how many steps each piece but the last one ends.
        saves: steps between checkpoints in each piece.
        more: further callbacks.
    """

    name: str
    settings: dict[str, Any]
    kills: list[int] = field(default_factory=list)
    saves: list[int] = field(default_factory=list)
    more: list[dict[str, Any]] = field(default_factory=list)

    def run(self, config: str, root: Path, first: int = 0, last: int | None = None) -> None:
        """Runs its pieces in this process (those from `first` to before `last`)."""
        for n in range(len(self.kills) + 1)[first:last]:
            until = self.kills[n] if n < len(self.kills) else 10**9
            save = self.saves[n] if n < len(self.saves) else 0
            callbacks = [
                *self.more,
                {"class_path": "Checkpoints", "init_args": {"every_n_steps": save, "keep": 0}},
                {"class_path": "resuming.Trail", "init_args": {"folder": f"{root / self.name}/{n}", "until": until}},
            ]
            options = [f"--{key}={value}" for key, value in self.settings.items()]
            options += [f"--run={root / self.name}/run", f"--trainer.callbacks={json.dumps(callbacks)}"]
            try:
                resume = ["--resume"] if n and "resume" not in self.settings else []
                run_training("fit", ["--config", config, *options, *resume])
            except Killed:
                assert n < len(self.kills)


Step = list[dict[str, Any]]


def steps(root: Path, case: Case) -> dict[int, Step]:
    """What the batches of each step saw and gave, over all ranks in the order of the data. Where a step was run
    again after a kill, both must be the same."""
    found: dict[int, Step] = {}
    for piece in range(len(case.kills) + 1):
        lines = [
            {**json.loads(line), "rank": int(file.stem)}
            for file in (root / case.name / str(piece)).iterdir()
            for line in file.read_text().splitlines()
        ]
        run: dict[int, Step] = {}
        for line in sorted(lines, key=lambda line: (line["step"], line["batch"], line["rank"])):
            run.setdefault(line["step"], []).append(line)
        for step, batches in run.items():
            assert found.setdefault(step, batches) == batches, f"{case.name}: step {step} of piece {piece}"
    return found


def tokens(run: dict[int, Step]) -> list[str]:
    """Hashes of the sequences in the order of the data."""
    return [row for step in sorted(run) for line in run[step] for row in line["tokens"]]


def together(config: str, root: Path, pieces: list, ranks: int = 2, forked: bool = False) -> list[int]:
    """Runs pieces of cases, as (case, first, last), one after the other in so many processes; their exit statuses.

    What they say is in rank0.log, rank1.log, ... Two forks start at once, but not with DeepSpeed.
    """
    plan = {"config": config, "root": str(root), "cases": [(asdict(case), first, last) for case, first, last in pieces]}
    file = root / "plan.json"
    file.write_text(json.dumps(plan))
    if forked:
        return forks.ranks(program, str(file), folder=root)
    # The file that is run is imported by loader workers: none is.
    command = [sys.executable, "-c", "import sys, resuming; resuming.program(sys.argv[1])", str(file)]
    return launch.ranks(*command, folder=root, count=ranks)


def program(file: str) -> None:
    """Runs the pieces of a plan in one process of many."""
    import torch

    torch.set_num_threads(1)
    plan = json.loads(Path(file).read_text())
    for values, first, last in plan["cases"]:
        values["settings"]["trainer.devices"] = os.environ["WORLD_SIZE"]
        Case(**values).run(plan["config"], Path(plan["root"]), first, last)
