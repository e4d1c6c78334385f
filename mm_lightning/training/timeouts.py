"""The connection between the processes of a run: how long it may be silent, and what is said when it breaks."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from mm_lightning.errors import UserError

_SIGNS = (
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


def set_timeout(strategy: Any, seconds: float) -> None:
    """Lets every operation among a run's processes, their first meeting included, take so long and no longer.

    Raises:
        UserError: not a positive time.
    """
    if seconds <= 0:
        raise UserError(f"communication_timeout must be above 0 seconds, got {seconds}")
    if hasattr(strategy, "_timeout"):  # strategies of one process have none
        strategy._timeout = timedelta(seconds=seconds)


def limit_groups(limit: timedelta) -> None:
    """Gives a time limit to all groups of processes: those made by libraries begin with torch's 10 or 30 minutes."""
    from torch.distributed import distributed_c10d

    # its name before torch 2.15 is deprecated since
    set_group = getattr(distributed_c10d, "set_timeout", None) or distributed_c10d._set_pg_timeout
    for group in list(distributed_c10d._world.pg_map):
        set_group(limit, group)


def lost_contact(error: RuntimeError, seconds: float) -> UserError | None:
    """One line for an error of the communication among processes; None for any other error."""
    from torch.distributed import DistError

    message = " ".join(str(error).split())
    if not isinstance(error, DistError) and not re.search("|".join(_SIGNS), message, re.IGNORECASE):
        return None
    return UserError(
        f"lost contact with another process of this run ({message[:200]}): it has died, its node cannot be reached, or "
        f"it was silent for communication_timeout ({seconds:g} s). Its own log says more; `--resume` goes on from the "
        f"newest checkpoint"
    )
