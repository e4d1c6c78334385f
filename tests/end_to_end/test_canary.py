"""A secret that goes through every command that writes is in no file and not on the screen."""

import fsspec
import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger

from mm_lightning.checkpoint.run_folder import numbered_runs
from mm_lightning.cli import COMMANDS, TRAINING, main

CANARY = "c4n4ry"
SOURCE = f"memory://me:{CANARY}@host/texts/*.txt"
UNSAID = {
    **dict.fromkeys(
        ("data generate", "data regbench", "data facts", "data mqar", "data fetch"),
        "takes no source, option or config in which a secret can be",
    ),
    **{name: "takes sizes and configs, and writes times" for name in COMMANDS if name.startswith("benchmark ")},
    "checkpoint convert": "reads a plain checkpoint alone, in which no secret is",
    "import": "reads weights of this machine",
    "cost": "prints what follows from the network",
    "chat": "writes what is typed",
}
"""The commands that this test leaves out, and why."""

NETWORK = {"vocab_size": 258, "layers": 1, "dim": 16, "heads": 2, "persistent_dim": 32, "short_term_window": 8}
CONFIG = {
    "trainer": {
        "max_steps": 2,
        "log_every_n_steps": 1,
        "val_check_interval": 1,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "callbacks": [{"class_path": "Checkpoints", "init_args": {"every_n_steps": 1}}, "Summary"],
        "logger": [{"class_path": f"{__name__}.Tracker", "init_args": {"api_key": CANARY}}],
    },
    "model": {
        "network": {
            "class_path": "MemoryMosaicConfig",
            "init_args": {**NETWORK, "long_term_delay": [2, 6], "inference_delay": 2},
        },
        "warmup_steps": 1,
    },
    "data": {
        "context_length": 16,
        "global_batch_size": 4,
        "micro_batch_size": 4,
        "num_workers": 0,
        "validation_sequences": 4,
        "prepare": {"sources": [SOURCE], "validation_fraction": 0.3, "workers": 1},
    },
}


class Tracker(CSVLogger):
    """Stands for loggers of services, which want a key, and keep the config that they are given."""

    def __init__(self, api_key: str) -> None:
        super().__init__("tracker")


def tell_tales(folder):
    """The files below a folder, and names of them, that hold the canary."""
    files = [path for path in folder.rglob("*") if path.is_file() and "given" not in path.parts]
    assert len(files) > 30
    return [path for path in files if CANARY.encode() in path.read_bytes() or CANARY in str(path)]


@pytest.mark.slow
@pytest.mark.interfaces
def test_a_secret_goes_nowhere(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", f"hf_{CANARY}environment")
    store = fsspec.filesystem("memory")
    monkeypatch.setattr(type(store), "store", {})
    for n in range(12):
        store.pipe(f"/me:{CANARY}@host/texts/{n}.txt", (f"{n} and the cat sat on the mat. " * 20).encode())
    (tmp_path / "given").mkdir()
    config = tmp_path / "given" / "my.yaml"
    content = {"run": "runs", **CONFIG, "data": {**CONFIG["data"], "path": "data"}}
    config.write_text(yaml.safe_dump(content))
    (tmp_path / "prompt.txt").write_text("the cat sat on the mat. " * 10)
    tried = set()

    def mm(*words, status=0):
        monkeypatch.setattr("sys.argv", ["mm", *map(str, words)])
        assert main(list(map(str, words))) == status
        tried.add(next(name for name in (*TRAINING, *COMMANDS) if " ".join(map(str, words)).startswith(name)))
        monkeypatch.setattr("sys.argv", ["mm"])

    prepare = ("--validation_fraction", "0.3", "--workers", "1")
    mm("data", "prepare", SOURCE, "--output", "other", *prepare)
    mm("data", "prepare", SOURCE.replace(CANARY, "changed"), "--output", "other", *prepare, status=2)  # nothing there
    mm("data", "prepare", f"http://me:{CANARY}@127.0.0.1:9/c.txt", "--output", "no", *prepare, status=2)
    mm("tokenizer", "train", SOURCE, "--output", "t.json", "--vocab_size", "260")
    mm("fit", "--config", config)
    run = numbered_runs(tmp_path / "runs")[0]
    said = capfd.readouterr()
    mm("fit", "--config", config, "--resume", "--trainer.max_steps", "3")
    # alone, it is the key that has to be given again; not the source, whose data lie there
    mm("fit", "--resume", run, "--trainer.max_steps", "4", status=2)
    key = capfd.readouterr()
    assert "config.yaml keeps no secrets: give trainer.logger" in key.err
    assert "data.prepare" not in key.err
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["data"]["prepare"]["sources"] == ["memory://***@host/texts/*.txt"]
    assert saved["trainer"]["logger"][0]["init_args"]["api_key"] == "***"
    for command in ("validate", "test", "predict"):
        mm(command, "--config", config, "--ckpt_path", run)
    mm("data", "inspect", "other")
    mm("data", "verify", "other")
    mm("data", "show", run, "--step", "1")
    mm("generate", "--checkpoint", run, "--prompt", "the", "--max_new_tokens", "3", "--output", "g.jsonl")
    mm("remember", "--checkpoint", run, "--text", "prompt.txt", "--output", "m.memory")
    mm("inspect", "--checkpoint", run, "--prompt", "the cat sat", "--text", SOURCE, "--text_tokens", "16")
    mm("evaluate", "--checkpoint", run, "--tasks", "loss_by_position", "--text", "prompt.txt", "--contexts", "64")
    mm("export", "--checkpoint", run, "--output", "exported")
    mm("checkpoint", "list", run)
    mm("checkpoint", "verify", run)
    mm("checkpoint", "consolidate", run, "--output", "w.safetensors")
    mm("checkpoint", "compare", run, run)
    mm("report", "runs")
    mm("launch", "--config", config, "--nodes", "1", "--gpus", "1", "--dry_run")
    mm("launch", "--config", config, "--data.prepare.sources", f"[{SOURCE}]", "--dry_run", status=2)
    monkeypatch.setattr("mm_lightning.experiments.sweep.carry_out", lambda *args: None)
    sweep = tmp_path / "given" / "s.yaml"
    sweep.write_text(
        yaml.safe_dump(
            {"base": "my.yaml", "seeds": 1, "stop": {"steps": 2}, "axes": {"model.weight_decay": [0.1, 0.2]}}
        )
    )
    settings = yaml.safe_dump({"data.prepare.sources": [SOURCE]}, default_flow_style=True)
    for _ in range(2):
        mm("sweep", sweep, "--output", "sweep", "--settings", settings)
    assert tried | set(UNSAID) >= set(COMMANDS) | set(TRAINING)
    assert not tell_tales(tmp_path)
    after = capfd.readouterr()
    assert CANARY not in said.out + said.err + key.out + key.err + after.out + after.err
