"""`mm launch`: a training config on many nodes, as a Slurm job or by torchrun."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from typing import Annotated, Any

from mm_lightning.errors import UserError
from mm_lightning.experiments.launch_scripts import Launch
from mm_lightning.options import OptionParser
from mm_lightning.outputs import write_text
from mm_lightning.ranges import Few, Name, Natural, Range, accept
from mm_lightning.redaction import redact_words
from mm_lightning.terminal import display
from mm_lightning.training.accumulation import accumulation_steps
from mm_lightning.training.memory_estimate import USABLE_FRACTION, bytes_per_device, count_devices, run_layout

DESCRIPTION = """\
Start a training config on many nodes: submit a Slurm job, or start torchrun on this node.

Checks first that global batch, micro batch and GPUs fit together and that the run fits the memory of a GPU. Takes the
options of `mm fit` too: --config (several files are overlays) and single values. `mm fit --config ... --plan GPUS`
checks much more."""

EXAMPLES = """\
examples:
  mm launch --config configs/8b.yaml --nodes 8 --gpus 8 --dry_run           prints the Slurm script
  mm launch --config configs/8b.yaml --nodes 8 --gpus 8 --sbatch partition=h100 time=2-00:00:00
  mm launch --config configs/8b.yaml --nodes 2 --gpus 8 --executor torchrun --node_rank 1 --address node0"""


def launch_command(args: list[str]) -> None:
    """Run `mm launch` with the rest of its command line."""
    chosen, fit_args = launch_parser().parse_known_args(args)
    for name, hint in OPTION_TYPES.items():
        accept(hint, getattr(chosen, name), f"--{name}")
    if chosen.executor == "slurm" or chosen.dry_run:
        for before, word in zip(["", *fit_args], fit_args, strict=False):
            if redact_words([before, word])[1] != word:
                name = (word if word.startswith("--") else before).partition("=")[0]
                raise UserError(
                    f"{name} holds a secret, which mm launch would write into a script: put it in a config file, which "
                    f"the script only names"
                )
    launch = checked_launch(fit_args, chosen.nodes, chosen.gpus, chosen.gpu_memory)
    extra = dict(option.lstrip("-").partition("=")[::2] for option in chosen.sbatch)
    if chosen.executor == "slurm":
        script = launch.sbatch(extra)
        display(script if chosen.dry_run else submit(launch, script), end="" if chosen.dry_run else "\n")
        return
    if chosen.dry_run:
        display(launch.torchrun_script(chosen.port), end="")
        return
    if launch.nodes > 1 and (chosen.node_rank is None or chosen.address is None):
        raise UserError(
            f"torchrun on {launch.nodes} nodes is started on each of them with its number and the first one's address: "
            f"--node_rank 0 --address node0"
        )
    launch.logs.mkdir(parents=True, exist_ok=True)
    words = launch.torchrun(str(chosen.node_rank), chosen.address, chosen.port)
    raise SystemExit(subprocess.call([sys.executable, "-m", "torch.distributed.run", *words[1:]]))


OPTION_TYPES: dict[str, Any] = {
    "nodes": Annotated[int, Range(1, 100_000)] | None,
    "gpus": Few | None,
    "gpu_memory": Annotated[float, Range(0, 1_000_000, above=True)],
    "node_rank": Natural | None,
    "address": Name | None,
    "port": Annotated[int, Range(1, 65_535)],
    "sbatch": list[Name],
}
"""The types of the options of `mm launch`, with their ranges."""


def launch_parser() -> OptionParser:
    """Return the parser of the options of `mm launch`, without those of `mm fit`."""
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


def checked_launch(args: list[str], nodes: int | None, gpus: int | None, gpu_memory: float) -> Launch:
    """Return the launch of a config, after a check of its batch and memory.

    Args:
        args: of `mm fit`.
        nodes: number of nodes, instead of the config's.
        gpus: GPUs of each node, instead of the config's.
        gpu_memory: GB of each GPU.

    Raises:
        UserError: batch and GPUs do not fit together, or the run does not fit the GPUs' memory.
    """
    from mm_lightning.training.parse_fit import parse_fit

    if not any(arg.startswith("--config") for arg in args):
        raise UserError("mm launch needs a config: mm launch --config configs/8b.yaml --nodes 8 --gpus 8")
    start, arguments = split_start(args)
    config = parse_fit([*arguments, *start])
    nodes = nodes or config.trainer.num_nodes
    gpus = gpus or count(config.trainer.devices)
    config.trainer.num_nodes, config.trainer.devices = nodes, gpus
    data = config.data
    times = accumulation_steps(data.global_batch_size, data.micro_batch_size, nodes * gpus, gpus)
    needed = sum(bytes_per_device(config.model.network, run_layout(config)).values()) / 1e9
    if needed > USABLE_FRACTION * gpu_memory:
        raise UserError(
            f"about {needed:.1f} GB on each of {nodes * gpus} GPUs do not fit {gpu_memory:g} GB, a tenth of which is "
            f"left free: use a smaller data.micro_batch_size, model.activation_checkpointing, more nodes, or a higher "
            f"stage of ZeRO (mm cost shows the parts)"
        )
    arguments += ["--trainer.num_nodes", str(nodes), "--trainer.devices", str(gpus)]
    parts = f"{nodes * gpus} GPUs x {data.micro_batch_size} x {times} accumulated"
    batch = f"A step: {data.global_batch_size} sequences = {parts}."
    return Launch(
        nodes, gpus, config.run, arguments, start, batch, f"Each GPU: about {needed:.1f} GB of {gpu_memory:g}."
    )


def split_start(args: list[str]) -> tuple[list[str], list[str]]:
    """Split the arguments of `mm fit` into `--ckpt_path` and `--resume`, and the others."""
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
        UserError: it is auto.
    """
    number = count_devices(devices)
    if number is None:
        raise UserError("trainer.devices is left to the machine: give --gpus, the GPUs of each node")
    return number


def submit(launch: Launch, script: str) -> str:
    """Submit the script to sbatch; return a line with the job and its log.

    Raises:
        UserError: there is no sbatch, or it fails.
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
