"""Ctrl-C while a library that does not look at signals is at work."""

import itertools
import os
import signal
import threading

import pytest

from mm_lightning.data.interruptible import interruptible
from mm_lightning.data.tokenizer_training import train_tokenizer
from mm_lightning.errors import UserError


def test_results_and_errors_come_through():
    assert interruptible(lambda: 3) == 3
    with pytest.raises(UserError, match="bad"):
        interruptible(lambda: (_ for _ in ()).throw(UserError("bad")))


def test_an_interrupt_does_not_wait_for_the_end():
    begun, end, done = threading.Event(), threading.Event(), threading.Event()

    def works():
        begun.set()
        os.kill(os.getpid(), signal.SIGINT)
        end.wait()
        done.set()

    with pytest.raises(KeyboardInterrupt):
        interruptible(works)
    assert begun.is_set()
    assert not done.is_set()
    end.set()


def test_training_a_tokenizer_on_texts_without_end_is_interrupted(tmp_path):
    def texts():
        for n in itertools.count():
            if n == 1000:
                os.kill(os.getpid(), signal.SIGINT)
            yield f"text {n}"

    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(texts(), 300, tmp_path / "tokenizer.json", progress=False)
    assert not list(tmp_path.iterdir())
