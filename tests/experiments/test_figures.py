"""Figures of reports: colors of networks, curves of losses, labels inside."""

from pathlib import Path

import pytest
from fake_results import network, write_qa
from fake_runs import curve, write_run, write_sweep
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from mm_lightning.experiments.evaluated.evaluation_report import parts
from mm_lightning.experiments.evaluated.evaluations import Network
from mm_lightning.experiments.evaluated.load_results import load_results
from mm_lightning.experiments.figures import draw, smoothed
from mm_lightning.experiments.network_looks import COLORS, looks_of
from mm_lightning.experiments.page import Drawing
from mm_lightning.experiments.read_study import read_study
from mm_lightning.experiments.statistics import summarize

LONG_NAME = "a-variant-whose-name-says-all-that-was-changed-in-it-and-more-" * 3


def clipped(figure) -> list[str]:
    """The texts of a figure that reach over its edge."""
    FigureCanvasAgg(figure).draw()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    unseen = list(not_drawn(figure))
    boxes = {text.get_text(): text.get_window_extent() for text in texts if text not in unseen}
    edge = figure.bbox
    return [t for t, box in boxes.items() if min(box.x0, box.y0, edge.x1 - box.x1, edge.y1 - box.y1) < -1]


def not_drawn(figure):
    """Texts of hidden axes, and tick labels outside the limits of their axis."""
    for axes in figure.axes:
        inside = axes.get_window_extent()
        if not axes.get_visible():
            yield from axes.findobj(Text)
        for axis, low, high, n in ((axes.xaxis, *inside.intervalx, 0), (axes.yaxis, *inside.intervaly, 1)):
            for label in axis.get_ticklabels(which="both"):
                if not low - 1 <= label.get_window_extent().get_points()[:, n].mean() <= high + 1:
                    yield label


def test_runs_and_evaluations_draw_a_network_in_the_same_color(tmp_path):
    paths = {name: tmp_path / name for name in ("b", "a", "c")}
    for path in paths.values():
        write_run(path, curve({10: 3.0, 20: 2.5}))
    study = read_study(list(paths.values()))
    named = {"b": "mosaic", "a": "transformer", "c": "another"}
    networks = [
        Network(name, name, {"run_folder": str(paths[key]), "weights": key, "step": 20}) for key, name in named.items()
    ]
    trained, evaluated, both = looks_of(study=study), looks_of(networks), looks_of(networks, study)
    for number, key in enumerate(("a", "b", "c")):  # by the names of the folders, whatever comes first
        asked = next(n for n in networks if n.name == named[key])
        assert trained[key]["color"] == evaluated[asked]["color"] == both[key]["color"] == COLORS[number]
        assert both[asked] == both[key]


def test_checkpoints_removed_memories_and_settings_given_after_training():
    def asked(name, step=20, **about):
        return Network(name, name, {"run_folder": "runs/a", "weights": step, "step": step, **about})

    whole, removed, early = asked("whole"), asked("removed", long_term=False), asked("early", step=10)
    other = Network("x", "x", {"weights": 1})
    extended = asked("with YaRN")
    looks = looks_of([early, removed, whole, extended, other])
    assert looks[whole]["linestyle"] == "-"
    assert looks[removed] == {**looks[whole], "linestyle": "--"}
    assert looks[extended] == {**looks[whole], "linestyle": ":"}
    assert looks[early]["color"] == COLORS[2]  # after all last ones


def test_losses_of_training_and_validation(tmp_path):
    lines = curve({10: 3.0, 20: 2.0}) + [{"step": n, "train/loss": 4 - n / 10, "train/tokens": 10 * n} for n in (5, 15)]
    write_run(tmp_path / "run", sorted(lines, key=lambda line: line["step"]))
    study = read_study([tmp_path / "run"])
    losses = next(d for d in draw(study, summarize(study), looks_of(study=study)) if d.name == "loss-tokens")
    assert losses.png.startswith(b"\x89PNG")
    axes = losses.figure.axes[0]
    drawn = {tuple(line.get_xdata()): tuple(line.get_ydata()) for line in axes.lines}
    assert drawn[50, 100, 150, 200] == (3.5, 3.0, 2.5, 2.0)
    assert drawn[100, 200] == (3.0, 2.0)
    assert [axes.get_xlabel(), axes.get_ylabel()] == ["training tokens", "loss, nats per token"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["run", "training loss", "validation loss"]


def test_running_means():
    assert smoothed([1.0, 2.0]) == [1.0, 2.0]
    assert smoothed([float(n) for n in range(40)])[:4] == [0.0, 0.5, 1.5, 2.5]


@pytest.mark.parametrize("names", [("base", "other"), ("base", LONG_NAME)])
def test_labels_of_runs_are_not_clipped(tmp_path, names):
    axes = {"documents": [1, 1000, 1000000]}
    runs = [
        {"variant": f"{name}{n}", "seed": s, "lines": curve({10: 3.0, 20: 2 + s / 9}), "values": {"documents": n}}
        for name in names
        for n in axes["documents"]
        for s in (1, 2)
    ]
    study = read_study([write_sweep(tmp_path / "s", runs, axes=axes)])
    drawings = draw(study, summarize(study), looks_of(study=study))
    assert len(drawings) > 4
    assert {d.name: clipped(d.figure) for d in drawings} == {d.name: [] for d in drawings}
    narrow = {d.name: a.get_window_extent().width for d in drawings for a in d.figure.axes}
    assert min(narrow.values()) > 100, narrow  # pixels left for the curves


@pytest.mark.parametrize("name", ["v2", LONG_NAME])
def test_labels_of_evaluations_are_not_clipped(tmp_path, name):
    for key in (name, "other"):
        write_qa(tmp_path, key, network(key), {"qa_1": [400, 300], "qa_2": [200, 100]})
    drawings = [part for part in parts(load_results([Path(tmp_path)])) if isinstance(part, Drawing)]
    assert drawings
    assert {d.name: clipped(d.figure) for d in drawings} == {d.name: [] for d in drawings}
