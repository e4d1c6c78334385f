"""Checkpoints: written whole or not at all, verified, found, described and turned back into networks.

A plain checkpoint is one file, `step=200.ckpt`; DeepSpeed's is a folder of that name holding every rank's shard and a
`commit.json` written last. Both appear under their names only when they are complete: until then they are called
`....partial`. Both carry checksums, which are compared whenever one is loaded. Each describes its network under the
key `mm_lightning`:

    {"version": "0.1.0", "network": {"class": "MemoryMosaicConfig", "fields": {...}},
     "tokenizer": {"name": ..., "sha256": ..., "json": the text of tokenizer.json}, "context_length": 512,
     "data": {"fingerprint": ..., "context_length": 512, "global_batch_size": 4, "seed": 1}}

A file of it is read by `torch.load(path, weights_only=True)["mm_lightning"]`; in a folder it is in commit.json; in a
.safetensors file, which `mm checkpoint consolidate` writes, it is JSON text in the header.

    whole.py       what makes a checkpoint whole: checksums, commit.json, what is wrong with one
    writing.py     plain files; what is said when writing fails
    trainer_io.py  the same for Lightning's Trainer, at once or by a thread
    finding.py     the newest whole checkpoint of a run; leftovers of saves that were cut off
    weights.py     weights by name, one at a time, from each kind of checkpoint
    network.py     networks and tokenizers from checkpoints
    universal.py   DeepSpeed's universal form, and a plain file made of it
    safetensors_file.py  weights alone in one file
"""

from mm_lightning.checkpoint.discovery import (
    checkpoint_path,
    checkpoints_of,
    find_checkpoint,
    remove_leftovers,
    run_of,
    saved_by_run,
    step_of,
)
from mm_lightning.checkpoint.integrity import (
    COMMIT,
    KEY,
    PARTIAL,
    commit_folder,
    damage,
    fingerprint,
    is_whole,
    remove,
)
from mm_lightning.checkpoint.network import (
    check_architecture,
    describe_network,
    describe_tokenizer,
    load_network,
    load_weights,
    network_config,
    restore_tokenizer,
)
from mm_lightning.checkpoint.weights import (
    calm_deepspeed,
    only_weights,
    open_weights,
    read_about,
)
from mm_lightning.checkpoint.writing import agreed, cannot_write, check_space, write_synced

__all__ = [
    "COMMIT",
    "KEY",
    "PARTIAL",
    "agreed",
    "calm_deepspeed",
    "cannot_write",
    "check_architecture",
    "check_space",
    "checkpoint_path",
    "checkpoints_of",
    "commit_folder",
    "damage",
    "describe_network",
    "describe_tokenizer",
    "find_checkpoint",
    "fingerprint",
    "is_whole",
    "load_network",
    "load_weights",
    "network_config",
    "only_weights",
    "open_weights",
    "read_about",
    "remove",
    "remove_leftovers",
    "restore_tokenizer",
    "run_of",
    "saved_by_run",
    "step_of",
    "write_synced",
]
