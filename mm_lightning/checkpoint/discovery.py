"""Find the checkpoints of a run, above all the newest valid one."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from shlex import quote

from mm_lightning.checkpoint.checksums import PARTIAL_SUFFIX
from mm_lightning.checkpoint.integrity import COMMIT_FILE, SAFETENSORS_SUFFIX, find_damage, remove_partial
from mm_lightning.checkpoint.run_folder import numbered_runs
from mm_lightning.checkpoint.weights import load_error
from mm_lightning.console import say
from mm_lightning.errors import UserError
from mm_lightning.options import nearest


def step_of(path: Path) -> int:
    """Return the step in a name like `step=200.ckpt`; -1 if there is none."""
    match = re.search(r"step=(\d+)", path.name)
    return int(match[1]) if match else -1


def is_run_checkpoint(path: Path) -> bool:
    """Return whether a name is one that a run gives its checkpoints: exactly `step=200.ckpt`."""
    return re.fullmatch(r"step=(0|[1-9][0-9]*)\.ckpt", path.name) is not None


def is_checkpoint(path: Path) -> bool:
    """Return whether a path is that of a checkpoint, valid or not, rather than of a run folder."""
    return path.is_file() or path.suffix == ".ckpt" or (path / COMMIT_FILE).is_file()


def checkpoint_path(run_folder: Path, step: int) -> Path:
    """Return the path of a step's checkpoint, plain file or DeepSpeed's folder."""
    return run_folder / "checkpoints" / f"step={step}.ckpt"


def list_checkpoints(run_folder: Path) -> list[Path]:
    """Return the checkpoints of one run folder, valid or not, newest first.

    Those that the run has not saved itself, such as a conversion, come last. Broken links are left out.
    """
    checkpoints = []
    for path in (run_folder / "checkpoints").glob("*.ckpt"):
        with contextlib.suppress(FileNotFoundError):
            checkpoints.append((is_run_checkpoint(path), step_of(path), path.stat().st_mtime, path))
    return [path for *_, path in sorted(checkpoints, reverse=True)]


def run_folder_of(checkpoint: Path) -> Path:
    """Return the run folder that a checkpoint lies in."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def no_checkpoint(path: Path) -> UserError:
    """Return the error for a path at which nothing is, with the name beside it that was probably meant."""
    beside: list[str] = []
    with contextlib.suppress(OSError):  # a folder that is not there, or cannot be read
        beside = os.listdir(path.parent)
    near = nearest(path.name, beside, 0.6)
    hint = f"did you mean {path.parent / near}?" if near else "name a run folder, a .ckpt or a .safetensors file"
    return UserError(f"there is no checkpoint or run folder {path}: {hint}")


def _holds_a_run(folder: Path) -> bool:
    try:
        return any(map(list_checkpoints, numbered_runs(folder)))
    except OSError:  # it cannot be read
        return False


def find_checkpoint(run_or_file: str | Path, checksums: bool = True) -> Path:
    """Return the checkpoint that a path names: itself, or the newest valid one of a run folder.

    Newer checkpoints that are damaged are reported on stderr.

    Args:
        run_or_file: a checkpoint (file, or DeepSpeed folder), a run folder (`runs/quickstart/0`), or a root of
            numbered run folders (`runs/quickstart`: the newest run that has a checkpoint).
        checksums: verify the checksums and load the checkpoint; otherwise only check that everything is there.

    Raises:
        UserError: there is no valid checkpoint.
    """
    path = Path(run_or_file).expanduser()
    if not path.exists():
        raise no_checkpoint(path)
    if is_checkpoint(path):
        known = path.is_dir() or path.suffix in (".ckpt", SAFETENSORS_SUFFIX, PARTIAL_SUFFIX)
        problem = _problem(path, checksums) if known else "is no .ckpt or .safetensors file"
        if problem:
            raise UserError(
                f"{path} is not a valid checkpoint: it {problem}. Name another, or its run folder to take the newest"
            )
        return path
    folders = [path, *reversed(numbered_runs(path))]
    for folder in folders:
        for candidate in list_checkpoints(folder):
            problem = _problem(candidate, checksums)
            if problem is None:
                return candidate
            say(f"passing over {candidate}: it {problem}", stderr=True)
    if (path / "config.json").is_file():
        raise UserError(
            f"{path} is a folder of transformers: make a checkpoint of it with mm import --source {quote(str(path))} "
            f"--output RUN (and export it again, for newer versions of transformers, with mm export --checkpoint RUN "
            f"--output FOLDER)"
        )
    begun = next((folder for folder in folders if (folder / "config.yaml").is_file()), None)
    if begun is not None and not any(map(list_checkpoints, folders)):
        raise UserError(
            f"{begun} was begun and has no checkpoint yet: if it is training, wait for the first (Checkpoints, "
            f"every_n_steps); if it was ended, begin anew: mm fit --config {quote(str(begun / 'config.yaml'))}"
        )
    below = [str(folder) for folder in sorted(path.iterdir()) if _holds_a_run(folder)]
    hint = f"name a run in it, {' or '.join(below[:3])}" if below else "train first (mm fit), or name a checkpoint file"
    raise UserError(f"{path} holds no valid checkpoint: {hint}")


def _problem(path: Path, checksums: bool) -> str | None:
    """Return what is wrong with a checkpoint; with `checksums` it is loaded as well."""
    return find_damage(path, checksums) or (load_error(path) if checksums else None)


def remove_leftovers(folder: Path) -> list[Path]:
    """Delete the leftovers of interrupted saves, deletions and conversions of a run, and return their paths.

    Only names that a run itself writes are deleted.
    """
    name = re.compile(r"step=\d+\.ckpt(\.old|\.universal|\.partial)*" + re.escape(PARTIAL_SUFFIX))
    partials = sorted(path for path in folder.glob(f"*{PARTIAL_SUFFIX}") if name.fullmatch(path.name))
    for partial in partials:
        remove_partial(partial)
    return partials
