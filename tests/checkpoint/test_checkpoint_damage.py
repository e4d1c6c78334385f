"""Damaged checkpoints are recognised and named, and what could run code is refused."""

import hashlib
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from runs import metrics
from safetensors.torch import save_file

from mm_lightning.checkpoint import (
    COMMIT_FILE,
    PARTIAL_SUFFIX,
    commit_folder,
    find_checkpoint,
    integrity,
    open_weights,
    read_metadata,
)
from mm_lightning.checkpoint.discovery import remove_leftovers
from mm_lightning.checkpoint.safetensors_file import write_safetensors
from mm_lightning.checkpoint.trainer_io import AtomicCheckpointIO
from mm_lightning.checkpoint.weights import Stored, Weights, load_error
from mm_lightning.cli import main
from mm_lightning.errors import UserError


def damage(path: Path, checksums: bool = True) -> str | None:
    """Read again each time: clocks of file systems are too coarse for how fast these tests change files."""
    integrity._damage.cache_clear()
    return integrity.find_damage(path, checksums)


def is_whole(path: Path) -> bool:
    return damage(path, checksums=False) is None


def plain(path: Path, **more) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    AtomicCheckpointIO().save_checkpoint({"x": torch.arange(5.0), "step": 3, **more}, path)
    return path


def folder(path: Path) -> Path:
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    (partial / "checkpoint").mkdir(parents=True)
    for rank in range(2):
        torch.save({"rank": rank, "x": torch.ones(3)}, partial / "checkpoint" / f"rank_{rank}.pt")
    (partial / "latest").write_text("checkpoint")
    commit_folder(partial, path, 2, {"network": {"class": "MemoryMosaicConfig", "fields": {"layers": 2}}})
    return path


def test_a_flipped_bit_of_a_file_is_found_wherever_it_is(tmp_path):
    path = plain(tmp_path / "step=3.ckpt")
    assert damage(path) is None
    good = path.read_bytes()
    for place in range(0, len(good), 2):
        path.write_bytes(good[:place] + bytes([good[place] ^ (1 << place % 8)]) + good[place + 1 :])
        assert damage(path) is not None, place
    path.write_bytes(good)
    assert damage(path) is None


def test_every_length_but_the_right_one_is_found_without_reading_all_of_it(tmp_path):
    path = plain(tmp_path / "step=3.ckpt")
    good = path.read_bytes()
    for length in range(0, len(good), 7):
        path.write_bytes(good[:length])
        assert not is_whole(path), length
        assert damage(path) is not None
    assert "step=3.ckpt is not a valid checkpoint: it is truncated" in str(fails(find_checkpoint, path))


def fails(function, *args) -> UserError:
    with pytest.raises(UserError) as caught:
        function(*args)
    return caught.value


def test_the_checksum_travels_with_the_file_and_disturbs_nobody(tmp_path):
    copy = Path(shutil.copy(plain(tmp_path / "step=3.ckpt"), tmp_path / "elsewhere.ckpt"))
    assert damage(copy) is None
    assert torch.load(copy, weights_only=True, mmap=True)["x"].tolist() == [0, 1, 2, 3, 4]
    os.truncate(copy, copy.stat().st_size - 1)
    assert damage(copy) is not None


def test_a_file_without_a_checksum_has_those_of_its_tensors(tmp_path):
    path = tmp_path / "old.ckpt"
    torch.save({"x": torch.arange(100.0)}, path)
    assert damage(path) is None
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(100.0).numpy().tobytes()) + 17] ^= 4
    path.write_bytes(content)
    assert "in its record" in damage(path)


