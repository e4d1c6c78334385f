"""Runs of a tiny network that end in the middle of a step, as after kill -9, and go on; and what their steps saw.

As a program, `python resuming.py cases.json` with RANK, WORLD_SIZE, ... as of torchrun runs many of them, one after
the other, in one process of each rank.
"""

import hashlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from mm_lightning.training.cli import run_training


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
        draw = pl_module.network.draw_step

        def drawn(*place):
            self.line["m"] = draw(*place)
            return draw(*place)

        pl_module.network.draw_step = drawn

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
        self.line = {"step": trainer.global_step, "batch": place, "tokens": tokens}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.line["loss"] = float(outputs["loss"]).hex()
        self.line["rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        self.out.write(json.dumps(self.line) + "\n")

    def on_train_end(self, trainer, pl_module):
        self.out.close()


@dataclass
class Case:
    """One run in pieces.

    Attributes:
        name: its folder below `root`.
        settings: options of `mm fit`.
        kills: after how many steps each piece but the last one ends.
        saves: steps between checkpoints in each piece.
    """

    name: str
    settings: dict[str, Any]
    kills: list[int] = field(default_factory=list)
    saves: list[int] = field(default_factory=list)

    def run(self, config: str, root: Path, first: int = 0, last: int | None = None) -> None:
        """Runs its pieces in this process (those from `first` to before `last`)."""
        for n in range(len(self.kills) + 1)[first:last]:
            until = self.kills[n] if n < len(self.kills) else 10**9
            save = self.saves[n] if n < len(self.saves) else 0
            callbacks = [
                {"class_path": "Checkpoints", "init_args": {"every_n_steps": save, "keep": 0}},
                {"class_path": "resuming.Trail", "init_args": {"folder": f"{root / self.name}/{n}", "until": until}},
            ]
            options = [f"--{key}={value}" for key, value in self.settings.items()]
            options += [f"--run={root / self.name}/run", f"--trainer.callbacks={json.dumps(callbacks)}"]
            try:
                run_training("fit", ["--config", config, *options, *(["--resume"] if n else [])])
            except Killed:
                assert n < len(self.kills)


Step = list[dict[str, Any]]


def steps(root: Path, case: Case, ranks: int = 1) -> dict[int, Step]:
    """What the batches of each step saw and gave, over all ranks in the order of the data. Where a step was run
    again after a kill, both must be the same."""
    found: dict[int, Step] = {}
    for piece in range(len(case.kills) + 1):
        lines = [
            {**json.loads(line), "rank": rank}
            for rank in range(ranks)
            for line in (root / case.name / str(piece) / f"{rank}.jsonl").read_text().splitlines()
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


if __name__ == "__main__":
    plan = json.loads(Path(sys.argv[1]).read_text())
    sys.modules["resuming"] = sys.modules["__main__"]  # Trail's Killed is ours
    import torch

    torch.set_num_threads(1)
    for values, first, last in plan["cases"]:
        Case(**values).run(plan["config"], Path(plan["root"]), first, last)
