"""The Slurm script and the torchrun command of `mm launch`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

SBATCH = """\
#!/usr/bin/env bash
# {title}
#
#   mkdir -p {logs} && sbatch THIS_FILE        (mm launch does both)
#
# {batch}
# {memory}
{options}
set -euo pipefail

export NCCL_DEBUG=WARN                                            # logs which connection failed
export TORCH_NCCL_DUMP_ON_TIMEOUT=1 TORCH_FR_BUFFER_SIZE=2000     # dumps what each process was waiting for, in
export TORCH_FR_DUMP_TEMP_FILE={logs}/$SLURM_JOB_ID-waiting-      # ... a file for each
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

# Requeued after a pre-emption or a dead node, the job resumes at the newest checkpoint that it has written.
begun={logs}/$SLURM_JOB_ID.begun
[[ -e $begun ]] || touch "$begun"
start=({start})
if [[ -n $(find {run}/*/checkpoints -maxdepth 1 -name '*.ckpt' -newer "$begun" -print -quit 2>/dev/null) ]]; then
    start=(--resume)
fi

# A process for each GPU, each with its own log. If one fails, all end.
srun --kill-on-bad-exit=1 --open-mode=append --output={logs}/"$SLURM_JOB_ID"-%t.log \\
    {command} "${{start[@]}}"
"""

TORCHRUN = """\
#!/usr/bin/env bash
# {title}
#
#   NODE_RANK=0 ADDRESS=first-node bash THIS_FILE        on each node, counted from 0
#
# {batch}
# {memory}
set -euo pipefail

{command}
"""


@dataclass(frozen=True)
class Launch:
    """A training config on nodes with GPUs, as a Slurm script or a torchrun command.

    Attributes:
        nodes: number of nodes.
        gpus: GPUs of each node.
        run: the folder of its run folders.
        arguments: of `mm fit`, without `start`.
        start: `--ckpt_path ...`, `--resume` or nothing.
        batch: a line about the batch of an optimizer step.
        memory: a line about the memory of a GPU.
    """

    nodes: int
    gpus: int
    run: str
    arguments: list[str]
    start: list[str]
    batch: str
    memory: str

    @property
    def logs(self) -> Path:
        """The folder of the processes' logs."""
        return Path(self.run) / "launch"

    def _words(self) -> dict[str, str]:
        title = f"{Path(self.run).name} on {self.nodes} nodes x {self.gpus} GPUs"
        return {"title": title, "logs": shlex.quote(str(self.logs)), "batch": self.batch, "memory": self.memory}

    def sbatch(self, options: dict[str, str]) -> str:
        """Return the Slurm script.

        Args:
            options: of sbatch, which override the defaults.
        """
        chosen = {
            "job-name": Path(self.run).name,
            "nodes": str(self.nodes),
            "ntasks-per-node": str(self.gpus),
            "gpus-per-node": str(self.gpus),
            "cpus-per-task": "8",
            "mem": "0",
            "exclusive": "",
            "time": "1-00:00:00",
            "output": f"{self.logs}/%j.log",
            "open-mode": "append",
            "signal": "USR1@300",
            "requeue": "",
            **options,
        }
        why = {
            "mem": "all of each node",
            "signal": "five minutes to save before the time is up",
            "requeue": "when a node dies or the job is pre-empted",
        }
        lines = [
            f"#SBATCH --{key}{'=' if value else ''}{value and shlex.quote(value)}" for key, value in chosen.items()
        ]
        lines = [f"{line:<34}# {why[key]}" if key in why else line for key, line in zip(chosen, lines, strict=True)]
        command = "mm fit " + " ".join(shlex.quote(word) for word in self.arguments)
        start = " ".join(shlex.quote(word) for word in self.start)
        words = {**self._words(), "run": shlex.quote(self.run), "start": start, "command": command}
        return SBATCH.format(options="\n".join(lines), **words)

    def torchrun(self, node_rank: str, address: str, port: int) -> list[str]:
        """Return the torchrun command of one node."""
        meeting = [f"--nnodes={self.nodes}", f"--nproc-per-node={self.gpus}"]
        if self.nodes > 1:
            meeting += [f"--node-rank={node_rank}", f"--master-addr={address}", f"--master-port={port}"]
        # a log for each process, and the first one's on the screen
        logs = [f"--log-dir={self.logs}", "--redirects=3", "--tee=0:3"]
        # Without "--" torchrun takes our --run for an abbreviation of one of its own options.
        return ["torchrun", *meeting, *logs, "-m", "--", "mm_lightning.cli", "fit", *self.arguments, *self.start]

    def torchrun_script(self, port: int) -> str:
        """Return a script for any node, which gets its rank and the first node's address as environment variables."""
        words = self.torchrun("$NODE_RANK", "$ADDRESS", port)
        command = " ".join(word if "$" in word else shlex.quote(word) for word in words)
        command = command.replace(" -m ", " \\\n    -m ").replace(" --log-dir", " \\\n    --log-dir")
        return TORCHRUN.format(command=command, **self._words())
