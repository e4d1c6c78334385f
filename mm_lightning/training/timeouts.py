"""The error of a run that has lost contact with one of its processes."""

from __future__ import annotations

import re

from mm_lightning.errors import UserError

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
