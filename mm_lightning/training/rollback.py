"""Return of a running training to an earlier checkpoint."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, Trainer

from mm_lightning.renamed import rename_callback_states
from mm_lightning.training.lightning_internals import callbacks_of, rewind
from mm_lightning.training.module import LanguageModule


def restore(trainer: Trainer, path: Path) -> None:
    """Restore an earlier checkpoint in a running training: everything but the position in the data."""
    module, before = trainer.lightning_module, trainer.global_step
    assert isinstance(module, LanguageModule)
    state = trainer.strategy.load_checkpoint(path, weights_only=True)
    rename_callback_states(state["callbacks"])
    trainer.strategy.load_model_state_dict(state)
    module.restore_tokens(state)
    for callback in callbacks_of(trainer, Callback):  # weight averaging keeps its own copy
        callback.on_load_checkpoint(trainer, module, state)
    trainer.strategy.load_optimizer_state_dict(state)
    for config, saved in zip(trainer.lr_scheduler_configs, state["lr_schedulers"], strict=True):
        config.scheduler.load_state_dict(saved)
    module.optimizer_settings.apply(trainer)  # the checkpoint's may differ
    for callback in callbacks_of(trainer, Callback):
        if callback.state_key in state["callbacks"]:
            callback.load_state_dict(state["callbacks"][callback.state_key])
    rewind(trainer, before - state["global_step"])
