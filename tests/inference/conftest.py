import pytest
from byte_networks import network, tokenizer  # noqa: F401
from spaced_tokenizers import spaced_tokenizer


@pytest.fixture(scope="session", params=["metaspace", "llama2", "wordpiece"])
def spaced(request, tmp_path_factory):
    """Each of them."""
    return spaced_tokenizer(request.param, tmp_path_factory.mktemp(request.param))
