"""`mm checkpoint list | verify | consolidate | convert | compare`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import torch

from mm_lightning.checkpoint.discovery import find_checkpoint, is_checkpoint, list_checkpoints, no_checkpoint, step_of
from mm_lightning.checkpoint.integrity import PARTIAL_SUFFIX, find_damage
from mm_lightning.checkpoint.lazy_weights import Weights
from mm_lightning.checkpoint.network_loading import network_config
from mm_lightning.checkpoint.run_folder import numbered_runs
from mm_lightning.checkpoint.safetensors_file import find_safetensors_damage, is_memory_file, write_safetensors
from mm_lightning.checkpoint.universal import to_plain, to_universal
from mm_lightning.checkpoint.weights import is_universal, load_error, open_weights, read_metadata
from mm_lightning.console import print_table, say
from mm_lightning.errors import UserError
from mm_lightning.outputs import CHECKPOINT, SAFETENSORS, FolderKind, check_folder, check_output, staged
from mm_lightning.ranges import NonNegative, Place, PlainPlace
from mm_lightning.side_files import read_object
from mm_lightning.terminal import display


def checkpoint_paths(path: str) -> list[Path]:
    """Return the checkpoints that a path names, oldest first: itself, or all of a run folder or of the runs in it."""
    place = Path(path)
    if not place.exists():
        raise no_checkpoint(place)
    if is_checkpoint(place):
        return [place]
    folders = [place, *numbered_runs(place)]
    checkpoints = [p for folder in folders for p in reversed(list_checkpoints(folder))]
    checkpoints += [p for folder in folders for p in sorted((folder / "checkpoints").glob(f"*{PARTIAL_SUFFIX}"))]
    if not checkpoints:
        raise UserError(f"{place} holds no checkpoints: name a run folder, as in runs/mine/0")
    return checkpoints


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def format_age(seconds: float) -> str:
    """Return a duration in its largest unit, such as 3 h."""
    for name, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {name}"
    return f"{seconds:.0f} s"


def list_command(run: Place, checksums: bool = False) -> None:
    """List checkpoints with their step, size, age and state.

    Args:
        run: a run folder, a root of numbered run folders, or a checkpoint.
        checksums: verify all checksums, which reads everything; otherwise only check that everything is there.
    """
    rows, paths = [], checkpoint_paths(run)
    for path in paths:
        problem = find_damage(path, checksums)
        state = "partial" if path.name.endswith(PARTIAL_SUFFIX) else f"damaged: {problem}" if problem else "complete"
        seconds = max(0.0, time.time() - path.stat().st_mtime)  # clocks are set back, or differ
        kind = "folder of shards" if path.is_dir() else "file"
        rows.append((str(step_of(path)), str(path), state, kind, f"{size_of(path) / 1e6:,.1f} MB", format_age(seconds)))
    print_table(("step", "checkpoint", "state", "kind", "size", "age"), rows, labels=4)
    for folder in sorted({path.parent for path in paths}):
        if (best := read_object(folder / "best.json")).keys() >= {"step", "metric", "value"}:
            say(f"best of {folder}: step {best['step']}, {best['metric']} {best['value']:.6g}")


def verify_command(run: Place) -> None:
    """Verify all checksums of checkpoints and load them; exit with an error if one cannot be used.

    Args:
        run: a run folder, a root of numbered run folders, a checkpoint, or a memory file of `mm remember`.
    """
    bad = []
    for path in checkpoint_paths(run):
        problem = find_safetensors_damage(path) if is_memory_file(path) else find_damage(path) or load_error(path)
        say(f"{path} {problem or 'is valid'}")
        bad += [path] if problem else []
    if bad:
        raise UserError(f"{len(bad)} of the checkpoints in {run} cannot be used: --resume passes over them")


def consolidate_command(
    checkpoint: Place,
    output: PlainPlace,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    overwrite: bool = False,
) -> None:
    """Write the weights of a checkpoint as one safetensors file.

    Shards are merged tensor by tensor: memory holds one tensor at a time. Tied weights are stored once.
    The file describes its network and tokenizer, and every command but a resume takes it as a checkpoint.

    Args:
        checkpoint: a checkpoint, or a run folder (its newest valid checkpoint is taken).
        output: the .safetensors file to write.
        dtype: the type of its weights.
        overwrite: replace an existing output.
    """

    if Path(output).suffix != ".safetensors":
        raise UserError(f"--output {output} must end in .safetensors")
    target = check_output(output, overwrite, [checkpoint], SAFETENSORS)
    path = find_checkpoint(checkpoint)
    about = read_metadata(path)
    weights = open_weights(path)
    with staged(target) as part:
        write_safetensors(weights, part, about, tied_names(about, weights), getattr(torch, dtype))
    say(f"{target}: {len(weights)} tensors in {dtype}, {size_of(target.place):,} bytes, from {path}")


def tied_names(about: dict[str, Any], weights: Weights) -> dict[str, str]:
    """Return the names of tied weights, each with the name under which its tensor is stored."""

    with torch.device("meta"):
        network = network_config(about).build()
    first: dict[int, str] = {}
    stored = {name: first.setdefault(id(p), name) for name, p in network.named_parameters(remove_duplicate=False)}
    return {name: source for name, source in stored.items() if name != source and {name, source} <= weights.keys()}


UNIVERSAL = FolderKind(
    "the universal form of a checkpoint",
    "checkpoint/zero/optimizer_state.pt",
    ("commit.json", "latest", "checkpoint/*"),
)
"""The folders that `mm checkpoint convert` writes."""


def convert_command(checkpoint: Place, output: Place, overwrite: bool = False) -> None:
    """Convert a DeepSpeed checkpoint to its universal form, and either of them to a plain checkpoint.

    A run with DeepSpeed resumes the universal form with any number of processes. A run without DeepSpeed (one process
    or DDP) resumes the plain file, which holds the weights in float32, the optimizer state and the progress. It takes
    12 bytes a parameter on disk and next to no memory; if the universal form has to be made first, temporarily three
    times as much on disk, and the shard of one process in memory.

    Args:
        checkpoint: a DeepSpeed checkpoint, its universal form, or a run folder (its newest valid checkpoint is taken).
        output: the folder to write the universal form to, as in runs/mine/0/step=200.universal; or the plain file,
            whose name ends in .ckpt, as in runs/mine/0/step=200.ckpt.
        overwrite: replace an existing output.
    """
    path, target = find_checkpoint(checkpoint), Path(output)
    if not path.is_dir():
        raise UserError(f"{path} is a plain checkpoint, which any number of devices can resume as it is")
    plain = target.suffix == ".ckpt"
    if not plain and is_universal(path):
        raise UserError(
            f"{path} is in the universal form already, from which mm fit goes on with DeepSpeed and any number of "
            f"processes; for a plain checkpoint, --output {output} must end in .ckpt"
        )
    if target.suffix in (".safetensors", ".pt"):
        raise UserError(f"--output {output} must be a folder or end in .ckpt; mm checkpoint consolidate writes weights")
    if plain:
        place, convert = check_output(output, overwrite, [path], CHECKPOINT), to_plain
    else:
        place, convert = check_folder(output, UNIVERSAL, overwrite, [path]), to_universal
    with staged(place) as part:
        convert(path, part)
    say(f"{output}: {size_of(place.place):,} bytes, from {path}")


def compare_command(checkpoints: list[Place], tolerance: NonNegative = 0.0) -> None:
    """Compare the weights of two checkpoints: which tensors differ, and by how much.

    Exits with an error if one differs by more than the tolerance.

    Args:
        checkpoints: two of them; of a run folder its newest valid checkpoint is taken.
        tolerance: the largest absolute difference that does not count.
    """
    if len(checkpoints) != 2:
        raise UserError(f"mm checkpoint compare takes two checkpoints, {len(checkpoints)} are named")
    paths = [find_checkpoint(name) for name in checkpoints]
    one, two = (open_weights(path) for path in paths)
    missing = [f"{name} is in {paths[name not in one]} only" for name in sorted(one.keys() ^ two.keys())]
    lines = [tensor_difference(name, one, two, tolerance) for name in one if name in two]
    different = [*missing, *filter(None, lines)]
    display("\n".join(different or [f"{len(one)} tensors are the same"]))
    if different:
        raise UserError(f"{len(different)} of {len(one.keys() | two.keys())} tensors differ")


def tensor_difference(name: str, one: Weights, two: Weights, tolerance: float) -> str | None:
    """Return how a tensor of two checkpoints differs; None if it does not."""
    shapes = [tuple(weights.stored[name].shape) for weights in (one, two)]
    if shapes[0] != shapes[1]:
        return f"{name} has the shape {shapes[0]} and {shapes[1]}"
    a, b = one[name].double(), two[name].double()
    apart = (a - b).abs()
    apart = apart.where(~apart.isnan(), float("inf"))
    if a.equal(b) or apart.max() <= tolerance:
        return None
    differences = f"largest difference {apart.max():.3g}, mean {apart.mean():.3g}"
    return f"{name} {shapes[0]}: {differences}, largest value {a.abs().max():.3g}"
