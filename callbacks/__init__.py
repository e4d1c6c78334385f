"""Callbacks that watch, save or evaluate a run: one concern a file, each named in YAML in one line.

trainer:
  callbacks:
    - class_path: Checkpoints
      init_args: {every_n_steps: 500}
"""

from typing import Any

from mm_lightning.callbacks.accuracy import Accuracy
from mm_lightning.callbacks.bad_step_guard import BadStepGuard
from mm_lightning.callbacks.checkpoints import Checkpoints
from mm_lightning.callbacks.evaluation import Evaluation
from mm_lightning.callbacks.gradient_norm import GradientNorm
from mm_lightning.callbacks.memory_statistics import MemoryStatistics
from mm_lightning.callbacks.preemption import Preemption
from mm_lightning.callbacks.profiler import Profiler
from mm_lightning.callbacks.progress import Progress
from mm_lightning.callbacks.regbench import RegBench
from mm_lightning.callbacks.retrieval_profile import RetrievalProfile
from mm_lightning.callbacks.samples import Samples
from mm_lightning.callbacks.summary import Summary
from mm_lightning.callbacks.throughput import Throughput
from mm_lightning.callbacks.watchdog import Watchdog
from mm_lightning.renamed import current_attribute

__all__ = [
    "Accuracy",
    "BadStepGuard",
    "Checkpoints",
    "Evaluation",
    "GradientNorm",
    "MemoryStatistics",
    "Preemption",
    "Profiler",
    "Progress",
    "RegBench",
    "RetrievalProfile",
    "Samples",
    "Summary",
    "Throughput",
    "Watchdog",
]


def __getattr__(name: str) -> Any:
    return current_attribute(__name__, name)