def test_every_flipped_bit_of_a_folder_is_found_and_its_file_named(tmp_path):
    path = folder(tmp_path / "step=5.ckpt")
    assert damage(path) is None
    for name in ("checkpoint/rank_1.pt", "latest"):
        content = bytearray((path / name).read_bytes())
        content[len(content) // 2] ^= 2
        (path / name).write_bytes(content)
        assert f"the checksum of {name} is not" in damage(path)
        assert is_whole(path)  # at a glance
        content[len(content) // 2] ^= 2
        (path / name).write_bytes(content)
        assert damage(path) is None
    commit = (path / COMMIT_FILE).read_bytes()
    for place, byte in enumerate(commit):
        if not chr(byte).isspace():
            (path / COMMIT_FILE).write_bytes(commit[:place] + bytes([byte ^ 1]) + commit[place + 1 :])
            assert not is_whole(path), place


def test_a_missing_or_short_shard_is_named(tmp_path):
    path = folder(tmp_path / "step=5.ckpt")
    os.truncate(path / "checkpoint" / "rank_0.pt", 10)
    assert "checkpoint/rank_0.pt has 10 bytes instead of" in damage(path, checksums=False)
    (path / "checkpoint" / "rank_0.pt").unlink()
    assert "checkpoint/rank_0.pt is missing" in damage(path, checksums=False)


def test_leftovers_are_never_chosen_and_go_away(tmp_path, capsys):
    place = tmp_path / "0" / "checkpoints"
    good = plain(place / "step=3.ckpt")
    plain(place / "step=6.ckpt").rename(place / f"step=6.ckpt{PARTIAL_SUFFIX}")
    (place / f"step=9.ckpt.old{PARTIAL_SUFFIX}").mkdir()
    assert find_checkpoint(tmp_path) == good
    assert "is partial" in str(fails(find_checkpoint, place / f"step=6.ckpt{PARTIAL_SUFFIX}"))
    assert [p.name for p in remove_leftovers(place)] == ["step=6.ckpt.partial", "step=9.ckpt.old.partial"]
    assert os.listdir(place) == ["step=3.ckpt"]


def test_resume_passes_over_what_is_damaged(tiny, finished, tmp_path, capsys):
    run = finished
    before = metrics(run)
    newest = run / "checkpoints" / "step=6.ckpt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 64
    newest.write_bytes(content)
    (run / "checkpoints" / f"step=5.ckpt{PARTIAL_SUFFIX}").write_bytes(content[:100])
    capsys.readouterr()
    assert main(["fit", "--config", str(tiny), "--resume"]) == 0
    said = capsys.readouterr()
    assert f"passing over {newest}: it is damaged" in said.err
    assert "step=5.ckpt.partial: saving it was cut off" in said.out
    assert f"resuming {run / 'checkpoints' / 'step=3.ckpt'}" in said.out
    assert metrics(run) == before
    assert damage(newest) is None  # written again
    assert sorted(os.listdir(run / "checkpoints")) == ["step=3.ckpt", "step=6.ckpt"]


class Malicious:
    """What a pickle can do to whoever loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    evil = tmp_path / "evil"
    path = tmp_path / "step=1.ckpt"
    torch.save({"state_dict": Malicious(evil)}, path)
    assert damage(path) is None  # it is what somebody has written
    refused = (
        f"holds more than tensors and plain values, which could run code: it is refused ({os.mkdir.__module__}.mkdir)"
    )
    assert load_error(path) == refused
    assert "could run code: it is refused" in str(fails(find_checkpoint, path))
    for read in (read_metadata, open_weights, AtomicCheckpointIO().load_checkpoint):
        assert "could run code: it is refused" in str(fails(read, path))
    assert not evil.exists()
    pickle.loads(pickle.dumps(Malicious(evil)))
    assert evil.exists()  # so it would have been


def test_shards_that_would_run_code_are_refused(tmp_path):
    evil = tmp_path / "evil"
    partial = tmp_path / f"step=1.ckpt{PARTIAL_SUFFIX}"
    (partial / "checkpoint").mkdir(parents=True)
    torch.save({"param_shapes": Malicious(evil)}, partial / "checkpoint" / "mp_rank_00_model_states.pt")
    torch.save({}, partial / "checkpoint" / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    commit_folder(partial, tmp_path / "step=1.ckpt", 1, {})
    path = tmp_path / "step=1.ckpt"
    assert damage(path) is None
    assert load_error(path).startswith("cannot be loaded (checkpoint/mp_rank_00_model_states.pt holds more than")
    assert main(["checkpoint", "verify", str(path)]) == 2
    assert "could run code: it is refused" in str(fails(open_weights, path))
    assert not evil.exists()


def test_a_checkpoint_cannot_name_any_class(tmp_path):
    from mm_lightning.checkpoint import network_config

    assert "does not know" in str(fails(network_config, {"network": {"class": "base", "fields": {}}}))


def test_every_load_of_the_package_takes_weights_only():
    """torch.load takes weights only by default; nothing may ask for more."""
    root = Path(__file__).parents[2]
    calls = [
        (path, line)
        for place in ("mm_lightning", "callbacks")
        for path in (root / place).rglob("*.py")
        for line in path.read_text().splitlines()
        if "weights_only=False" in line and not line.lstrip().startswith(("#", "DeepSpeed itself"))
    ]
    assert calls == []


def sampled(path: Path) -> str:
    """The fingerprint of earlier versions, which read parts of every large file."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(path)} {len(content)}".encode())
        starts = (
            [n * (len(content) - (1 << 16)) // 255 for n in range(256)] if len(content) > integrity._SMALL_FILE else []
        )
        digest.update(b"".join(content[s : s + (1 << 16)] for s in starts) or content)
    return digest.hexdigest()[:16]


@pytest.mark.parametrize("kind", ["plain", "folder", "safetensors", "foreign.ckpt", "foreign.safetensors"])
def test_a_fingerprint_sees_every_byte_of_a_large_checkpoint(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(integrity, "_SMALL_FILE", 1 << 18)  # as if large
    path = tmp_path / f"large.{kind.removeprefix('foreign.')}"
    x = torch.zeros(6_000_000)  # between two of the parts lie some 25 kB

    def write() -> str:
        if path.is_dir():
            shutil.rmtree(path)
        if kind == "plain":
            plain(path, weights=x)
        elif kind == "foreign.ckpt":
            torch.save({"x": x}, path)
        elif kind == "folder":
            partial = path.with_name(path.name + PARTIAL_SUFFIX)
            (partial / "checkpoint").mkdir(parents=True)
            torch.save({"x": x}, partial / "checkpoint" / "rank_0.pt")
            commit_folder(partial, path, 1, {})
        elif kind == "safetensors":
            weights = Weights({"x": Stored(lambda: x, x.shape, x.dtype)})
            write_safetensors(weights, path, {"step": 1}, {})
        else:
            save_file({"x": x}, path)
        return integrity.fingerprint(path)

    before = write()
    if "foreign" not in kind:
        assert before == sampled(path)  # answers of earlier versions stay known
    assert write() == before
    x[20_000] = 1.0  # byte 80,000: after the first part of 65,536 and before the second, at about 94,000
    assert write() != before
    if "foreign" in kind:
        x[20_000] = 0.0
        assert write() == before
