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

from mm_lightning.checkpoint.discovery import checkpoint_path as checkpoint_path
from mm_lightning.checkpoint.discovery import find_checkpoint as find_checkpoint
from mm_lightning.checkpoint.discovery import list_checkpoints as list_checkpoints
from mm_lightning.checkpoint.discovery import step_of as step_of
from mm_lightning.checkpoint.integrity import COMMIT_FILE as COMMIT_FILE
from mm_lightning.checkpoint.integrity import METADATA_KEY as METADATA_KEY
from mm_lightning.checkpoint.integrity import PARTIAL_SUFFIX as PARTIAL_SUFFIX
from mm_lightning.checkpoint.integrity import commit_folder as commit_folder
from mm_lightning.checkpoint.integrity import find_damage as find_damage
from mm_lightning.checkpoint.integrity import fingerprint as fingerprint
from mm_lightning.checkpoint.integrity import is_complete as is_complete
from mm_lightning.checkpoint.network_loading import check_architecture as check_architecture
from mm_lightning.checkpoint.network_loading import load_network as load_network
from mm_lightning.checkpoint.network_loading import load_weights as load_weights
from mm_lightning.checkpoint.network_loading import network_config as network_config
from mm_lightning.checkpoint.network_loading import network_metadata as network_metadata
from mm_lightning.checkpoint.network_loading import restore_tokenizer as restore_tokenizer
from mm_lightning.checkpoint.network_loading import tokenizer_metadata as tokenizer_metadata
from mm_lightning.checkpoint.weights import open_weights as open_weights
from mm_lightning.checkpoint.weights import read_metadata as read_metadata
from mm_lightning.checkpoint.weights import set_deepspeed_accelerator as set_deepspeed_accelerator
from mm_lightning.checkpoint.weights import weights_only_loading as weights_only_loading
