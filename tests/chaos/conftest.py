"""A tiny run that saves at every step: most of its time passes in saving."""

import pytest
import yaml

TRAINER = {"max_steps": 60, "log_every_n_steps": 1, "accelerator": "cpu", "enable_progress_bar": False}


@pytest.fixture
def config(tmp_path, prepared):
    """Writes the config of a run: `config(max_steps=8, keep=1)`."""

    def write(max_steps: int = 60, more: list | None = None, **checkpoints) -> list[str]:
        settings = {"every_n_steps": 1, "keep": 2, **checkpoints}
        callbacks = [{"class_path": "Checkpoints", "init_args": settings}, *(more or [])]
        network = {"vocab_size": 258, "layers": 1, "dim": 16, "heads": 2, "persistent_dim": 32}
        network |= {"short_term_window": 8, "long_term_delay": [2, 6], "inference_delay": 2}
        values = {
            "trainer": {**TRAINER, "max_steps": max_steps, "val_check_interval": 20, "callbacks": callbacks},
            "model": {
                "network": {"class_path": "MemoryMosaicConfig", "init_args": network},
                "learning_rate": 0.01,
                "warmup_steps": 2,
            },
            "data": {
                "path": str(prepared),
                "context_length": 32,
                "global_batch_size": 4,
                "micro_batch_size": 2,
                "num_workers": 0,
                "validation_sequences": 4,
            },
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values))
        return ["fit", "--config", str(path)]

    return write
