"""The callbacks of a run."""

from mm_lightning.callbacks import BadStepGuard, Checkpoints, Samples
from mm_lightning.training.run_trainer import last_of_each, run_callbacks


def test_of_callbacks_that_a_run_has_once_the_last_counts():
    """An overlay adds to the list of its config: two Checkpoints would delete each other's."""
    first, second, guard = Checkpoints(every_n_steps=10), Checkpoints(every_n_steps=20), BadStepGuard()
    samples = [Samples(), Samples()]
    assert last_of_each([first, *samples, guard, second]) == [*samples, guard, second]
    assert first not in run_callbacks({"callbacks": [first, second], "enable_progress_bar": False}, None, None)
