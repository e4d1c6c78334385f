"""Retrieval weight by distance during training: Figure 1 of the v2 paper."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Annotated

from lightning.pytorch import Trainer

from mm_lightning.callbacks.after_validation import OnValidationBatch
from mm_lightning.console import say
from mm_lightning.errors import UserError
from mm_lightning.networks import Network
from mm_lightning.ranges import AtLeastTwo, Count, Range, accept, checked
from mm_lightning.style import figure_of, profile_axes
from mm_lightning.training.lightning_internals import find_datamodule
from mm_lightning.training.loggers import tensorboard_tag, tensorboards
from mm_lightning.training.module import LanguageModule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mm_lightning.inspection.profile import Profile


class RetrievalProfile(OnValidationBatch):
    """Draw the mean retrieval weight by distance after each validation, as TensorBoard figure
    `watch_retrieval_profile/LEVEL`: a line for each block, the mean over its heads. Further callbacks of this kind
    write `watch_retrieval_profile/2/LEVEL` and so on.

    The queries are those of validation sequences that at least `distances` - 1 tokens of their document precede.
    Needs matplotlib: `pip install -c constraints.txt -e ".[report]"`.

    Args:
        sequences: number of validation sequences.
        distances: number of distances, in tokens, from 0 on; half the context by default.
    """

    @checked()
    def __init__(self, sequences: Count = 4, distances: AtLeastTwo | None = None) -> None:
        if importlib.util.find_spec("matplotlib") is None:
            raise UserError("RetrievalProfile needs matplotlib: pip install 'mm-lightning[report]', or leave it out")
        super().__init__(sequences)
        self.distances = distances

    def setup(self, trainer: Trainer, pl_module: LanguageModule, stage: str) -> None:
        """Check that the context is as long as `distances`."""
        data = find_datamodule(trainer)
        if self.distances is not None and data is not None:
            accept(Annotated[int, Range(2, data.context_length)], self.distances, "RetrievalProfile: distances")

    def inspect(self, trainer: Trainer, network: Network) -> None:
        """Draw the figures of all levels."""
        from mm_lightning.inspection.profile import retrieval_profile

        batch = self.batch
        assert batch is not None
        distances = self.distances or max(2, batch.tokens.shape[1] // 2)
        profile = retrieval_profile(network, batch.tokens, batch.documents, distances)
        if not profile.queries:
            why = (
                f"the first {len(batch)} validation sequences have no document of {distances} tokens; set more "
                f"sequences, or fewer distances, of RetrievalProfile"
            )
            say(f"no retrieval profile: {why if profile.mean() else 'the network reads no stored pairs'}")
            return
        tag = tensorboard_tag(self.unique_tag("retrieval_profile", trainer))
        for board in tensorboards(trainer):
            for level, figure in draw(profile).items():
                board.add_figure(f"{tag}/{level}", figure, trainer.global_step)


def draw(profile: Profile) -> dict[str, Figure]:
    """Return a figure for each level: a line for each block, over the distances that have a weight."""
    from matplotlib import colormaps

    figures = {}
    for level, mean in profile.mean().items():  # (L, H, distances)
        figure, axes = figure_of(6, 4)
        blocks = mean.mean(1)
        for layer, weights in enumerate(blocks):
            read = weights.nonzero()[:, 0]
            color = colormaps["viridis"](layer / max(1, len(blocks) - 1) * 0.9)
            axes.plot(read.clamp(min=0.5), weights[read], color=color, linewidth=1.2, label=f"block {layer}")
        profile_axes(axes, mean.shape[-1])
        if blocks[:, 0].any():
            axes.set_xlabel("tokens back (0.5: the query itself)")
        axes.set_title(f"{level}: mean over {profile.queries:,} queries and {mean.shape[1]} heads", fontsize=10)
        axes.legend(frameon=False, fontsize=7, ncols=2)
        figures[level] = figure
    return figures
