import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The tensors of these tests are small: more threads only wait for each other."""
    torch.set_num_threads(1)
