"""A running training put back to an earlier checkpoint."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer

from mm_lightning.renamed import rename_callback_states


def restore(trainer: Trainer, path: Path) -> None:
    """Puts a running training back to a checkpoint, all but the place in the data."""
    before = trainer.global_step
    state = trainer.strategy.load_checkpoint(path, weights_only=True)
    rename_callback_states(state["callbacks"])
    trainer.strategy.load_model_state_dict(state)
    trainer.lightning_module.restore_tokens(state)
    for callback in trainer.callbacks:  # averages of weights have others than those in training
        callback.on_load_checkpoint(trainer, trainer.lightning_module, state)
    trainer.strategy.load_optimizer_state_dict(state)
    for config, saved in zip(trainer.lr_scheduler_configs, state["lr_schedulers"], strict=True):
        config.scheduler.load_state_dict(saved)
    trainer.lightning_module.optimizer_settings.apply(trainer)  # the checkpoint's may be others
    for callback in trainer.callbacks:
        if callback.state_key in state["callbacks"]:
            callback.load_state_dict(state["callbacks"][callback.state_key])
    # Lightning's count of steps, and of the batches by which it knows when to validate
    loop = trainer.fit_loop.epoch_loop
    back = before - state["global_step"]
    loop._batches_that_stepped -= back
    steps = loop.automatic_optimization.optim_progress.optimizer.step.total
    steps.ready, steps.completed = steps.ready - back, steps.completed - back
    batches, back = loop.batch_progress.total, back * trainer.accumulate_grad_batches
    batches.ready, batches.started = batches.ready - back, batches.started - back
    batches.processed, batches.completed = batches.processed - back, batches.completed - back
