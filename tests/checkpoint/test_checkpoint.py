"""Finding and writing checkpoints: whole ones only."""

import dataclasses
import json
import os
import shutil

import pytest
import torch

from mm_lightning.checkpoint import (
    COMMIT_FILE,
    METADATA_KEY,
    check_architecture,
    commit_folder,
    find_checkpoint,
    network_metadata,
)
from mm_lightning.checkpoint.trainer_io import AtomicCheckpointIO
from mm_lightning.errors import UserError
from mm_lightning.networks import MemoryMosaicConfig, TransformerConfig

SMALL = {"vocab_size": 8, "layers": 1, "dim": 4, "heads": 1, "persistent_dim": 4}


def write(path, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    AtomicCheckpointIO().save_checkpoint({"x": torch.ones(3), **more}, path)
    return path


def test_the_newest_whole_one(tmp_path, monkeypatch):
    write(tmp_path / "0" / "checkpoints" / "step=90.ckpt")
    write(tmp_path / "1" / "checkpoints" / "step=9.ckpt")
    newest = write(tmp_path / "1" / "checkpoints" / "step=10.ckpt")
    (tmp_path / "1" / "checkpoints" / "step=11.ckpt.partial").write_text("half")
    broken = tmp_path / "1" / "checkpoints" / "step=12.ckpt"
    broken.mkdir()  # of DeepSpeed, without its commit
    (tmp_path / "2" / "checkpoints").mkdir(parents=True)
    assert find_checkpoint(tmp_path) == newest
    assert find_checkpoint(tmp_path / "1") == newest
    assert find_checkpoint(newest) == newest
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_checkpoint("~/1") == newest
    for wrong in (tmp_path / "2", broken, tmp_path / "none"):
        with pytest.raises(UserError):
            find_checkpoint(wrong)


def test_a_folder_is_whole_when_committed_and_complete(tmp_path):
    partial, target = tmp_path / "step=5.ckpt.partial", tmp_path / "step=5.ckpt"
    for _ in range(2):  # the second replaces the first
        partial.mkdir()
        (partial / "shard").write_bytes(b"12345")
        commit_folder(partial, target, 2, {"network": {}})
        assert find_checkpoint(target) == target
        assert os.listdir(tmp_path) == ["step=5.ckpt"]
    assert json.loads((target / COMMIT_FILE).read_text())["files"] == {"shard": {"bytes": 5, "crc32": "cbf53a1c"}}
    (target / "shard").write_bytes(b"123")
    with pytest.raises(UserError, match="not a valid checkpoint"):
        find_checkpoint(target)


def test_no_space(tmp_path, monkeypatch):
    path = write(tmp_path / "step=1.ckpt", kept=1)
    full = shutil._ntuple_diskusage(100, 98, 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(UserError, match="no space left to write"):
        write(tmp_path / "step=1.ckpt")
    monkeypatch.undo()

    def fail(checkpoint, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(UserError, match="free some space"):
        write(tmp_path / "step=1.ckpt")
    assert torch.load(path)["kept"] == 1
    assert os.listdir(tmp_path) == ["step=1.ckpt"]


def test_architectures_are_compared(tmp_path):
    config = MemoryMosaicConfig(**SMALL)
    path = write(tmp_path / "step=1.ckpt", **{METADATA_KEY: network_metadata(config, None, None)})
    check_architecture(path, config)
    check_architecture(path, MemoryMosaicConfig(**SMALL, long_term_delay=(1, 2), inference_delay=1))
    with pytest.raises(UserError, match="layers 1 instead of 2"):
        check_architecture(path, MemoryMosaicConfig(**{**SMALL, "layers": 2}))
    with pytest.raises(UserError, match="holds a MemoryMosaic but the config asks for a Transformer"):
        check_architecture(path, TransformerConfig(**SMALL))
    with pytest.raises(UserError, match="not written by mm"):
        check_architecture(write(tmp_path / "step=2.ckpt"), config)


def test_a_field_younger_than_the_checkpoint_has_its_default(tmp_path):
    config = MemoryMosaicConfig(**SMALL)
    about = network_metadata(config, None, None)
    del about["network"]["fields"]["look_ahead"]
    path = write(tmp_path / "step=1.ckpt", **{METADATA_KEY: about})
    check_architecture(path, config)
    with pytest.raises(UserError, match="look_ahead True instead of False"):
        check_architecture(path, dataclasses.replace(config, look_ahead=False))
