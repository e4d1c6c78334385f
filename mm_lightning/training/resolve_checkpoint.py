"""Resolve the checkpoint that a training command starts from."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from jsonargparse import Namespace
from lightning.pytorch.strategies import DeepSpeedStrategy, Strategy

from mm_lightning.checkpoint import find_checkpoint, list_checkpoints, step_of
from mm_lightning.checkpoint.discovery import remove_leftovers, run_folder_of
from mm_lightning.checkpoint.integrity import DEEPSPEED_TAG
from mm_lightning.checkpoint.run_folder import RunFolder
from mm_lightning.checkpoint.weights import is_universal, read_metadata
from mm_lightning.console import is_first_process, say
from mm_lightning.errors import UserError


def resolve_checkpoint(command: str, config: Namespace, known: Path | None = None) -> Path | None:
    """Return the checkpoint that a config starts from; None for new weights.

    In a config that fine-tunes, the checkpoint of --ckpt_path becomes `model.initial_weights`.

    Args:
        command: fit, validate, test or predict.
        config: config of the command, changed in place.
        known: the checkpoint, if it was already resolved to read its config.

    Raises:
        UserError: there is none, two are named, or it is at the run's last step.
    """
    named = config.get("ckpt_path")
    if command != "fit":
        return known or find_checkpoint(named or config.run)
    if not config.resume:
        if named and config.model.initial_weights:  # fine-tuning
            config.model.initial_weights, config.ckpt_path = str(find_checkpoint(named)), None
            return None
        return find_checkpoint(named) if named else None
    if named:
        raise UserError("--resume and --ckpt_path both name a checkpoint: give one of them")
    # rank 0 verifies checksums, and its choice is what all ranks load
    first = is_first_process()
    path = known or find_checkpoint(config.run if config.resume is True else str(config.resume), checksums=first)
    if not first:
        return path
    if step_of(path) >= config.trainer.max_steps > 0:
        raise UserError(
            f"nothing to resume: {path} is at step {step_of(path)} and trainer.max_steps is "
            f"{config.trainer.max_steps}; raise it to train on"
        )
    newest = list_checkpoints(run_folder_of(path))[:1]
    if newest and step_of(newest[0]) > step_of(path):
        say(
            f"WARNING: {newest[0]} is newer than {path} and stays the newest of its run until this run passes it: "
            f"--ckpt_path {path} continues in a new folder"
        )
    return path


def folder_to_continue(command: str, config: Namespace, checkpoint: Path | None) -> Path | None:
    """Return the run folder of a checkpoint that is resumed or evaluated; None for a fresh run.

    Raises:
        UserError: a checkpoint outside of run folders is to be resumed.
    """
    if checkpoint is None or (command == "fit" and not config.resume):
        return None
    folder = run_folder_of(checkpoint)
    if command == "fit" and folder == checkpoint.parent and not (folder / "config.yaml").is_file():
        raise UserError(
            f"{checkpoint} is not in a run folder, which --resume needs: --ckpt_path continues it in a new run folder"
        )
    return folder


def claim_run_folder(folder: RunFolder) -> None:
    """Lock a run's folder for this process, and remove what interrupted saves have left beside its checkpoints.

    Raises:
        UserError: another process trains in it.
    """
    folder.acquire()
    for partial in remove_leftovers(folder.path / "checkpoints"):
        say(f"removed {partial}: saving it was cut off")


def check_resumable(checkpoint: Path, strategy: Strategy) -> None:
    """Check that a run with this strategy can resume a checkpoint.

    Raises:
        UserError: it was saved by another strategy or an incompatible ZeRO stage, or holds weights only.
    """
    sharded, folder = isinstance(strategy, DeepSpeedStrategy), run_folder_of(checkpoint)
    weights = f"start a new run with its weights: --model.initial_weights {quote(str(checkpoint))}"
    if checkpoint.is_dir() and not sharded:
        # not in checkpoints/, where a resume with DeepSpeed would take it for the newest
        file = folder / f"plain-step={step_of(checkpoint)}.ckpt"
        option = "--resume" if (folder / "config.yaml").is_file() else "--ckpt_path"
        raise UserError(
            f"checkpoint {checkpoint} (DeepSpeed) cannot be resumed by a run with another strategy: keep the "
            f"strategy, or make a plain checkpoint of it and resume that: mm checkpoint convert "
            f"{quote(str(checkpoint))} --output {quote(str(file))}, then {option} {quote(str(file))}"
        )
    if sharded and not checkpoint.is_dir():
        raise UserError(
            f"checkpoint {checkpoint} (one file) cannot be resumed by a run with DeepSpeed: keep the strategy, "
            f"or {weights}"
        )
    if isinstance(strategy, DeepSpeedStrategy) and not is_universal(checkpoint):
        partitioned = any((checkpoint / DEEPSPEED_TAG).glob("*zero_pp_rank_*_model_states.pt"))
        if partitioned != strategy.zero_stage_3:
            was, now = ("3", "1 or 2") if partitioned else ("1 or 2", "3")
            raise UserError(
                f"checkpoint {checkpoint} was saved by stage {was} of ZeRO, and DeepSpeed does not resume it in stage "
                f"{now}: keep the stage, or {weights}"
            )
    weights_only = checkpoint.suffix == ".safetensors"
    if weights_only or "imported" in read_metadata(checkpoint):
        what = "holds weights only, with" if weights_only else "was imported and has"
        raise UserError(f"{checkpoint} {what} no optimizer state to resume: {weights}")
