"""Callbacks that watch, save or evaluate a run: one concern a file, each named in YAML in one line.

trainer:
  callbacks:
    - class_path: Checkpoints
      init_args: {every_n_steps: 500}
"""

from mm_lightning.callbacks.accuracy import Accuracy as Accuracy
from mm_lightning.callbacks.bad_step_guard import BadStepGuard as BadStepGuard
from mm_lightning.callbacks.checkpoints import Checkpoints as Checkpoints
from mm_lightning.callbacks.evaluation import Evaluation as Evaluation
from mm_lightning.callbacks.gradient_norm import GradientNorm as GradientNorm
from mm_lightning.callbacks.memory_statistics import MemoryStatistics as MemoryStatistics
from mm_lightning.callbacks.preemption import Preemption as Preemption
from mm_lightning.callbacks.profiler import Profiler as Profiler
from mm_lightning.callbacks.progress import Progress as Progress
from mm_lightning.callbacks.regbench import RegBench as RegBench
from mm_lightning.callbacks.retrieval_profile import RetrievalProfile as RetrievalProfile
from mm_lightning.callbacks.samples import Samples as Samples
from mm_lightning.callbacks.summary import Summary as Summary
from mm_lightning.callbacks.throughput import Throughput as Throughput
from mm_lightning.callbacks.watchdog import Watchdog as Watchdog
from mm_lightning.renamed import current_attribute


def __getattr__(name: str) -> object:
    return current_attribute(__name__, name)
