"""Tests of kernels for a GPU, which Triton's interpreter runs where there is none."""

import os
import subprocess
import sys

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on_either(test):
    """Selected by `-m gpu`, or by an interpreter's environment."""
    return test if INTERPRETED else pytest.mark.gpu(no_gpu(test))


def through_the_interpreter(files, count):
    """Runs the tests of files that have `agree` in their name, so many, in a process of its own: Triton asks for the
    variable when it is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-k", "agree", *files]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    if "only 0-dimensional arrays can be converted" in found.stdout:
        pytest.skip("the interpreter of Triton 3.6 wants numpy < 2.4")
    assert found.returncode == 0, found.stdout
    assert f"{count} passed" in found.stdout
