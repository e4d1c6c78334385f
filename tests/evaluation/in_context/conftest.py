from pathlib import Path

import pytest

DATA = Path(__file__).parents[4] / "shared" / "data"
"""Real data beside the project."""


@pytest.fixture
def data():
    """The folder of real data."""
    if not DATA.is_dir():
        pytest.skip("no real data beside the project (../shared/data)")
    return DATA
