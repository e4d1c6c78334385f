"""Color, marker and dashes of the networks of a report: one assignment for all its figures.

Networks are put in the order of the paths of their run folders, or of their names where no run folder is known, and
take the colors of :data:`COLORS` in this order: reports of `mm evaluate` and `mm report` draw the same networks in the
same colors. A variant of a sweep is one network, whatever its seeds. Earlier checkpoints of a run come after all
others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mm_lightning import style
from mm_lightning.experiments.evaluated.evaluations import Network, last_ones
from mm_lightning.experiments.study import Study

COLORS = (*style.COLORS, "#7b5ea7", "#8b5a2b", "#4d7c3f", "#b04a6e", "#5a7fc0")
"""Colors for more networks than can be told apart by color alone: their markers differ too."""

Looks = Mapping[Network | str, dict[str, Any]]
"""Color, marker and dashes of each evaluated network and of each variant of training runs, by its name."""


def looks_of(networks: Sequence[Network] = (), study: Study | None = None) -> Looks:
    """Return how networks are drawn.

    Networks of the same weights have one color: with the long-term memory removed they are dashed, with other settings
    given after training (YaRN's, for example) dotted.
    """
    places: dict[Network | str, tuple[Any, ...]] = {}
    variants: dict[str, tuple[Any, ...]] = {}  # by run folder
    for variant in study.variants if study else ():
        folders = [_absolute(run.path) for run in study.of(variant, finished=False) if run.path] if study else []
        places[variant] = 0, min(folders, default=variant)
        variants |= dict.fromkeys(folders, places[variant])
    weights: dict[str, tuple[Any, ...]] = {}
    last = last_ones(networks)
    for network in [*last, *networks]:
        folder = network.about.get("run_folder")
        name = _absolute(folder) if folder else network.name
        place = variants.get(name, (0, name)) if network in last else (1, name, network.number("step"))
        places[network] = weights.setdefault(str(network.about.get("weights", network.key)), place)
    order = sorted(set(places.values()))
    looks: dict[Network | str, dict[str, Any]] = {}
    whole: set[tuple[Any, ...]] = set()  # places of networks that are drawn as they were trained
    for network_or_variant, place in places.items():
        number = order.index(place)
        line = "-" if number < len(COLORS) else "-."
        if isinstance(network_or_variant, Network):
            if not network_or_variant.long_term:
                line = "--"
            elif place in whole:
                line = ":"
            else:
                whole.add(place)
        looks[network_or_variant] = {
            "color": COLORS[number % len(COLORS)],
            "marker": style.MARKERS[number % len(style.MARKERS)],
            "linestyle": line,
        }
    return looks


def _absolute(folder: str | Path) -> str:
    return Path(folder).resolve().as_posix()
