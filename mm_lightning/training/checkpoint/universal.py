"""DeepSpeed's universal form of a checkpoint, which any number of processes can go on from."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from argparse import Namespace
from pathlib import Path

from mm_lightning.errors import UserError
from mm_lightning.training.checkpoint.weights import only_weights, read_about
from mm_lightning.training.checkpoint.whole import PARTIAL, TAG, commit_folder, discard, read_commit
from mm_lightning.training.checkpoint.writing import cannot_write


def to_universal(source: Path, target: Path, workers: int = 1) -> None:
    """Converts a DeepSpeed checkpoint; the target appears when it is complete, with checksums.

    Args:
        source: the checkpoint.
        target: the folder to write. Its subfolder `checkpoint` is what DeepSpeed reads.
        workers: processes that take shards apart.

    Raises:
        UserError: it cannot be read or written.
    """
    talk = io.StringIO()  # progress bars, and prints
    partial = target.with_name(target.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with only_weights(source), contextlib.redirect_stdout(talk), contextlib.redirect_stderr(talk):
            from deepspeed.checkpoint.ds_to_universal import main

            partial.mkdir(parents=True)
            main(
                Namespace(
                    input_folder=str((source / TAG).absolute()),
                    output_folder=str((partial / TAG).absolute()),
                    num_extract_workers=workers,
                    num_merge_workers=workers,
                    keep_temp_folder=False,
                    strict=True,
                    # of stages 1 and 2: what DeepSpeed's own training scripts add when they save
                    inject_missing_state=True,
                )
            )
        (partial / "latest").write_text(TAG, encoding="utf-8")
        commit_folder(partial, target, read_commit(source)["world_size"], read_about(source))
    except (OSError, RuntimeError, UserError) as error:
        if os.path.isdir(partial):
            discard(partial)
        raise cannot_write(target, error) from error
