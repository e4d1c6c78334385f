"""The LightningModule, optimization, strategies, run folders and checkpoints."""
