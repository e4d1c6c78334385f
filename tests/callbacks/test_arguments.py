"""Every argument of every callback of ours is checked when the callback is made, or before the first step."""

import math
import re
import typing
from types import SimpleNamespace

import pytest

from mm_lightning import callbacks
from mm_lightning.errors import UserError

NEEDED = {"Evaluation": {"tasks": "loss_by_position"}, "Samples": {"prompt": "a"}}
NUMBERS = [
    (name, key, "int" if "int" in str(kind) else "float")
    for name, callback in vars(callbacks).items()
    if isinstance(callback, type)
    for key, kind in typing.get_type_hints(callback.__init__).items()
    if re.search(r"\b(int|float)\b", str(kind))
]


def make(name: str, **arguments):
    return getattr(callbacks, name)(**{**NEEDED.get(name, {}), **arguments})


def test_all_numbers_are_found():
    assert {name for name, _, _ in NUMBERS} == {
        *("Checkpoints", "Evaluation", "BadStepGuard", "MemoryStatistics"),
        *("Profiler", "RetrievalProfile", "Samples", "Watchdog"),
    }


@pytest.mark.parametrize(("name", "key", "kind"), NUMBERS)
def test_nonsense_for_a_number(name, key, kind):
    for value in (-1, math.nan, math.inf, -math.inf, "few", [], *([1.5] if kind.startswith("int") else [])):
        with pytest.raises(UserError) as error:
            make(name, **{key: value})
        message = str(error.value)
        assert message.startswith(f"{name}: "), message
        assert key in message
        assert str(value) in message


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("Checkpoints", {"best_mode": "least"}, "best_mode takes one of min, max, got 'least'"),
        ("Checkpoints", {"on_failure": "cry"}, "on_failure takes one of stop, continue, got 'cry'"),
        ("Evaluation", {"tasks": []}, "tasks names nothing to ask"),
        ("Evaluation", {"tasks": ["nope"]}, "there is no task 'nope'"),
        ("Evaluation", {"settings": {"limit": 0}}, "limit takes a whole number of at least 1"),
        ("Evaluation", {"settings": {"contexs": [64]}}, "contexs is for none of the tasks"),
        ("Evaluation", {"at_end": False}, "never evaluates: set every_n_steps, every_n_tokens or at_end"),
        ("Evaluation", {"every_n_steps": 1, "every_n_tokens": 2}, "give one of every_n_steps and every_n_tokens"),
        ("Evaluation", {"batch_size": 0}, "batch_size takes a whole number of at least 1, got 0"),
        ("BadStepGuard", {"on_bad_step": "ignore"}, "on_bad_step takes one of skip, rollback, stop"),
        ("BadStepGuard", {"window": 3}, "window takes a whole number of at least 4 and at most 1,000,000, got 3"),
        ("BadStepGuard", {"window": 10**13}, "at most 1,000,000"),
        ("BadStepGuard", {"patience": 0}, "patience takes a whole number of at least 1, got 0"),
        ("MemoryStatistics", {"every_n_steps": 0}, "every_n_steps takes a whole number of at least 1, got 0"),
        ("Profiler", {"first": 0}, "first takes a whole number of at least 1, got 0"),
        ("RetrievalProfile", {"sequences": 0}, "sequences takes a whole number of at least 1, got 0"),
        ("RetrievalProfile", {"distances": 1}, "distances takes a whole number of at least 2, got 1"),
        ("Samples", {"prompt": 3}, "prompt takes a text"),
        ("Samples", {"tokens": 0}, "tokens takes a whole number of at least 1, got 0"),
        ("Samples", {"top_p": 2.0}, "top_p takes a number above 0 and at most 1, got 2.0"),
        ("Watchdog", {"minutes": 0}, "minutes takes a number above 0 and at most 525,600, got 0"),
        ("Watchdog", {"minutes": 1e12}, "at most 525,600"),
    ],
)
def test_nonsense(name, arguments, words):
    with pytest.raises(UserError) as error:
        make(name, **arguments)
    assert str(error.value).startswith(f"{name}: ")
    assert words in str(error.value)


def test_what_depends_on_data_or_on_other_callbacks_is_checked_at_the_setup():
    data = SimpleNamespace(context_length=32)
    profile, one, two = make("RetrievalProfile", distances=33), make("Evaluation"), make("Evaluation")
    trainer = SimpleNamespace(datamodule=data, callbacks=[profile, one, two])
    with pytest.raises(UserError, match=r"RetrievalProfile: distances takes .* at most 32, got 33"):
        profile.setup(trainer, None, "fit")
    with pytest.raises(UserError, match="Evaluation: two callbacks run loss_by_position"):
        one.setup(trainer, None, "fit")
    trainer.callbacks.remove(two)
    one.setup(trainer, None, "fit")
