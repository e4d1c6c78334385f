"""What cannot be read ends in one line that names the file and says what to do, whichever command was given it."""

import os
from pathlib import Path

import pytest
import torch

from mm_lightning.checkpoint import METADATA_KEY, network_metadata
from mm_lightning.checkpoint.trainer_io import AtomicCheckpointIO
from mm_lightning.cli import main
from mm_lightning.networks import MemoryMosaicConfig

SMALL = {"vocab_size": 258, "layers": 1, "dim": 4, "heads": 1, "persistent_dim": 6, "long_term_delay": (1, 1)}

COMMANDS = {
    "generate": lambda path, out: ["generate", "--checkpoint", path, "--prompt", "a", "--max_new_tokens", "2"],
    "export": lambda path, out: ["export", "--checkpoint", path, "--output", out],
    "evaluate": lambda path, out: ["evaluate", "--checkpoint", path, "--tasks", "loss_by_position", "--output", out],
}


def saved(path: Path, **more) -> Path:
    """A checkpoint without a tokenizer."""
    network = MemoryMosaicConfig(**SMALL, inference_delay=1).build()
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    about = {**network_metadata(network.config, None, 16), **more}
    AtomicCheckpointIO().save_checkpoint({"state_dict": state, METADATA_KEY: about}, path)
    return path


def complain(capsys, command: str, path: Path) -> str:
    """The one line that a command ends with."""
    capsys.readouterr()
    assert main(COMMANDS[command](str(path), str(path.parent / "output"))) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1, error
    return error[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_torn_file(tmp_path, capsys, command):
    path = saved(tmp_path / "step=5.ckpt")
    size = path.stat().st_size
    for length in (size - 1, size // 2, 0):
        os.truncate(path, length)
        line = complain(capsys, command, path)
        assert f"{path} is not a valid checkpoint: it is truncated or damaged" in line
        assert "Name another, or its run folder to take the newest" in line
    path.write_bytes(b"not a checkpoint at all" * 100)
    assert f"{path} is not a valid checkpoint" in complain(capsys, command, path)
    folder = tmp_path / "step=7.ckpt"
    folder.mkdir()
    assert f"{folder} is not a valid checkpoint: it has no commit.json" in complain(capsys, command, folder)
    torch.save({"somebody": "else's"}, path)
    assert f"{path} was not written by mm" in complain(capsys, command, path)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_network_of_a_newer_version(tmp_path, capsys, command):
    network = network_metadata(MemoryMosaicConfig(**SMALL), None, None)["network"]
    fields = {**network["fields"], "gyration": 3, "twist": "left"}
    path = saved(tmp_path / "step=5.ckpt", version="9.1", network={**network, "fields": fields})
    line = complain(capsys, command, path)
    assert f"{path}, written by mm-lightning 9.1, holds a MemoryMosaic with gyration, twist, which" in line
    assert "install the version it was written by" in line


def test_a_run_of_a_newer_version_is_not_resumed(tiny, finished, capsys):
    path = finished / "checkpoints" / "step=6.ckpt"
    content = torch.load(path, weights_only=True)
    content[METADATA_KEY]["network"]["fields"]["gyration"] = 3
    AtomicCheckpointIO().save_checkpoint(content, path)
    assert main(["fit", "--config", str(tiny), "--resume", "--trainer.max_steps", "9"]) == 2
    assert "holds a MemoryMosaic with gyration" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_without_a_tokenizer(tmp_path, capsys, command):
    line = complain(capsys, command, saved(tmp_path / "step=5.ckpt"))
    assert "has no tokenizer: it was trained without prepared data" in line
    line = complain(capsys, command, saved(tmp_path / "step=0.ckpt", imported="old.pt, a checkpoint of v1"))
    assert "has no tokenizer" in line
    assert "(old.pt, a checkpoint of v1): import it again with --tokenizer" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_without_a_checkpoint_yet(tmp_path, capsys, command):
    for run in ("0", "1"):
        (tmp_path / run / "checkpoints").mkdir(parents=True)
        (tmp_path / run / "config.yaml").write_text("run: runs/mine\n")
    line = complain(capsys, command, tmp_path)
    assert f"{tmp_path}/1 was begun and has no checkpoint yet" in line
    assert f"begin anew: mm fit --config {tmp_path}/1/config.yaml" in line
    saved(tmp_path / "0" / "checkpoints" / "step=5.ckpt").write_bytes(b"torn")
    assert main(COMMANDS[command](str(tmp_path), str(tmp_path / "output"))) == 2
    assert "holds no valid checkpoint" in capsys.readouterr().err
