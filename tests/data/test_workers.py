"""Loader workers do not keep the process that they load for from ending."""

import os
import subprocess
import sys

LEFT = """
import multiprocessing
from torch.utils.data import DataLoader
from mm_lightning.data.workers import prepare_worker, start_server

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    start_server()
    options = {"multiprocessing_context": context, "persistent_workers": True, "worker_init_fn": prepare_worker}
    batches = iter(DataLoader(range(100), num_workers=1, **options))
    print(int(next(batches)))
"""


def test_a_process_ends_that_still_has_workers(tmp_path):
    """As after an error, which keeps the loader alive. Without a finaliser it would wait for its workers for ever."""
    script = tmp_path / "left.py"
    script.write_text(LEFT)
    path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0\n"
