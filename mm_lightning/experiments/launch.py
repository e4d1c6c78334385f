"""`mm launch`: a training config on many nodes, as a Slurm job or by torchrun."""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from mm_lightning.errors import UserError
from mm_lightning.options import OptionParser
from mm_lightning.outputs import write_text
from mm_lightning.ranges import Few, Name, Natural, Range, accept
from mm_lightning.redaction import redact_words
from mm_lightning.terminal import display
from mm_lightning.training.accumulation import accumulation_steps
from mm_lightning.training.memory_estimate import USABLE_FRACTION, bytes_per_device, count_devices, run_layout

DESCRIPTION = """\
Starts a training config on many nodes: submits a Slurm job, or starts torchrun for this node.

Checks first that global batch, micro batch and GPUs fit together and that the run fits the memory of a GPU. Takes the
options of `mm fit` too: --config (several files are overlays) and single values. `mm fit --config ... --plan GPUS`
checks much more."""

EXAMPLES = """\
examples:
  mm launch --config configs/8b.yaml --nodes 8 --gpus 8 --dry_run           prints the Slurm script
  mm launch --config configs/8b.yaml --nodes 8 --gpus 8 --sbatch partition=h100 time=2-00:00:00
  mm launch --config configs/8b.yaml --nodes 2 --gpus 8 --executor torchrun --node_rank 1 --address node0"""

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

export NCCL_DEBUG=WARN                                            # says which connection failed
export TORCH_NCCL_DUMP_ON_TIMEOUT=1 TORCH_FR_BUFFER_SIZE=2000     # says what each process was waiting for, in
export TORCH_FR_DUMP_TEMP_FILE={logs}/$SLURM_JOB_ID-waiting-      # ... a file for each
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

