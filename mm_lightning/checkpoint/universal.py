"""DeepSpeed's universal checkpoint, which any number of processes can resume, and its conversion to a plain file."""

from __future__ import annotations

import contextlib
import io
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from mm_lightning.checkpoint.checksums import METADATA_KEY, PARTIAL_SUFFIX
from mm_lightning.checkpoint.integrity import DEEPSPEED_TAG, commit_folder, read_commit, remove_partial
from mm_lightning.checkpoint.network_loading import network_config
from mm_lightning.checkpoint.weights import (
    PREFIX,
    is_universal,
    read_buffers,
    read_metadata,
    read_states,
    read_universal,
    weights_only_loading,
)
from mm_lightning.checkpoint.writing import load, write, write_error
from mm_lightning.errors import UserError

PROGRESS_ENTRIES = (
    "epoch",
    "global_step",
    "pytorch-lightning_version",
    "loops",
    "callbacks",
    "lr_schedulers",
    METADATA_KEY,
)
"""Entries of a checkpoint of any strategy, besides weights and optimizer."""


def to_universal(source: Path, target: Path) -> None:
    """Convert a DeepSpeed checkpoint to its universal form, atomically and with checksums.

    Args:
        source: the checkpoint.
        target: the folder to write; DeepSpeed reads its subfolder `checkpoint`.

    Raises:
        UserError: it cannot be read or written.
    """
    optimizer = (read_metadata(source).get("recipe") or {}).get("model.optimizer", "adamw")
    if optimizer != "adamw":
        raise UserError(
            f"{source} was trained with model.optimizer {optimizer}, and only states of adamw are converted: go on "
            f"with as many processes in the same precision, or begin with its weights: --model.initial_weights"
        )
    output = io.StringIO()  # progress bars and prints
    partial = target.with_name(target.name + PARTIAL_SUFFIX)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with weights_only_loading(source), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            from deepspeed.checkpoint.ds_to_universal import main

            partial.mkdir(parents=True)
            main(
                Namespace(
                    input_folder=str((source / DEEPSPEED_TAG).absolute()),
                    output_folder=str((partial / DEEPSPEED_TAG).absolute()),
                    num_extract_workers=1,
                    num_merge_workers=1,
                    keep_temp_folder=False,
                    strict=True,
                    # stages 1 and 2: state that DeepSpeed's own training scripts add when saving
                    inject_missing_state=True,
                )
            )
        (partial / "latest").write_text(DEEPSPEED_TAG, encoding="utf-8")
        commit_folder(partial, target, read_commit(source)["world_size"], read_metadata(source))
    except (OSError, RuntimeError, UserError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise write_error(target, error) from error


def to_plain(source: Path, target: Path) -> None:
    """Convert to the plain checkpoint that a run without DeepSpeed would have written, with checksums.

    The source is memory-mapped: memory holds one tensor at a time.

    Args:
        source: a universal checkpoint, or a DeepSpeed checkpoint, whose universal form is written beside the target
            and removed again.
        target: the file to write.

    Raises:
        UserError: it cannot be read or written.
    """
    if is_universal(source):
        states = read_states(source)
        write({name: states[name] for name in PROGRESS_ENTRIES} | _weights_and_optimizer(source), target)
        return
    between = target.with_name(f"{target.name}.universal{PARTIAL_SUFFIX}")
    try:
        to_universal(source, between)
        to_plain(between, target)
    finally:
        remove_partial(between)


def _weights_and_optimizer(source: Path) -> dict[str, Any]:
    """Return the entries state_dict (float32 weights) and optimizer_states of a plain checkpoint."""
    if (read_metadata(source).get("recipe") or {}).get("model.parameter_groups"):
        raise UserError(
            f"{source} was trained with model.parameter_groups, whose states are not converted to a plain file: "
            f"--model.initial_weights begins with its weights"
        )
    with torch.device("meta"):
        network = network_config(read_metadata(source), source).build()
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = [[names[id(parameter)] for parameter in group] for group in network.weight_decay_groups()]
    numbered = [name for group in groups for name in group]  # in the order of the optimizer's indices
    kinds = {kind: read_universal(source, kind) for kind in ("fp32", "exp_avg", "exp_avg_sq")}
    if kinds["fp32"].keys() != set(numbered):
        raise UserError(f"{source} holds other parameters than the network it describes")
    tensors = {kind: {name: weights[name] for name in numbered} for kind, weights in kinds.items()}
    zero = source / DEEPSPEED_TAG / "zero"
    with weights_only_loading(source):
        shared = torch.load(zero / "optimizer_state.pt", map_location="cpu", mmap=True)

    def steps(name: str) -> torch.Tensor:
        file = zero / f"{PREFIX}{name}" / "step.pt"  # of stages 1 and 2; stage 3 counts once for a flat group
        if not file.is_file():
            return torch.tensor(float(next(iter(shared["optimizer_state_dict"]["state"].values()))["step"]))
        count: Any = load(file)
        return torch.tensor(float(count))

    moments = [{kind: tensors[kind][name] for kind in ("exp_avg", "exp_avg_sq")} for name in numbered]
    optimizer = {
        "state": {n: {"step": steps(name), **moments[n]} for n, name in enumerate(numbered)},
        "param_groups": [
            {**settings, "params": [numbered.index(name) for name in group]}
            for settings, group in zip(shared["param_groups"], groups, strict=True)
        ],
    }
    # tied weights have several names in a state_dict, and are stored once
    state = network.state_dict(keep_vars=True).items()
    stored = tensors["fp32"] | read_buffers(source)
    weights = {PREFIX + name: stored[names.get(id(tensor), name)] for name, tensor in state}
    return {"state_dict": weights, "optimizer_states": [optimizer]}
