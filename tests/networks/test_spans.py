"""Levels are data: any number of them, by name."""

from dataclasses import replace

import pytest
import torch
from small_networks import SMALL, SPANS, run

from mm_lightning.errors import UserError
from mm_lightning.memory.documents import Span
from mm_lightning.networks import MemoryMosaicConfig, TransformerConfig
from mm_lightning.networks.config import Reach
from mm_lightning.networks.config_dict import config_from_dict
from mm_lightning.networks.cost import module_costs

MIDDLE = {
    "levels": ("long", "middle", "short"),
    "spans": {"middle": {"delay": [2, 12], "window": 30, "inference_delay": 4}},
}
KINDS = {
    "mosaic": MemoryMosaicConfig(**SMALL, **SPANS, **MIDDLE),
    "transformer": TransformerConfig(**SMALL, **SPANS, **MIDDLE),
}


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_a_third_level_decodes_as_it_reads(config, build, packed):
    network = build(config, torch.float64).eval()
    tokens, documents = packed(config, 2, 70, 0.04)
    with torch.no_grad():
        whole = network(tokens, documents)
    for pieces in ([1] * 70, [40, 1, 1, 28]):
        assert torch.allclose(run(network, tokens, pieces, documents.starts), whole, atol=1e-9, rtol=0)


def test_it_reads_what_it_states(build, packed):
    """The pairs t - 29 .. t - m: a changed token matters to those tokens alone that read it."""
    config = replace(KINDS["transformer"], levels=("middle",), layers=1)
    assert (config.span("middle"), config.span("middle", 12)) == (Span(4, 26), Span(12, 18))
    network = build(config, torch.float64).eval()
    assert {network.step_randomness(0, step)["delays"]["middle"] for step in range(200)} == set(range(2, 13))
    tokens, _ = packed(config, 1, 60, 0)
    other = tokens.clone()
    other[0, 0] = (tokens[0, 0] + 1) % config.vocab_size
    with torch.no_grad():
        changed = (network(tokens, delays={"middle": 6}) - network(other, delays={"middle": 6})).abs().amax(-1)[0]
    assert changed[1:].gt(0).nonzero().flatten().add(1).tolist() == list(range(6, 30))


@pytest.mark.parametrize(("config", "short"), zip(KINDS.values(), (Span(1, 19), Span(0, 20)), strict=True), ids=KINDS)
def test_the_window_h_is_read_alike(config, short):
    """Nothing older than h - 1 tokens: h - 1 pairs of a memory (10), and the own position besides in an attention."""
    config = replace(config, short_term_window=20)
    assert config.span("short") == short
    assert config.span("short").keep == 20


def test_it_is_counted_by_its_window():
    by_name = {part.name: part for part in module_costs(KINDS["mosaic"])}
    middle = by_name["middle-term memory"]
    assert middle.window == 30
    assert middle.forward_flops(1000) == middle.forward_flops(30) > middle.forward_flops(29)


def test_descriptions_hold_it():
    config = KINDS["mosaic"]
    assert config_from_dict(config.to_dict()) == config
    assert config.reach("middle") == Reach((2, 12), 30, 4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"levels": ("middle",)}, ["'middle'", "spans"]),
        ({"spans": {"long": {"window": 8}}}, ["'long'", "long_term_delay"]),
        ({"levels": ("values",), "spans": {"values": {"window": 8}}}, ["spans", "'values'", "otherwise"]),
        ({"spans": {"middle": {"windows": 8}}}, ["spans", "window"]),
        ({"spans": {"middle": {"window": 8, "delay": 8}}}, ["spans.middle.window", "8"]),
        ({"spans": {"middle": {"delay": (9, 3)}}}, ["spans.middle.delay", "[9, 3]"]),
        ({"spans": {"middle": {"delay": 0}}}, ["spans.middle.delay", "at least 1"]),
        ({"spans": {"middle": {"inference_delay": 5}}}, ["spans.middle.inference_delay", "got 5", "delay [1, 5]"]),
    ],
)
def test_mistakes(settings, words):
    with pytest.raises(UserError) as error:
        MemoryMosaicConfig(**SMALL, **settings)
    assert all(word in str(error.value) for word in words)
