import pytest
from byte_networks import CONFIGS, tokenizer  # noqa: F401
from saved_networks import save


@pytest.fixture
def figures_are_drawn():
    """For tests that look at them."""


@pytest.fixture(autouse=True)
def undrawn_figures(request, monkeypatch):
    """Figures of reports are composed, but not drawn: that takes most of an evaluation's time."""

    def save(figure, file, format, **_):
        file.write("<svg></svg>" if format == "svg" else b"\x89PNG")

    if "figures_are_drawn" not in request.fixturenames:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", save)
        monkeypatch.setattr("mm_lightning.experiments.drawing.enlarge", lambda figure: None)


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Run folders v2/0, v1/0 and transformer/0."""
    root = tmp_path_factory.mktemp("runs")
    for name in CONFIGS:
        save(name, root / name / "0" / "checkpoints")
    return root
