"""What is an error of the connection among processes, and what is not."""

from datetime import timedelta

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from mm_lightning.errors import UserError
from mm_lightning.training.timeouts import lost_contact, set_timeout


@pytest.mark.parametrize(
    "message",
    [
        "[gloo/transport/tcp/pair.cc:561] Connection closed by peer [10.0.0.2]:472",
        "[gloo/transport/tcp/pair.cc:545] Read error [10.0.0.2]:3224: Connection reset by peer",
        "Timed out waiting 10000ms for recv operation to complete",
        "Application timeout caused pair closure",
        "NCCL error: remote process exited or there was a network error",
    ],
)
def test_lost(message):
    found = lost_contact(RuntimeError(message), 10)
    assert isinstance(found, UserError)
    assert message in str(found)
    assert "communication_timeout (10 s)" in str(found)


def test_errors_of_torch_distributed_are_known_by_their_type():
    assert lost_contact(torch.distributed.DistStoreError("anything"), 1)


@pytest.mark.parametrize(
    "message", ["mat1 and mat2 shapes cannot be multiplied", "CUDA out of memory", "time is out of range"]
)
def test_other_errors_stay_what_they_are(message):
    assert lost_contact(RuntimeError(message), 1) is None


def test_the_limit_is_the_process_groups():
    strategy = DDPStrategy()
    set_timeout(strategy, 90)
    assert strategy._timeout == timedelta(seconds=90)
    set_timeout(SingleDeviceStrategy(), 90)
    with pytest.raises(UserError, match="above 0 seconds"):
        set_timeout(strategy, 0)
