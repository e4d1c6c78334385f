import copy
import functools

import pytest


@pytest.fixture(scope="session")
def resolve_once():
    from mm_lightning.training.parse_fit import resolve_fit

    return functools.cache(lambda *words: resolve_fit(list(words)))


@pytest.fixture
def parsed_once(monkeypatch, resolve_once):
    """Parse the command line of a variant once for all tests, which change no file that such a line names."""
    parse = "mm_lightning.training.parse_fit.resolve_fit"
    monkeypatch.setattr(parse, lambda words: copy.deepcopy(resolve_once(*words)))
