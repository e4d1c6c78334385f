"""Rows that share their past, against rows that hold it each for themselves."""

import pytest
import torch
from small_networks import CONFIGS, run

from mm_lightning.memory.shared_prefix import branch

PLACES = [0, 0, 0]


def shared(network, state, rows=PLACES):
    return branch(state, torch.tensor(rows), network.new_state(len(rows)), 0)


@pytest.mark.parametrize("before", [1, 45])
def test_branches_go_on_as_copies_do(config, build, before):
    """Chunks, single tokens, and a choice of rows in between, from pasts shorter and longer than delay and window."""
    network = build(config, torch.float64).eval()
    generator = torch.Generator().manual_seed(before)
    past = torch.randint(config.vocab_size, (1, before), generator=generator)
    more = torch.randint(config.vocab_size, (3, 60), generator=generator)
    state = network.new_state(1)
    run(network, past, [before], state=state)
    with torch.no_grad():
        whole = network(torch.cat([past.expand(3, -1), more], 1))[:, before:]
    branches = shared(network, state)
    found = run(network, more[:, :40], [2, 1, 1, 30, 6], state=branches)
    assert torch.allclose(found, whole[:, :40], atol=1e-9, rtol=0)
    chosen = torch.tensor([2, 0])
    fewer = branch(branches, chosen, network.new_state(2), 3)
    found = run(network, more[chosen, 40:], [1, 1, 18], state=fewer)
    assert torch.allclose(found, whole[chosen, 40:], atol=1e-9, rtol=0)
    # a state of its own can be made of it, and what was shared has not changed
    copied = branches.rows(chosen, network.new_state(2))
    assert torch.allclose(run(network, more[chosen, 40:], [20], state=copied), whole[chosen, 40:], atol=1e-9, rtol=0)
    assert torch.allclose(run(network, more[:1], [60], state=state), whole[:1], atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precision(dtype):
    torch.manual_seed(0)
    network = CONFIGS["v2"].build().eval()
    past, more = torch.randint(30, (1, 40)), torch.randint(30, (3, 6))
    state = network.new_state(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        run(network, past, [40], state=state)
        copied = run(network, more, [5, 1], state=state.rows(torch.tensor(PLACES), network.new_state(3)))
        found = run(network, more, [5, 1], state=shared(network, state))
    assert found.dtype == copied.dtype
    assert (found - copied).abs().max() <= (1e-4 if dtype == torch.float32 else 0.05) * copied.abs().max()


def test_a_long_past_is_held_once(build):
    network = build(CONFIGS["v2"]).eval()
    state = network.new_state(1)
    run(network, torch.zeros(1, 200, dtype=torch.long), [200], state=state)
    pairs = shared(network, state, [0] * 50).parts["blocks.0.contextual.long"].pairs
    whole = state.parts["blocks.0.contextual.long"].pairs
    assert pairs.common[0].data_ptr() == whole.buffers[0].data_ptr()
    assert pairs.buffers[0].shape[2] < 10
