"""`mm launch`: what it prints is what is in configs/launch, what it submits is what Slurm would run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mm_lightning.cli import main
from mm_lightning.experiments.launch import split_start

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def config(tmp_path, monkeypatch) -> str:
    """A config for four GPUs of two nodes, in the current folder."""
    monkeypatch.chdir(tmp_path)
    values = {
        "run": "runs/a run",
        "trainer": {"max_steps": 5, "devices": 2, "num_nodes": 2},
        "model": {"network": {"class_path": "MemoryMosaicConfig", "init_args": {"layers": 2}}},
        "data": {"path": "data", "global_batch_size": 24, "micro_batch_size": 3},
    }
    Path("run.yaml").write_text(yaml.safe_dump(values))
    return "run.yaml"


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Path:
    """A folder of stand-ins on the PATH: sbatch takes a job, srun writes down its words."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text('#!/bin/bash\ncp "$2" submitted\necho "$1" > options\necho "4711;cluster"\n')
    (folder / "srun").write_text('#!/bin/bash\nprintf "%s\\n" "$@" > words\n')
    for file in folder.iterdir():
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def launch(*args: str) -> int:
    return main(["launch", *args])


@pytest.mark.parametrize(("executor", "name"), [("slurm", "8b.sbatch"), ("torchrun", "8b_torchrun.sh")])
def test_the_scripts_of_the_large_model_are_what_it_prints(executor, name, monkeypatch, capsys):
    monkeypatch.chdir(CONFIGS.parent)
    config = ["--config", "configs/8b.yaml", "--nodes", "8", "--gpus", "8"]
    assert launch(*config, "--executor", executor, "--dry_run") == 0
    assert capsys.readouterr().out == (CONFIGS / "launch" / name).read_text()
    subprocess.run(["bash", "-n", CONFIGS / "launch" / name], check=True)


def test_it_submits_what_runs_and_goes_on(config, cluster, capsys):
    more = ["--ckpt_path", "old run", "--sbatch", "partition=h100", "time=2:00:00", "--data.num_workers", "3"]
    assert launch("--config", config, *more) == 0
    assert "submitted as job 4711: runs/a run/launch/4711-0.log" in capsys.readouterr().out
    assert Path("options").read_text() == "--parsable\n"
    script = Path("submitted").read_text()
    for line in (
        "--nodes=2",
        "--ntasks-per-node=2",
        "--partition=h100",
        "--time=2:00:00",
        "--signal=USR1@300",
        "--requeue",
    ):
        assert f"#SBATCH {line}" in script, line
    assert script.count("--time=") == 1

    def run() -> list[str]:
        environment = {**os.environ, "SLURM_JOB_ID": "4711", "SLURM_CPUS_PER_TASK": "8"}
        subprocess.run(["bash", "submitted"], env=environment, check=True)
        return Path("words").read_text().splitlines()

    fit = [
        "mm",
        "fit",
        "--config",
        config,
        "--data.num_workers",
        "3",
        "--trainer.num_nodes",
        "2",
        "--trainer.devices",
        "2",
    ]
    first = run()
    assert first[:3] == ["--kill-on-bad-exit=1", "--open-mode=append", "--output=runs/a run/launch/4711-%t.log"]
    assert first[3:] == [*fit, "--ckpt_path", "old run"]
    assert run() == first  # nothing was saved yet
    checkpoints = Path("runs/a run/0/checkpoints")
    checkpoints.mkdir(parents=True)
    (checkpoints / "step=3.ckpt.partial").touch()
    assert run() == first
    (checkpoints / "step=2.ckpt").mkdir()
    assert run()[3:] == [*fit, "--resume"]
    os.utime(checkpoints / "step=2.ckpt", (0, 0))  # of an earlier job
    assert run() == first


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ["--nodes", "3"],
            ["x 6 devices = 18", "global_batch_size 18 or 36", "4 or 8 devices (2 or 4 nodes)", "2 or 4"],
        ),
        (["--gpu_memory", "1"], ["GB on each of 4 GPUs do not fit 1 GB"]),
        (["--nodes", "0"], ["--nodes takes a whole number of at least 1"]),
        (["--executor", "torchrun"], ["--node_rank 0 --address"]),
        (["--trainer.devices", "auto"], ["give --gpus"]),
        (["--data.batch", "3"], ["--data.batch"]),
        ([], ["no sbatch here"]),
    ],
)
def test_mistakes(args, words, config, capsys):
    assert launch("--config", config, *args) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(word in error for word in words), error
    assert not Path("runs").exists()


def test_a_job_that_slurm_refuses(config, cluster, capsys):
    (cluster / "sbatch").write_text("#!/bin/bash\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    assert launch("--config", config) == 2
    assert "sbatch refused runs/a run/launch/job.sbatch: sbatch: error: invalid partition" in capsys.readouterr().err


def test_where_a_run_begins_is_taken_apart():
    assert split_start(["--resume", "--a", "b"]) == (["--resume"], ["--a", "b"])
    assert split_start(["--a", "b", "--resume", "runs/3", "--c=d"]) == (
        ["--resume", "runs/3"],
        ["--a", "b", "--c=d"],
    )
    assert split_start(["--ckpt_path=x", "--a"]) == (["--ckpt_path=x"], ["--a"])


@pytest.mark.slow
def test_torchrun_starts_here(tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for n in range(12):
        (text / f"{n}.txt").write_text(" ".join(str(k * (n + 2)) for k in range(80)))
    network = {"layers": 1, "dim": 16, "heads": 2, "persistent_dim": 16, "vocab_size": 258, "short_term_window": 8}
    values = {
        "run": str(tmp_path / "run"),
        "trainer": {"max_steps": 2, "accelerator": "cpu", "devices": 2, "strategy": "ddp"},
        "model": {"network": {"class_path": "MemoryMosaicConfig", "init_args": network}},
        "data": {
            "path": str(tmp_path / "data"),
            "context_length": 16,
            "global_batch_size": 4,
            "micro_batch_size": 2,
            "num_workers": 0,
            "prepare": {"sources": [str(text)], "tokenizer": "bytes", "validation_fraction": 0.3, "workers": 1},
        },
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "mm_lightning.cli", "launch", "--config", str(tmp_path / "tiny.yaml")]
    done = subprocess.run(
        [*command, "--executor", "torchrun"], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "0" / "finished.json").is_file()
    assert list((tmp_path / "run" / "launch").rglob("stdout.log"))
