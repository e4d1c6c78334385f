"""Checkpoints: atomic writing, verification, discovery, and loading of networks.

A plain checkpoint is one file, `step=200.ckpt`; DeepSpeed's is a folder of that name holding every rank's shard and a
`commit.json` written last. Both are named `....partial` until they are complete. Both carry checksums, which are
verified on loading. Each holds metadata under the key `mm_lightning`:

    {"version": "0.1.0", "network": {"class": "MemoryMosaicConfig", "fields": {...}},
     "tokenizer": {"name": ..., "sha256": ..., "json": the text of tokenizer.json}, "context_length": 512,
     "data": {"fingerprint": ..., "context_length": 512, "global_batch_size": 4, "seed": 1}}

A plain file returns it from `torch.load(path, weights_only=True)["mm_lightning"]`; a folder has it in commit.json; a
.safetensors file, as `mm checkpoint consolidate` writes it, has it as JSON text in the header.

    checksums.py         CRC-32 of files, names shared by all kinds
    integrity.py         verification: checksums, commit.json, find_damage
    writing.py           atomic writing of plain checkpoints, and its errors
    trainer_io.py        Lightning's CheckpointIO, synchronous or in a thread
    plain_values.py      conversion of state to tensors and plain values, which load without running code
    discovery.py         the newest valid checkpoint of a run; leftovers of interrupted saves
    weights.py           weights by name, read lazily (lazy_weights.py), from each kind of checkpoint
    network_loading.py   networks and tokenizers from checkpoints
    universal.py         DeepSpeed's universal checkpoint, and its conversion to a plain file
    safetensors_file.py  weights in one file; memory files have this format too
    run_folder.py        the folder of a run; run_lock.py lets one process train in it
    environment.py       versions, code state and hardware, as environment.json records them
    checkpoint_commands.py  `mm checkpoint`
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