# Queued again, after a pre-emption or a dead node, the job goes on from the newest checkpoint that it has written.
begun={logs}/$SLURM_JOB_ID.begun
[[ -e $begun ]] || touch "$begun"
start=({start})
if [[ -n $(find {run}/*/checkpoints -maxdepth 1 -name '*.ckpt' -newer "$begun" -print -quit 2>/dev/null) ]]; then
    start=(--resume)
fi

# A process for each GPU, each with a log of its own. One that fails ends all.
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
    """A config on so many GPUs.

    Attributes:
        nodes: how many.
        gpus: of each node.
        run: where its run folders lie.
        arguments: of `mm fit`, without where it begins.
        start: where it begins: `--ckpt_path ...`, `--resume` or nothing.
        batch: what an optimization step is made of, in words.
        memory: what a GPU holds, in words.
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
        """Where what the processes print goes."""
        return Path(self.run) / "launch"

    def _words(self) -> dict[str, str]:
        title = f"{Path(self.run).name} on {self.nodes} nodes x {self.gpus} GPUs"
        return {"title": title, "logs": shlex.quote(str(self.logs)), "batch": self.batch, "memory": self.memory}

    def sbatch(self, options: dict[str, str]) -> str:
        """The Slurm script.

        Args:
            options: of sbatch, over those that it has by itself.
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
        """The command of one node."""
        meeting = [f"--nnodes={self.nodes}", f"--nproc-per-node={self.gpus}"]
        if self.nodes > 1:
            meeting += [f"--node-rank={node_rank}", f"--master-addr={address}", f"--master-port={port}"]
        # a log for each process, and the first one's on the screen
        logs = [f"--log-dir={self.logs}", "--redirects=3", "--tee=0:3"]
        # Without "--" torchrun takes our --run for an abbreviation of one of its own options.
        return ["torchrun", *meeting, *logs, "-m", "--", "mm_lightning.cli", "fit", *self.arguments, *self.start]

    def torchrun_script(self, port: int) -> str:
        """The same for any node, as a script that asks for its number."""
        words = self.torchrun("$NODE_RANK", "$ADDRESS", port)
        command = " ".join(word if "$" in word else shlex.quote(word) for word in words)
        command = command.replace(" -m ", " \\\n    -m ").replace(" --log-dir", " \\\n    --log-dir")
        return TORCHRUN.format(command=command, **self._words())


def launch_command(args: list[str]) -> None:
    """Run `mm launch` with the rest of its command line."""
    own, rest = options().parse_known_args(args)
    for name, hint in STATED.items():
        accept(hint, getattr(own, name), f"--{name}")
    if own.executor == "slurm" or own.dry_run:
        for before, word in zip(["", *rest], rest, strict=False):
            if redact_words([before, word])[1] != word:
                name = (word if word.startswith("--") else before).partition("=")[0]
                raise UserError(
                    f"{name} holds a secret, which mm launch would write into a script: put it in a config file, which "
                    f"the script only names"
                )
    launch = planned(rest, own.nodes, own.gpus, own.gpu_memory)
    extra = dict(option.lstrip("-").partition("=")[::2] for option in own.sbatch)
    if own.executor == "slurm":
        script = launch.sbatch(extra)
        display(script if own.dry_run else submit(launch, script), end="" if own.dry_run else "\n")
        return
    if own.dry_run:
        display(launch.torchrun_script(own.port), end="")
        return
    if launch.nodes > 1 and (own.node_rank is None or own.address is None):
        raise UserError(
            f"torchrun on {launch.nodes} nodes is started on each of them with its number and the first one's address: "
            f"--node_rank 0 --address node0"
        )
    launch.logs.mkdir(parents=True, exist_ok=True)
    words = launch.torchrun(str(own.node_rank), own.address, own.port)
    raise SystemExit(subprocess.call([sys.executable, "-m", "torch.distributed.run", *words[1:]]))


STATED: dict[str, Any] = {
    "nodes": Annotated[int, Range(1, 100_000)] | None,
    "gpus": Few | None,
    "gpu_memory": Annotated[float, Range(0, 1_000_000, above=True)],
    "node_rank": Natural | None,
    "address": Name | None,
    "port": Annotated[int, Range(1, 65_535)],
    "sbatch": list[Name],
}
"""The types of the options of `mm launch`, with their ranges."""


def options() -> OptionParser:
    """What `mm launch` takes beside the options of `mm fit`."""
    parser = OptionParser(
        "mm launch",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--nodes", type=int, help="default: the config's trainer.num_nodes")
    parser.add_argument("--gpus", type=int, help="of each node; default: the config's trainer.devices")
    parser.add_argument("--executor", choices=["slurm", "torchrun"], default="slurm", help="default: slurm")
    parser.add_argument("--dry_run", action="store_true", help="print the script instead of starting it")
    parser.add_argument("--gpu_memory", type=float, default=80, help="GB of each GPU; default: 80")
    parser.add_argument(
        "--sbatch",
        nargs="*",
        default=[],
        metavar="NAME=VALUE",
        help="options of sbatch, as in partition=h100 exclusive",
    )
    parser.add_argument("--node_rank", type=int, help="for torchrun: which node this is, from 0")
    parser.add_argument("--address", help="for torchrun: of the first node")
    parser.add_argument("--port", type=int, default=29500, help="for torchrun: of the first node; default: 29500")
    return parser


def planned(args: list[str], nodes: int | None, gpus: int | None, gpu_memory: float) -> Launch:
    """What is to be launched, after the checks.

    Args:
        args: of `mm fit`.
        nodes: in place of the config's.
        gpus: of each node, in place of the config's.
        gpu_memory: GB of each GPU.

    Raises:
        UserError: batch and GPUs do not fit together, or the run does not fit the GPUs' memory.
    """
    from mm_lightning.training.parse_fit import parse_fit

    if not any(arg.startswith("--config") for arg in args):
        raise UserError("mm launch needs a config: mm launch --config configs/8b.yaml --nodes 8 --gpus 8")
    start, arguments = where_it_begins(args)
    config = parse_fit([*arguments, *start])
    nodes = nodes or config.trainer.num_nodes
    gpus = gpus or count(config.trainer.devices)
    config.trainer.num_nodes, config.trainer.devices = nodes, gpus
    data = config.data
    times = accumulation_steps(data.global_batch_size, data.micro_batch_size, nodes * gpus, gpus)
    needed = sum(bytes_per_device(config.model.network, run_layout(config)).values()) / 1e9
    if needed > USABLE_FRACTION * gpu_memory:
        raise UserError(
            f"about {needed:.1f} GB on each of {nodes * gpus} GPUs do not fit {gpu_memory:g} GB, of which a tenth is "
            f"for what is not counted: a smaller data.micro_batch_size, model.activation_checkpointing, more nodes, or "
            f"a higher stage of ZeRO (mm cost shows what takes how much)"
        )
    arguments += ["--trainer.num_nodes", str(nodes), "--trainer.devices", str(gpus)]
    parts = f"{nodes * gpus} GPUs x {data.micro_batch_size} x {times} accumulated"
    batch = f"A step: {data.global_batch_size} sequences = {parts}."
    return Launch(
        nodes, gpus, config.run, arguments, start, batch, f"Each GPU: about {needed:.1f} GB of {gpu_memory:g}."
    )


def where_it_begins(args: list[str]) -> tuple[list[str], list[str]]:
    """Take `--ckpt_path` and `--resume` out of the arguments of `mm fit`: (these, the others)."""
    start: list[str] = []
    others: list[str] = []
    rest = list(args)
    while rest:
        word = rest.pop(0)
        chosen = start if word.split("=")[0] in ("--ckpt_path", "--resume") else others
        chosen.append(word)
        if chosen is start and "=" not in word and rest and not rest[0].startswith("--"):
            start.append(rest.pop(0))
    return start, others


def count(devices: Any) -> int:
    """Return the number of GPUs that `trainer.devices` names.

    Raises:
        UserError: it is left to the machine.
    """
    number = count_devices(devices)
    if number is None:
        raise UserError("trainer.devices is left to the machine: say --gpus, of each node")
    return number


def submit(launch: Launch, script: str) -> str:
    """Hands the script to sbatch; returns a line about it.

    Raises:
        UserError: there is no sbatch, or it refuses.
    """
    if not shutil.which("sbatch"):
        raise UserError("there is no sbatch here: run this on a login node, or with --executor torchrun, or --dry_run")
    launch.logs.mkdir(parents=True, exist_ok=True)  # Slurm makes no folders
    path = launch.logs / "job.sbatch"
    write_text(path, script, exact=True)
    done = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"sbatch refused {path}: {done.stderr.strip()}")
    job = done.stdout.strip().split(";")[0]
    return f"submitted as job {job}: {launch.logs / job}-0.log shows how it goes, scancel {job} ends it"
