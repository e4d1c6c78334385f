"""Prefill and decoding through a state give what the whole forward pass gives."""

import pytest
import torch
from small_networks import CONFIGS, run

from mm_lightning.memory.contextual import ContextualMemory
from mm_lightning.memory.kernels import set_kernels
from mm_lightning.memory.state import MemoryState, NetworkState

SPLITS = {"prefill": [43, *[1] * 27], "chunks": [7, 30, 1, 1, 31]}


@pytest.mark.parametrize("kernels", ["auto", "torch"])
@pytest.mark.parametrize("split", SPLITS)
def test_any_split_equals_the_whole(config, build, packed, split, kernels):
    network = build(config, torch.float64).eval()
    set_kernels(network, kernels)
    tokens, _ = packed(config, 2, 70, 0)
    with torch.no_grad():
        whole = network(tokens)
    assert torch.allclose(run(network, tokens, SPLITS[split]), whole, atol=1e-9, rtol=0)


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_documents_end_and_begin_anywhere(config, build, packed, kernels):
    """Also rows of unequal lengths: what is before a row's document is a document of its own."""
    network = build(config, torch.float64).eval()
    set_kernels(network, kernels)
    tokens, documents = packed(config, 3, 45, 0.06)
    starts = documents.position == 0
    with torch.no_grad():
        whole = network(tokens, documents)
    for pieces in ([1] * 45, [12, 1, 1, 19, 12]):
        assert torch.allclose(run(network, tokens, pieces, starts), whole, atol=1e-9, rtol=0)


@pytest.mark.parametrize("threads", [1, 3, 16])
def test_threads_share_the_heads(build, packed, threads):
    network = build(CONFIGS["v2"], torch.float64).eval()
    tokens, documents = packed(CONFIGS["v2"], 2, 50, 0.06)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with torch.no_grad():
            whole = network(tokens, documents)
        found = run(network, tokens, [30, *[1] * 20], documents.position == 0)
    finally:
        torch.set_num_threads(before)
    assert torch.allclose(found, whole, atol=1e-9, rtol=0)


