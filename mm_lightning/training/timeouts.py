"""The timeout of communication between the processes of a run, and the error when one is lost."""

from __future__ import annotations

import re
from datetime import timedelta

from lightning.pytorch.strategies import Strategy

from mm_lightning.errors import UserError
from mm_lightning.training.lightning_internals import set_process_timeout

_SYMPTOMS = (
    r"timed? ?out.{0,20} (after|waiting|for)",
    r"connection (closed|reset|refused)",
    r"broken pipe",
    r"timeout caused pair closure",
    r"no route to host",
    r"network is unreachable",
    r"clients joined",
    r"socket (closed|has timed out)",
    r"NCCL .*(remote process|unhandled system error|network)",
    r"name or service not known",
)


def set_timeout(strategy: Strategy, seconds: float) -> None:
    """Set the timeout of every operation among a run's processes, the first connection included.

    Raises:
        UserError: not a positive time.
    """
    if seconds <= 0:
        raise UserError(f"communication_timeout must be above 0 seconds, got {seconds}")
    set_process_timeout(strategy, timedelta(seconds=seconds))


def lost_contact(error: RuntimeError, seconds: float) -> UserError | None:
    """Return the message for an error of communication between processes; None for any other error."""
    from torch.distributed import DistError

    message = " ".join(str(error).split())
    if not isinstance(error, DistError) and not re.search("|".join(_SYMPTOMS), message, re.IGNORECASE):
        return None
    return UserError(
        f"lost contact with another process of this run ({message[:200]}): it has died, its node cannot be reached, or "
        f"it was silent for communication_timeout ({seconds:g} s). Its own log says more; `--resume` goes on from the "
        f"newest checkpoint"
    )
