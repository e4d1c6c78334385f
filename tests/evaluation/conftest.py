import pytest
from byte_networks import CONFIGS, tokenizer  # noqa: F401
from saved_networks import save


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Run folders v2/0, v1/0 and transformer/0."""
    root = tmp_path_factory.mktemp("runs")
    for name in CONFIGS:
        save(name, root / name / "0" / "checkpoints")
    return root
