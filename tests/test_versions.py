"""The lock: one version for everything, inside the bounds of pyproject.toml, and what is said of other versions."""

import importlib.metadata
import itertools
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mm_lightning import versions
from mm_lightning.cli import main
from mm_lightning.versions import mismatched_torchvision, normalized, untested_versions

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
DIRECT = [Requirement(text) for text in dict.fromkeys([*PROJECT["dependencies"], *itertools.chain(*EXTRAS.values())])]


def required(requirement: Requirement, seen: set[str]) -> set[str]:
    """Return the normalized names of a package and of all that it brings on this machine, as installed here."""
    name = normalized(requirement.name)
    found = {name}
    try:
        needs = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return found
    for need in map(Requirement, needs):
        wanted = (
            [need.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)] if need.marker else [True]
        )
        key = f"{normalized(need.name)}[{','.join(sorted(need.extras))}]"
        if any(wanted) and key not in seen:
            seen.add(key)
            found |= required(need, seen)
    return found


def test_the_lock_is_names_and_versions_only():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.!]*", line)] == []
    names = [normalized(line.partition("==")[0]) for line in lines]
    assert len(set(names)) == len(names)
    assert "mm-lightning" not in names


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_the_lock_lies_within_the_bounds(requirement):
    if requirement.name != PROJECT["name"]:
        assert requirement.specifier.contains(versions.tested_versions()[normalized(requirement.name)])


@pytest.mark.skipif(bool(untested_versions()), reason="other versions than the locked ones may bring other packages")
def test_the_lock_holds_everything_that_the_extras_bring():
    everything = required(Requirement("mm-lightning[dev]"), set())
    assert everything - set(versions.tested_versions()) == {"mm-lightning"}


def test_all_extras_are_in_the_one_for_development():
    (of_ours,) = [Requirement(text) for text in EXTRAS["dev"] if text.startswith("mm-lightning")]
    assert of_ours.extras == set(EXTRAS) - {"dev"}


def test_the_locked_torchvision_is_of_the_locked_torch():
    torch, torchvision = [versions.tested_versions()[name].split(".") for name in ("torch", "torchvision")]
    assert (torch[0], torchvision[0]) == ("2", "0")
    assert int(torchvision[1]) == int(torch[1]) + 15


def test_the_package_ships_the_lock():
    assert versions.TESTED.read_bytes() == (ROOT / "constraints.txt").read_bytes()


def test_other_versions_are_named(monkeypatch, capsys):
    installed = {**versions.tested_versions(), "lightning": "2.6.7"}
    monkeypatch.setattr(versions, "installed_versions", lambda: installed)
    assert untested_versions() == {"lightning": ("2.6.7", versions.tested_versions()["lightning"])}
    assert main(["--version"]) == 0
    assert re.search(rf"lightning +2\.6\.7, tested {versions.tested_versions()['lightning']}", capsys.readouterr().out)


def test_the_tested_versions_are_said_to_be(monkeypatch, capsys):
    monkeypatch.setattr(versions, "installed_versions", versions.tested_versions)
    assert main(["--version"]) == 0
    assert "tested versions" in capsys.readouterr().out.splitlines()[1]


def test_a_local_part_of_a_version_is_no_difference():
    assert all("+" not in version for version in versions.installed_versions().values())


def test_torch_and_torchvision_of_two_releases_are_named(monkeypatch, capsys):
    monkeypatch.setattr(versions, "installed_versions", lambda: {"torch": "2.13.0", "torchvision": "0.29.1"})
    wrong = mismatched_torchvision()
    assert "2.13.0" in wrong
    assert "0.29.1" in wrong

    def broken(args):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("mm_lightning.cli.dispatch", broken)
    assert main(["fit"]) == 2
    assert wrong in capsys.readouterr().err
    monkeypatch.setattr(versions, "installed_versions", lambda: {"torch": "2.14.1", "torchvision": "0.29.1"})
    assert mismatched_torchvision() is None
    with pytest.raises(RuntimeError, match="nms"):
        main(["fit"])
