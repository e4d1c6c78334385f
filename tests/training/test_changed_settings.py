"""A run that is resumed with other settings than those its data follow from is told so, once, in one line."""

import json
import shutil
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch

from mm_lightning.cli import main
from mm_lightning.data import Manifest
from mm_lightning.errors import UserError
from mm_lightning.training.checkpoint import KEY
from mm_lightning.training.resume import changes, decides_the_data


def test_what_has_changed_is_named(tiny, tmp_path, prepared, capsys):
    assert main(["fit", "--config", str(tiny)]) == 0
    checkpoint = tmp_path / "run" / "0" / "checkpoints" / "step=6.ckpt"
    about = torch.load(checkpoint, weights_only=True)[KEY]["data"]
    fingerprint = Manifest.load(prepared).fingerprint[:12]
    assert about == {"fingerprint": fingerprint, "context_length": 32, "global_batch_size": 8, "seed": 1}
    capsys.readouterr()

    other = shutil.copytree(prepared, tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "fingerprint": "another"}))
    resume = ["fit", "--config", str(tiny), "--resume"]
    changed = ["--seed_everything", "5", "--data.global_batch_size", "4", "--data.context_length", "16"]
    assert main([*resume, *changed, "--data.path", str(other), "--trainer.max_steps", "7"]) == 0
    warning = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    assert len(warning) == 1
    for told in (
        f"data.path of fingerprint another instead of {fingerprint}",
        "data.context_length 16 instead of 32",
        "data.global_batch_size 4 instead of 8",
        "seed_everything 5 instead of 1",
    ):
        assert told in warning[0]

    # step 7 was saved with the new settings
    assert main([*resume, *changed, "--data.path", str(other), "--trainer.max_steps", "8"]) == 0
    assert "WARNING" not in capsys.readouterr().out


def test_another_tokenizer_is_refused_and_old_checkpoints_are_taken():
    tokenizer = SimpleNamespace(name="bpe", sha256="b" * 64)
    one = SimpleNamespace(share=Fraction(1), manifest=SimpleNamespace(fingerprint="f" * 64))
    data = SimpleNamespace(tokenizer=tokenizer, sets=[one], path="data", context_length=8, global_batch_size=2, seed=1)
    with pytest.raises(UserError, match=r"tokenizer bytes \(aaaaaaaa\), data was prepared with bpe \(bbbbbbbb\)"):
        changes({"tokenizer": {"name": "bytes", "sha256": "a" * 64}}, data)
    assert changes({"tokenizer": {"name": "bpe", "sha256": "b" * 64}}, data) is None
    assert changes({"tokenizer": None}, data) is None
    before = {"tokenizer": None, "data": decides_the_data(data)}
    other = SimpleNamespace(share=Fraction(1, 4), manifest=SimpleNamespace(fingerprint="e" * 64))
    data.sets = [SimpleNamespace(share=Fraction(3, 4), manifest=one.manifest), other]
    told = f"data.path of fingerprint 3/4 x {'f' * 12} + 1/4 x {'e' * 12} instead of {'f' * 12}:"
    assert told in changes(before, data)
