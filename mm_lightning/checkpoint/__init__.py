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

    checksums.py         CRC-32 of files, names that all kinds share
    integrity.py         what makes a checkpoint whole: checksums, commit.json, what is wrong with one
    writing.py           plain files; what is said when writing fails
    trainer_io.py        the same for Lightning's Trainer, at once or by a thread
    discovery.py         the newest whole checkpoint of a run; leftovers of saves that were cut off
    weights.py           weights by name, one at a time (lazy_weights.py), from each kind of checkpoint
    network_loading.py   networks and tokenizers from checkpoints
    universal.py         DeepSpeed's universal form, and a plain file made of it
    safetensors_file.py  weights alone in one file; memory files are such files too
    run_folder.py, run_lock.py  the folder of a run, and the lock that lets one process train in it
"""

from mm_lightning.checkpoint.discovery import (
    checkpoint_path,
    find_checkpoint,
    is_run_checkpoint,
    list_checkpoints,
    remove_leftovers,
    run_folder_of,
    step_of,
)
from mm_lightning.checkpoint.integrity import (
    COMMIT_FILE,
    METADATA_KEY,
    PARTIAL_SUFFIX,
    commit_folder,
    find_damage,
    fingerprint,
    is_complete,
    remove_checkpoint,
)
from mm_lightning.checkpoint.network_loading import (
    check_architecture,
    load_network,
    load_weights,
    network_config,
    network_metadata,
    restore_tokenizer,
    tokenizer_metadata,
)
from mm_lightning.checkpoint.weights import (
    open_weights,
    read_metadata,
    set_deepspeed_accelerator,
    weights_only_loading,
)
from mm_lightning.checkpoint.writing import broadcast_path, check_space, save_synced, write_error

__all__ = [
    "COMMIT_FILE",
    "METADATA_KEY",
    "PARTIAL_SUFFIX",
    "broadcast_path",
    "check_architecture",
    "check_space",
    "checkpoint_path",
    "commit_folder",
    "find_checkpoint",
    "find_damage",
    "fingerprint",
    "is_complete",
    "is_run_checkpoint",
    "list_checkpoints",
    "load_network",
    "load_weights",
    "network_config",
    "network_metadata",
    "open_weights",
    "read_metadata",
    "remove_checkpoint",
    "remove_leftovers",
    "restore_tokenizer",
    "run_folder_of",
    "save_synced",
    "set_deepspeed_accelerator",
    "step_of",
    "tokenizer_metadata",
    "weights_only_loading",
    "write_error",
]
