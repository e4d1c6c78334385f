"""End the process that started this one when it gives no sign of life, as when it is stuck outside Python.

Run as a program by the Watchdog, with nothing but the standard library; no thread of the stuck process could do it.

    python -I -S stuck_process.py PID LIMIT INTERVAL SIGNAL      (a byte on standard input is a sign of life)
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time

DEAF_TO = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def stopped(process: int) -> bool:
    """Return whether a process is stopped by a signal or a debugger, where the system says so in /proc."""
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False


def watch(process: int, limit: float, interval: float, dump: int) -> None:
    """Return when the process has ended or is not to be watched any more; end it after `limit` seconds without a sign.

    Only seconds in which this process was awake count, and the other one was not stopped.

    Args:
        process: the one that started this one.
        limit: seconds.
        interval: seconds between two looks.
        dump: the signal at which the process prints its stacks.
    """
    silent = 0.0
    while silent <= limit:
        ready, _, _ = select.select([0], [], [], interval)
        if os.getppid() != process or (ready and not os.read(0, 4096)):
            return
        if ready:
            silent = 0.0
        elif not stopped(process):
            silent += interval
    with contextlib.suppress(OSError):
        line = f"mm: no sign of life for {silent:.0f} s (Watchdog): process {process} is stuck outside Python and is "
        os.write(2, f"{line}ended; --resume goes on from the newest checkpoint. Its stacks:\n".encode())
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, dump)
        time.sleep(2)
        os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    for number in DEAF_TO:
        signal.signal(number, signal.SIG_IGN)
    watch(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
