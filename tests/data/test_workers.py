"""Loader workers do not keep the process that they load for from ending."""

import os
import subprocess
import sys

LEFT = """
from mm_lightning.data.workers import Worker, start_server

if __name__ == "__main__":
    start_server()
    worker = Worker(0, len)
    worker.ask([0, 0, 0])
    print(worker.receive(60))
"""


def test_a_process_ends_that_still_has_workers(tmp_path):
    """As after an error, which keeps the loader alive. Without a finaliser it would wait for its workers for ever."""
    script = tmp_path / "left.py"
    script.write_text(LEFT)
    path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3\n"
