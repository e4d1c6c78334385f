"""`mm fit --resume RUN` and `mm validate --ckpt_path RUN` alone: a run's own configuration is enough to go on."""

import json

import pytest
import yaml
from runs import metrics

from mm_lightning.cli import main
from mm_lightning.errors import UserError
from mm_lightning.training.config_files import ConfigFile, option_texts
from mm_lightning.training.run_config import read_run_config


@pytest.mark.slow
def test_a_run_folder_is_all_that_is_named(tiny, tmp_path, capsys):
    root, small = tmp_path / "run", ["--model.network.dim", "8", "--model.network.persistent_dim", "16"]
    assert main(["fit", "--config", str(tiny), *small, "--trainer.max_steps", "3"]) == 0
    logged = metrics(root / "0", "validation/loss")[3]
    for command in ("validate", "test", "predict"):
        assert main([command, "--ckpt_path", str(root)]) == 0
    line = json.loads((root / "0" / "evaluation.jsonl").read_text().splitlines()[0])
    assert line["validation/loss"] == pytest.approx(logged, rel=1e-5)
    assert "changed" not in line

    moved = root.rename(tmp_path / "moved")
    capsys.readouterr()
    more = ["--trainer.max_steps", "4", "--trainer.val_check_interval=2", "--data.num_workers", "0"]
    assert main(["fit", "--resume", str(moved), *more]) == 0
    out = capsys.readouterr().out.splitlines()
    (line,) = [line for line in out if line.startswith("settings that differ from")]
    assert line == f"settings that differ from {moved / '0' / 'config.yaml'}: trainer.val_check_interval 2 instead of 3"
    assert any("trainer.max_steps 4 instead of 3" in line for line in out if line.startswith("resuming with"))
    assert sorted(metrics(moved / "0")) == [1, 2, 3, 4]
    assert sorted(path.name for path in moved.iterdir()) == ["0"]
    own = yaml.safe_load((moved / "0" / "config.yaml").read_text())
    assert (own["run"], own["model"]["network"]["init_args"]["dim"]) == (str(moved), 8)

    # beneath a config: what that does not say is the run's
    (tmp_path / "over.yaml").write_text(yaml.safe_dump({"run": str(moved), "trainer": {"max_steps": 5}}))
    assert main(["fit", "--config", str(tmp_path / "over.yaml"), "--resume"]) == 0
    assert sorted(metrics(moved / "0")) == [1, 2, 3, 4, 5]

    # a config that asks for another network wins, and what to do instead is said
    capsys.readouterr()
    assert main(["fit", "--config", str(tiny), "--run", str(moved), "--resume", "--trainer.max_steps", "6"]) == 2
    error = capsys.readouterr().err
    assert "dim 8 instead of 16" in error
    assert f"`mm fit --resume {moved / '0'}` alone" in error


def test_secrets_that_are_not_kept_are_asked_for(tmp_path):
    folder = tmp_path / "0"
    checkpoint = folder / "checkpoints" / "step=1.ckpt"
    assert read_run_config(checkpoint, [], []) is None
    folder.mkdir()
    values = {"run": "old", "data": {"path": "x", "prepare": {"sources": ["s3://***@host/a"]}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"keeps no secrets: give data\.prepare\.sources again"):
        read_run_config(checkpoint, ["--data.path", "y"], [])
    own = read_run_config(checkpoint, ["--data.prepare.sources", "[s3://me:pass@host/a]"], [])
    assert own.values["run"] == str(tmp_path)
    assert read_run_config(checkpoint, [], [ConfigFile("x.yaml", {"data": {"prepare": None}})]) is not None
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "manifest.json").write_text("{}")
    values["data"]["path"] = str(tmp_path / "prepared")  # where nobody asks the source again
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    assert read_run_config(checkpoint, [], []) is not None
    values["trainer"] = {"logger": {"class_path": "L", "init_args": {"api_key": "***"}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"keeps no secrets: give trainer\.logger\.api_key again"):
        read_run_config(checkpoint, [], [])


def test_options_that_stand_alone():
    assert option_texts(["--resume"]) == {"resume": ""}
    assert option_texts(["--resume", "--run", "a"]) == {"resume": "", "run": "a"}
    assert option_texts(["--resume", "runs/a", "--run", "a"]) == {"resume": "runs/a", "run": "a"}
    assert option_texts(["--resume=runs/a", "--resume=runs/b"]) == {"resume": "runs/b"}
    assert option_texts([]) == {}
    assert option_texts(["--resume", "--run", "a"], alone="true") == {"resume": "true", "run": "a"}
    assert option_texts(["--resume", "", "--run="], alone="true") == {"resume": "", "run": ""}
