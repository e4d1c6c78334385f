"""The LightningModule, optimizers, schedules, strategies, resuming, and the training commands."""
