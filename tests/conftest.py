import pytest
import torch
from hypothesis import HealthCheck, settings

# The same examples every time, and none is too slow: how fast a machine is, is not what tests are about.
settings.register_profile("plain", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("plain")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The tensors of these tests are small: more threads only wait for each other."""
    torch.set_num_threads(1)
