"""A logger of Trackio, for which Lightning has none."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from mm_lightning.ranges import Name, checked


class TrackioLogger(Logger):
    """Log to Trackio: a database on this machine that `trackio show` displays, or a Space of the Hugging Face Hub.

    Args:
        project: the project of the run.
        run: the run's name; null lets Trackio choose one.
        options: further arguments of trackio.init, such as {space_id: ORG/SPACE}.
    """

    @checked("trainer.logger: ")
    def __init__(self, project: Name, run: Name | None = None, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.project, self.run, self.options = project, run, {"resume": "never", **(options or {})}
        self._run: Any = None

    @property
    def name(self) -> str:
        """The project."""
        return self.project

    @property
    def version(self) -> str | None:
        """The name of the run; None before it begins, unless the config has one."""
        return self.run

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run, which begins with the first use."""
        if self._run is None:
            import trackio

            self._run = trackio.init(self.project, name=self.run, **self.options)
            self.go_on(self._run.name)
        return self._run

    def go_on(self, run: str) -> None:
        """Continue a run from here on, unless the config names another."""
        if self.run in (None, run):
            self.run = run
            self.options["resume"] = "allow"

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Add a run's settings to its config."""
        self.experiment.config.update(dict(params))

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log the value of each metric."""
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is still waiting, and end the run."""
        if self._run is not None:
            self._run.finish()
            self._run = None
