"""The training behind a checkpoint."""

from mm_lightning.evaluation.origin import origin


def run(folder, config, lines):
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    (folder / "metrics.jsonl").write_text(lines)
    return folder / "checkpoints"


def test_tokens_of_training_and_of_fine_tuning(tmp_path):
    lines = '{"step": 10, "train/tokens": 5120.0}\n{"step": 10, "validation/loss": 3.0}\n{"step": 20, "train/t'
    base = run(tmp_path / "base/0", "model: {}", lines) / "step=100.ckpt"
    assert origin(base) == {
        "run_folder": str(tmp_path / "base/0"),
        "step": 100,
        "training_tokens": 51200,
        "fine_tuned_from": None,
    }
    config = f"model: {{initial_weights: '{base}'}}"
    tuned = run(tmp_path / "tuned/0", config, '{"step": 1, "train/tokens": 4096.0}\n') / "step=2.ckpt"
    found = origin(tuned)
    assert (found["training_tokens"], found["fine_tuned_from"]) == (51200 + 2 * 4096, str(base))


def test_what_is_not_known_is_none(tmp_path):
    lonely = origin(tmp_path / "imported.ckpt")
    assert lonely == {"run_folder": None, "step": None, "training_tokens": None, "fine_tuned_from": None}
    config = "model: {initial_weights: nowhere/checkpoints/step=5.ckpt}"
    tuned = run(tmp_path / "tuned/0", config, '{"step": 1, "train/tokens": 4096.0}\n') / "step=2.ckpt"
    assert origin(tuned)["training_tokens"] is None
