"""The journey of the README, on a small corpus: prepare, train, resume, validate, generate, cost."""

import json
import shlex

import pytest
import yaml

from mm_lightning.cli import main


def run(capsys, *args: str) -> str:
    assert main(list(args)) == 0
    return capsys.readouterr().out


def shows_its_sample_again(capsys, out: str) -> bool:
    """Whether the command that the last words of a run suggest writes the sample that they show."""
    shown = out.split("a sample:\n")[1].split("\n\nrun folder: ")[0]
    (line,) = [line for line in out.splitlines() if line.startswith("  mm generate")]
    program, *words = shlex.split(line)
    assert program == "mm"
    text = run(capsys, *words, "--device", "cpu")
    return text.removesuffix("\n").splitlines() == [line.removeprefix("  ") for line in shown.splitlines()]


@pytest.mark.interfaces
def test_from_text_to_text(tmp_path, capsys):
    text = tmp_path / "text"
    text.mkdir()
    sentence = "the cat sat on the mat and saw the dog. "
    for n in range(40):
        (text / f"{n}.txt").write_text(f"{n}: " + sentence * 12)
    data = str(tmp_path / "data")
    run(capsys, "data", "prepare", str(text), "--output", data, "--tokenizer", "train", "--vocab_size", "300",
        "--validation_fraction", "0.2", "--workers", "1")  # fmt: skip
    run(capsys, "data", "inspect", data)
    run(capsys, "data", "verify", data)

    config = tmp_path / "my.yaml"
    values = {
        "run": str(tmp_path / "runs"),
        "trainer": {
            "max_steps": 60,
            "val_check_interval": 30,
            "accelerator": "cpu",
            "gradient_clip_val": 1.0,
            "callbacks": [
                {"class_path": "Checkpoints", "init_args": {"every_n_steps": 30}},
                {"class_path": "Samples", "init_args": {"prompt": "  3: the\n\t\\n's cat", "tokens": 8, "top_p": 0.95}},
                "Summary",
            ],
        },
        "model": {
            "network": {
                "class_path": "MemoryMosaicConfig",
                "init_args": {"vocab_size": 300, "layers": 2, "dim": 32, "heads": 2, "persistent_dim": 64},
            },
            "learning_rate": 0.01,
            "warmup_steps": 5,
        },
        "data": {
            "path": data,
            "context_length": 64,
            "global_batch_size": 8,
            "micro_batch_size": 8,
            "num_workers": 0,
            "validation_sequences": 8,
        },
    }
    # spans for sequences of 64 tokens
    spans = {"short_term_window": 16, "long_term_delay": [4, 16], "inference_delay": 4}
    values["model"]["network"]["init_args"] |= spans
    config.write_text(yaml.safe_dump(values))
    out = run(capsys, "fit", "--config", str(config))
    assert "unigram baseline" in out
    assert shows_its_sample_again(capsys, out)
    out = run(capsys, "fit", "--config", str(config), "--resume", "--trainer.max_steps", "70")
    assert "resuming" in out
    assert shows_its_sample_again(capsys, out)
    folder = tmp_path / "runs" / "0"
    run(capsys, "validate", "--config", str(folder / "config.yaml"))
    result = json.loads((folder / "evaluation.jsonl").read_text().splitlines()[-1])
    assert result["validation/loss"] < 1.0, "the corpus repeats one sentence"
    assert result["validation/bits_per_byte"] < 1.0

    out = run(capsys, "generate", "--checkpoint", str(tmp_path / "runs"), "--prompt", "5: the cat sat",
              "--temperature", "0", "--max_new_tokens", "12")  # fmt: skip
    assert "on the mat" in out
    found = json.loads(run(capsys, "cost", "--config", str(config), "--json"))
    assert found


def test_commands_without_a_run(tmp_path, capsys):
    for args in (["generate", "--checkpoint", str(tmp_path)], ["data", "inspect", str(tmp_path)]):
        assert main(args) == 2
        assert capsys.readouterr().err.count("\n") == 1
