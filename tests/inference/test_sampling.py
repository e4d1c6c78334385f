"""The choice of tokens, against numbers worked out by hand."""

from collections import Counter

import pytest
import torch

from mm_lightning.errors import UserError
from mm_lightning.inference.sampling import Sampler, Sampling, candidates


def probabilities(logits, seen=None, **settings):
    """The probability of each token, for one row of logits."""
    logits = torch.as_tensor(logits, dtype=torch.float32)[None]
    seen = None if seen is None else torch.tensor([seen])
    settings = {"temperature": 1.0, **settings}
    found, tokens = candidates(logits, Sampling(**settings), seen)
    return torch.zeros_like(logits).scatter_(1, tokens, found)[0].tolist()


def test_temperature():
    logits = [0.0, 1.0, 2.0]
    assert probabilities(logits) == pytest.approx([0.0900306, 0.2447285, 0.6652410], abs=1e-6)
    assert probabilities(logits, temperature=0.5) == pytest.approx([0.0158762, 0.1173104, 0.8668133], abs=1e-6)
    assert probabilities(logits, temperature=0) == [0, 0, 1]
    assert probabilities([1000.0, 1001.0], temperature=1e-40) == [0, 1]


SHARES = torch.tensor([0.4, 0.1, 0.3, 0.2]).log()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"top_k": 2}, [4 / 7, 0, 3 / 7, 0]),
        ({"top_k": 99}, [0.4, 0.1, 0.3, 0.2]),
        ({"top_p": 0.7}, [4 / 7, 0, 3 / 7, 0]),
        ({"top_p": 0.71}, [4 / 9, 0, 3 / 9, 2 / 9]),
        ({"top_p": 0.1}, [1, 0, 0, 0]),
        ({"top_p": 1.0}, [0.4, 0.1, 0.3, 0.2]),
        ({"min_p": 0.3}, [4 / 9, 0, 3 / 9, 2 / 9]),
        ({"min_p": 1.0}, [1, 0, 0, 0]),
        ({"min_p": 0.0}, [0.4, 0.1, 0.3, 0.2]),
        # top_p sees what top_k left, 4/9 and 3/9 of which reach 0.75; min_p what both left
        ({"top_k": 3, "top_p": 0.75}, [4 / 7, 0, 3 / 7, 0]),
        ({"top_k": 3, "top_p": 0.99, "min_p": 0.6}, [4 / 7, 0, 3 / 7, 0]),
        # the temperature comes first: squares 16, 1, 9, 4 of 30
        ({"temperature": 0.5, "top_p": 0.6}, [16 / 25, 0, 9 / 25, 0]),
    ],
)
def test_filters(settings, expected):
    assert probabilities(SHARES, **settings) == pytest.approx(expected, abs=1e-6)


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    found = probabilities([2.0, 2.0, -1.0, -1.0], [True, False, True, False], repetition_penalty=2.0)
    assert found == pytest.approx(torch.tensor([1.0, 2.0, -2.0, -1.0]).softmax(0).tolist())
    assert probabilities([2.0, 1.5], [True, False], repetition_penalty=2.0, temperature=0) == [0, 1]


def test_the_penalty_is_for_the_prompt_and_for_what_was_drawn():
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=10.0), [[3, 3], []])
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).repeat(2, 1)
    assert [sampler.draw(logits).tolist() for _ in range(3)] == [[2, 3], [1, 2], [0, 1]]
    sampler.keep([1])
    assert sampler.draw(logits[:1]).tolist() == [0]


def test_draws_follow_the_probabilities():
    """6,000 draws: five standard deviations are below 0.033."""
    sampler = Sampler(Sampling(temperature=1.0, seed=3), [[]] * 200)
    counts = Counter(token for _ in range(30) for token in sampler.draw(SHARES.repeat(200, 1)).tolist())
    assert [counts[n] / 6000 for n in range(4)] == pytest.approx([0.4, 0.1, 0.3, 0.2], abs=0.033)


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.9}])
def test_draws_do_not_depend_on_neighbors(settings):
    logits = torch.randn(5, 9, 30, generator=torch.Generator().manual_seed(0))

    def draws(numbers, seed=1):
        sampler = Sampler(Sampling(seed=seed, **settings), [[]] * len(numbers), numbers)
        return torch.stack([sampler.draw(logits[numbers, step]) for step in range(9)], 1)

    together = draws(range(5))
    assert torch.equal(draws([3, 1]), together[[3, 1]])
    assert not torch.equal(draws(range(5), seed=2), together)
    sampler = Sampler(Sampling(seed=1, **settings), [[]] * 5)
    sampler.draw(logits[:, 0])
    sampler.keep([4, 0])
    assert torch.equal(sampler.draw(logits[[4, 0], 1]), together[[4, 0], 1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature takes a number of at least 0"),
        ({"temperature": float("nan")}, "temperature takes a number of at least 0"),
        ({"top_k": 0}, "top_k takes a whole number of at least 1"),
        ({"top_p": 1.5}, "top_p takes a number above 0 and at most 1"),
        ({"min_p": 1.5}, "min_p takes a number of at least 0 and at most 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty takes a number above 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(UserError, match=message):
        Sampling(**settings)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_diverged_network_is_named(temperature):
    with pytest.raises(UserError, match="not finite"):
        candidates(torch.tensor([[0.0, float("nan")]]), Sampling(temperature=temperature))
