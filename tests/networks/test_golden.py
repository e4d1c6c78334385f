"""Networks of files that earlier versions wrote: the same losses, the same decoded tokens, the same memories.

`python -m tests.networks.test_golden NAME ...` writes files of new variants; those that are there are never changed.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mm_lightning.memory.documents import Documents
from mm_lightning.networks import V1, MemoryMosaicConfig, TransformerConfig
from mm_lightning.networks.config_dict import config_from_dict

GOLDEN = Path(__file__).with_name("golden")
SMALL = {"vocab_size": 23, "layers": 2, "dim": 12, "heads": 2, "persistent_dim": 10}
SPANS = {"short_term_window": 8, "long_term_delay": (3, 12), "inference_delay": 5}
SMALL_V1 = {**V1, "persistent_slots": 6, "dropout": 0.0}
BATCH, TIME, STEPS, PROMPT, DECODED = 3, 40, 20, 25, 15

VARIANTS = {
    "v2": (MemoryMosaicConfig, {**SMALL, **SPANS}),
    "v2-tied-dropout": (MemoryMosaicConfig, {**SMALL, **SPANS, "tied": True, "dropout": 0.1}),
    "v2-long": (MemoryMosaicConfig, {**SMALL, **SPANS, "levels": ("long",)}),
    "v2-short": (MemoryMosaicConfig, {**SMALL, **SPANS, "levels": ("short",)}),
    "v2-short-long-full": (MemoryMosaicConfig, {**SMALL, **SPANS, "levels": ("short", "long", "full")}),
    "leaky": (MemoryMosaicConfig, {**SMALL, **SPANS, "keys": "leaky"}),
    "fixed": (MemoryMosaicConfig, {**SMALL, **SPANS, "bandwidth": "fixed"}),
    "no-look-ahead": (MemoryMosaicConfig, {**SMALL, **SPANS, "look_ahead": False}),
    "no-persistent": (MemoryMosaicConfig, {**SMALL, **SPANS, "persistent": "none"}),
    "experts": (MemoryMosaicConfig, {**SMALL, **SPANS, "persistent": "experts", "experts": 3}),
    "slots": (MemoryMosaicConfig, {**SMALL, **SPANS, "persistent": "key_value", "persistent_slots": 5}),
    "v1": (MemoryMosaicConfig, {**SMALL, **SMALL_V1}),
    "v1-bias-banks": (MemoryMosaicConfig, {**SMALL, **SMALL_V1, "bias": True, "persistent_banks": 2}),
    "transformer": (TransformerConfig, {**SMALL}),
    "transformer-grouped": (TransformerConfig, {**SMALL, "kv_heads": 1}),
    "transformer-long-short": (TransformerConfig, {**SMALL, **SPANS, "levels": ("long", "short")}),
}


def batch(step):
    """Tokens (B, T) and targets of a training step, in documents."""
    draw = torch.Generator().manual_seed(1000 + step)
    tokens = torch.randint(SMALL["vocab_size"], (BATCH, TIME + 1), generator=draw)
    documents = Documents.from_starts(torch.rand(BATCH, TIME, generator=draw) < 0.05)
    return tokens[:, :-1], tokens[:, 1:], documents


def initial(network):
    """Fill a network's parameters by their order, whatever their names are."""
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))


def train(network):
    """Return the losses of 20 steps of AdamW in float64."""
    optimizer = torch.optim.AdamW(network.parameters(), 0.01)
    losses = []
    network.train()
    for step in range(STEPS):
        torch.manual_seed(step)
        tokens, targets, documents = batch(step)
        loss = network(tokens, documents, targets, **network.step_randomness(0, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@torch.inference_mode()
def decode(network, state, token):
    """Return the logits of 15 tokens, the likeliest taken each time."""
    found = []
    for _ in range(DECODED):
        found.append(network(token, state=state))
        token = found[-1].argmax(-1)
    return torch.cat(found, 1)


def prompt():
    return torch.randint(SMALL["vocab_size"], (2, PROMPT), generator=torch.Generator().manual_seed(3))


def read(name):
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["golden"])  # noqa: SIM118


def start(name):
    """Return the network at its first step, and what the file holds."""
    tensors, golden = read(name)
    kind, fields = VARIANTS[name]
    network = kind(**fields).build().double()
    network.load_state_dict({key: tensors[f"initial.{key}"].double() for key in golden["parameters"]}, strict=False)
    return network, tensors, golden


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_have_their_names_and_their_order(name):
    """By which checkpoints give optimizers their state."""
    network, tensors, golden = start(name)
    assert [key for key, _ in network.named_parameters()] == golden["parameters"]
    assert all(x.shape == tensors[f"initial.{key}"].shape for key, x in network.named_parameters())
    assert config_from_dict(golden["described"]).to_dict() == network.config.to_dict()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_seed_draws_the_parameters_that_it_drew(name):
    kind, fields = VARIANTS[name]
    tensors, _ = read(name)
    torch.manual_seed(0)
    network = kind(**fields).build()
    initial(network)
    for key, x in network.named_parameters():
        assert torch.allclose(x, tensors[f"initial.{key}"], rtol=1e-6), key


@pytest.mark.parametrize("name", VARIANTS)
def test_the_losses_are_what_they_were(name):
    network, tensors, _ = start(name)
    losses = train(network)
    assert torch.allclose(losses[:5], tensors["losses"][:5], rtol=1e-10, atol=0)
    assert torch.allclose(losses, tensors["losses"], rtol=0, atol=1e-4)  # Adam makes much of the last digit


@pytest.mark.parametrize("name", VARIANTS)
def test_decoding_gives_what_it_gave(name):
    network, tensors, golden = start(name)
    network.eval()
    state = network.new_state(2)
    with torch.inference_mode():
        first = network(prompt(), state=state)[:, -1:].argmax(-1)
    logits = decode(network, state, first)
    assert torch.allclose(logits, tensors["logits"], rtol=0, atol=1e-9)
    assert logits.argmax(-1).tolist() == golden["tokens"]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_memory_of_then_goes_on(name):
    network, tensors, golden = start(name)
    network.eval()
    state = network.new_state(2)
    begin = "state."
    state.load({key.removeprefix(begin): x.clone() for key, x in tensors.items() if key.startswith(begin)})
    assert torch.allclose(decode(network, state, torch.tensor(golden["first"])), tensors["logits"], rtol=0, atol=1e-9)


def write(name):
    kind, fields = VARIANTS[name]
    torch.manual_seed(0)
    network = kind(**fields).build()
    initial(network)
    tensors = {f"initial.{key}": x.detach().clone() for key, x in network.named_parameters()}
    names = [key for key, _ in network.named_parameters()]
    network.double().eval()
    state = network.new_state(2)
    with torch.inference_mode():
        first = network(prompt(), state=state)[:, -1:].argmax(-1)
    tensors |= {f"state.{key}": x.clone().contiguous() for key, x in state.tensors().items()}
    tensors["logits"] = decode(network, state, first)
    tensors["losses"] = train(network)
    golden = {
        "parameters": names,
        "described": network.config.to_dict(),
        "first": first.tolist(),
        "tokens": tensors["logits"].argmax(-1).tolist(),
    }
    GOLDEN.mkdir(exist_ok=True)
    save_file(tensors, GOLDEN / f"{name}.safetensors", {"golden": json.dumps(golden)})


if __name__ == "__main__":
    for name in sys.argv[1:]:
        assert not (GOLDEN / f"{name}.safetensors").exists(), f"{name} is there: golden files are never changed"
        write(name)
