"""Torchmetrics' root without its metrics of images, sound and text, and with each public name nevertheless."""

import logging
import sys

import pytest

from mm_lightning import lazy_torchmetrics
from mm_lightning.cli import main
from mm_lightning.lazy_torchmetrics import import_lazily


@pytest.fixture
def forgotten(monkeypatch):
    """The real torchmetrics, which the test finds not imported yet."""
    import torchmetrics

    monkeypatch.setattr(logging.getLogger("torchmetrics"), "handlers", [])
    for name in loaded():
        monkeypatch.delitem(sys.modules, name)
    yield torchmetrics
    for name in loaded():
        del sys.modules[name]


def loaded():
    return [name for name in sys.modules if name.split(".")[0] == "torchmetrics"]


def test_what_lightning_needs_imports_no_other_metric(forgotten):
    import_lazily()
    from torchmetrics import MeanMetric, Metric, MetricCollection

    assert issubclass(MeanMetric, Metric)
    assert MetricCollection({"mean": MeanMetric()})(1.0)["mean"] == 1
    assert {"functional", "image", "audio", "text"}.isdisjoint(word for name in loaded() for word in name.split("."))


def test_all_public_names_are_what_they_were(forgotten):
    import_lazily()
    import torchmetrics

    assert torchmetrics is not forgotten
    assert torchmetrics.__all__ == forgotten.__all__
    assert torchmetrics.__version__ == forgotten.__version__
    for name in forgotten.__all__:
        found, real = getattr(torchmetrics, name), getattr(forgotten, name)
        assert (found.__name__, getattr(found, "__module__", "")) == (real.__name__, getattr(real, "__module__", ""))
    from torchmetrics.text import WordErrorRate

    assert WordErrorRate().compute
    with pytest.raises(ImportError, match="NoSuchMetric"):
        from torchmetrics import NoSuchMetric  # noqa: F401


def test_a_root_of_another_form_is_imported_as_it_is(forgotten, monkeypatch):
    monkeypatch.setattr(lazy_torchmetrics, "import_module", None)
    import_lazily()
    assert loaded() == []


@pytest.mark.parametrize("command", ["fit", "cost"])
def test_training_commands_import_it_so(command, monkeypatch):
    calls = []
    monkeypatch.setattr("mm_lightning.lazy_torchmetrics.import_lazily", lambda: calls.append(1))
    assert main([command, "--config", "nowhere.yaml"]) == 2
    assert calls