@pytest.mark.parametrize("chunk", [1, 3])
def test_autocast_may_begin_after_the_prompt(build, packed, chunk):
    """What is stored is then of another type than what comes; after a chunk, all but the newest raw values."""
    network = build(CONFIGS["v2"]).eval()
    tokens, _ = packed(CONFIGS["v2"], 1, 30, 0)
    state, whole = network.new_state(), run(network, tokens, [30])
    prompt = run(network, tokens[:, :16], [16], state=state)
    with torch.autocast("cpu", torch.bfloat16):
        decoded = run(network, tokens[:, 16:], [chunk, *[1] * (14 - chunk)], state=state)
    assert torch.allclose(prompt, whole[:, :16], atol=1e-4)
    assert (decoded - whole[:, 16:]).abs().max() <= 0.05 * whole.abs().max()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_precision(config, packed, dtype, tolerance):
    """The largest difference of a logit, relative to the largest logit, at the initial scalars."""
    torch.manual_seed(0)
    network = config.build().eval()
    tokens, _ = packed(config, 2, 50, 0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        whole, found = network(tokens), run(network, tokens, [30, *[1] * 20])
    assert (found - whole).abs().max() <= tolerance * whole.abs().max()


def test_a_state_can_be_saved_loaded_and_forked(config, build, packed):
    network = build(config, torch.float64).eval()
    tokens, documents = packed(config, 2, 60, 0.05)
    starts = documents.position == 0
    state = network.new_state(2)
    run(network, tokens[:, :40], [25, 15], starts[:, :40], state)
    index = torch.tensor([1, 1, 0])
    forked = state.rows(index, network.new_state(3))
    loaded = network.new_state(2)
    loaded.load({name: x.clone() for name, x in state.tensors().items()})
    rest = [1] * 10 + [10]
    expected = run(network, tokens[:, 40:], rest, starts[:, 40:], state)
    assert torch.equal(run(network, tokens[:, 40:], rest, starts[:, 40:], loaded), expected)
    found = run(network, tokens[index, 40:], rest, starts[index, 40:], forked)
    assert torch.allclose(found, expected[index], atol=1e-9, rtol=0)


@pytest.mark.parametrize("before", [0, 30])
def test_a_state_goes_back_to_a_mark(config, build, packed, before):
    """What was read since leaves no trace, also where a window has moved on and buffers have grown."""
    network = build(config, torch.float64).eval()
    tokens, _ = packed(config, 2, 60, 0)
    with torch.no_grad():
        whole = network(tokens)
    state = network.new_state(2)
    if before:
        run(network, tokens[:, :before], [before], state=state)
    mark = state.mark()
    run(network, tokens.flip(1), [1, 1, 40, *[1] * 18], state=state)
    state.rewind(mark)
    found = run(network, tokens[:, before:], [1, 7, 60 - 8 - before], state=state)
    assert torch.allclose(found, whole[:, before:], atol=1e-9, rtol=0)


def test_a_state_holds_no_more_than_the_equations_need(build):
    """Bytes against a count by hand: d 24, H 3, two blocks, window 20, 60 tokens, float64."""
    network = build(CONFIGS["v2"], torch.float64).eval()
    state = network.new_state(1)
    run(network, torch.zeros(1, 60, dtype=torch.long), [30] + [1] * 30, state=state)
    average = 24 * 8 + 3 * 8
    long, short = 2 * 60 * 24 * 8, 2 * 20 * 24 * 8
    assert state.bytes <= 2 * (2 * (average + 24 * 8) + long + 2 * short) + 16
    pairs = state.parts["blocks.0.contextual.short"].pairs
    assert pairs.buffers[0].shape[2] == 2 * 20


@pytest.mark.parametrize("name", ["v2", "v1"])
def test_a_single_token_takes_the_compiled_step(build, packed, name, monkeypatch):
    """And finds what plain torch finds, at every position."""
    network = build(CONFIGS[name], torch.float64).eval()
    tokens, documents = packed(CONFIGS[name], 2, 40, 0.1)
    starts, taken = documents.position == 0, []
    decode = ContextualMemory._decode
    monkeypatch.setattr(ContextualMemory, "_decode", lambda *inputs: taken.append(1) or decode(*inputs))
    found = run(network, tokens, [1] * 40, starts)
    assert len(taken) == 39 * CONFIGS[name].layers * len(CONFIGS[name].levels)
    set_kernels(network, "torch")
    expected = run(network, tokens, [1] * 40, starts)
    assert len(taken) == 39 * CONFIGS[name].layers * len(CONFIGS[name].levels)
    assert torch.allclose(found, expected, atol=1e-12, rtol=0)


def test_the_last_tokens_alone_are_those_of_all(config, build, packed):
    """And those that nobody asked for were taken in all the same."""
    network = build(config, torch.float64).eval()
    tokens, documents = packed(config, 2, 40, 0.1)
    starts = documents.position == 0
    with torch.inference_mode():
        whole = network(tokens, documents)
        state = network.new_state(2)
        for begin, end, keep in ((0, 20, 1), (20, 33, 5), (33, 34, 1), (34, 40, 6)):
            found = network(tokens[:, begin:end], state=state, starts=starts[:, begin:end], logits_to_keep=keep)
            assert torch.allclose(found, whole[:, end - keep : end], atol=1e-9, rtol=0)


def test_a_state_is_for_inference(build):
    network = build(CONFIGS["v2"])
    tokens = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="for inference"):
        network(tokens, state=network.new_state(2))
    with torch.no_grad(), pytest.raises(ValueError, match="as many rows as the state, 1, got 2"):
        network(tokens, state=network.new_state(1))


def test_parts_name_their_states_as_they_like():
    """Earlier versions named three tensors without their part: total and scale of the keys, raw of the values."""
    state, again = (NetworkState({"blocks.0.mixer": MemoryState()}, 1, torch.device("cpu")) for _ in range(2))
    tensors = {name: torch.rand(1, 3) for name in ("total", "scale", "raw")}
    state.parts["blocks.0.mixer"].carried("decay").update(tensors)
    again.load(state.tensors())
    assert again.parts["blocks.0.mixer"].carried("decay") == tensors
    again.load(state.tensors() | {"blocks.0.mixer.scale": tensors["scale"]})
    assert again.parts["blocks.0.mixer"].carried("keys") == {"scale": tensors["scale"]}
