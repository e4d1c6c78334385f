"""The LightningModule, optimisation, strategies, run folders and checkpoints."""
