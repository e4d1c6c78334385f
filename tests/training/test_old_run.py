"""A run and a memory file that an earlier version wrote go on as they did with that version.

`golden/` was written by the version before the core was rebuilt (commit 480c053), with its package on the path:
`PYTHONPATH=OLD:tests/helpers python tests/training/test_old_run.py FOLDER` in an empty folder. It is never changed.
`old_run.tar.gz` holds the run folder, as it was after step 36, and a memory file of `mm remember`.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from runs import metrics

from mm_lightning.cli import main

GOLDEN = Path(__file__).with_name("golden")
SAVED, STEPS = 36, 40
CONFIG = f"""
run: runs
trainer:
  max_steps: {STEPS}
  log_every_n_steps: 1
  val_check_interval: 6
  gradient_clip_val: 1.0
  accelerator: cpu
  enable_progress_bar: false
  callbacks:
    - class_path: Checkpoints
      init_args: {{every_n_steps: {SAVED}, keep: 0}}
    - class_path: Guard
      init_args: {{window: 8}}
model:
  network:
    class_path: MemoryMosaicConfig
    init_args:
      vocab_size: 258
      layers: 2
      dim: 8
      heads: 2
      persistent_dim: 16
      tied: true
      short_term_window: 8
      long_term_delay: [2, 6]
      inference_delay: 2
  learning_rate: 0.03
  warmup_steps: 4
data:
  path: data
  context_length: 32
  global_batch_size: 8
  micro_batch_size: 4
  num_workers: 0
  validation_sequences: 8
"""


def prepare():
    """Write the data, the same bytes every time, into the current folder."""
    Path("text").mkdir()
    for n in range(24):
        Path(f"text/{n}.txt").write_text(" ".join(str(k * (n + 1)) for k in range(60 + 5 * n)))
    Path("document.txt").write_text(" ".join(str(3 * k) for k in range(20)))
    assert main(["data", "prepare", "text", "--output", "data", "--validation_fraction", "0.3", "--workers", "1"]) == 0


def resume(run):
    """Train the last steps; return their metrics."""
    assert main(["fit", "--resume", run]) == 0
    names = ["train/loss", "train/gradient_norm", "train/learning_rate", "train/tokens", "validation/loss"]
    return {name: {str(n): x for n, x in metrics(Path(run), name).items() if n > SAVED} for name in names}


def generate(run, memory):
    """Return samples that go on from the memory and two prompts."""
    Path("prompts.txt").write_text(" 60 63\n 1\n")
    options = ["--temperature", "1", "--seed", "3", "--max_new_tokens", "24", "--overwrite", "true"]
    arguments = ["--checkpoint", f"{run}/checkpoints/step={SAVED}.ckpt", "--memory", memory, *options]
    assert main(["generate", *arguments, "--prompts", "prompts.txt", "--output", "texts.jsonl"]) == 0
    return [json.loads(line)["text"] for line in Path("texts.jsonl").read_text().splitlines()]


@pytest.fixture
def expected(tmp_path, monkeypatch):
    """What the earlier version went on with; the current folder holds its files and the data."""
    monkeypatch.chdir(tmp_path)
    prepare()
    shutil.unpack_archive(GOLDEN / "old_run.tar.gz", ".", filter="data")
    return json.loads((GOLDEN / "old_run.json").read_text())


def test_a_run_goes_on_as_it_did(expected, capsys):
    capsys.readouterr()
    continued = resume("runs/0")
    output = capsys.readouterr()
    assert "settings that differ from" not in output.out
    assert "WARNING" not in output.out + output.err
    assert "callbacks used to create the checkpoint" not in output.err
    assert {name: list(values) for name, values in continued.items()} == {
        name: list(values) for name, values in expected["continued"].items()
    }
    for name, values in expected["continued"].items():
        assert continued[name] == pytest.approx(values, rel=1e-6), name
    losses = metrics(Path("runs/0"))
    assert list(losses) == list(range(1, STEPS + 1))
    guard = torch.load(f"runs/0/checkpoints/step={STEPS}.ckpt", weights_only=True)["callbacks"]["BadStepGuard"]
    assert guard["count"] == STEPS
    assert sorted(guard["losses"].tolist()) == pytest.approx(sorted(losses[n] for n in range(STEPS - 7, STEPS + 1)))


def test_a_memory_file_is_read_as_it_was(expected):
    assert generate("runs/0", "memory.safetensors") == expected["texts"]


def write(folder):
    """Write the golden files with the version of the package that is imported."""
    prepare()
    Path("tiny.yaml").write_text(CONFIG)
    assert main(["fit", "--config", "tiny.yaml"]) == 0
    run, old = Path("runs/0"), Path("old/runs/0")
    (old / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", f"checkpoints/step={SAVED}.ckpt"):
        shutil.copy(run / name, old / name)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (old / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= SAVED))
    shutil.rmtree(run)
    shutil.copytree(old, run)
    assert main(["remember", "--checkpoint", str(run), "--text", "document.txt", "--output", "memory.safetensors"]) == 0
    shutil.copy("memory.safetensors", "old")
    expected = {"texts": generate(str(run), "memory.safetensors"), "continued": resume(str(run))}
    (folder / "old_run.json").write_text(json.dumps(expected, indent=1) + "\n")
    shutil.make_archive(str(folder / "old_run"), "gztar", "old")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
