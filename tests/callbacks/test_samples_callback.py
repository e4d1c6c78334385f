"""Samples are what `mm generate` writes with the same weights."""

from types import SimpleNamespace

import pytest
import torch

from mm_lightning.callbacks import Samples
from mm_lightning.data import load_tokenizer
from mm_lightning.inference.generate import generate
from mm_lightning.networks import MemoryMosaicConfig

PROMPT, TOKENS = "the cat", 60


@pytest.mark.parametrize(("parameters", "autocast"), [(torch.float32, True), (torch.bfloat16, False)])
def test_a_sample_does_not_depend_on_the_precision_of_training(parameters, autocast):
    torch.manual_seed(0)
    tokenizer = load_tokenizer("bytes")
    network = MemoryMosaicConfig(vocab_size=258, layers=2, dim=32, heads=2, persistent_dim=64).build().eval()
    network = network.to(parameters)
    samples = Samples(PROMPT, TOKENS)
    trainer = SimpleNamespace(datamodule=SimpleNamespace(tokenizer=tokenizer), loggers=[])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.inference_mode():
        samples.inspect(trainer, network)
    assert next(network.parameters()).dtype == parameters
    saved = network.float()  # as a checkpoint is loaded
    assert samples.last == generate(saved, tokenizer, PROMPT, samples.sampling, TOKENS)
