"""Runs in which the loss or the gradient of a step is not finite."""

import yaml

POISON = """
import torch
from mm_lightning.training.module import LanguageModule


def poison(step, rank=0, gradient=False, times=1):
    '''Makes the loss, or one gradient, of a process's last batch of a step infinite, once.'''
    run, left = LanguageModule.training_step, [times]

    def training_step(self, batch, batch_idx):
        loss = run(self, batch, batch_idx)
        last = not self.trainer.fit_loop._should_accumulate()
        if self.global_step >= step - 1 and last and left[0] and self.global_rank == rank:
            left[0] -= 1
            if gradient:
                loss.register_hook(lambda g: g * torch.inf)
            else:
                self._step_loss[-1][0] = torch.nan
                loss = loss * torch.nan
        return loss

    LanguageModule.training_step = training_step
"""


def config(tiny, tmp_path, every=1, steps=6, **guard):
    """The tiny config with a guard."""
    callbacks = [
        {"class_path": "Checkpoints", "init_args": {"every_n_steps": every, "keep": 0}},
        {"class_path": "BadStepGuard", "init_args": guard},
    ]
    path = tmp_path / "guarded.yaml"
    trainer = {"callbacks": callbacks, "max_steps": steps, "val_check_interval": 100}
    path.write_text(yaml.safe_dump({"base": str(tiny), "trainer": trainer}))
    return str(path)
