"""What is an error of the connection among processes, and what is not."""

from datetime import timedelta

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from mm_lightning.errors import UserError
from mm_lightning.ranges import accept
from mm_lightning.training.command_options import option_types
from mm_lightning.training.lightning_internals import set_process_timeout
from mm_lightning.training.timeouts import lost_contact


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
    set_process_timeout(strategy, timedelta(seconds=90))
    assert strategy._timeout == timedelta(seconds=90)
    set_process_timeout(SingleDeviceStrategy(), timedelta(seconds=90))
    with pytest.raises(UserError, match="communication_timeout"):
        accept(option_types()[""]["communication_timeout"], 0, "communication_timeout")
