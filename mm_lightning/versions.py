"""Versions of other packages: those that this project is tested with, and how the installed ones differ."""

from __future__ import annotations

import importlib.metadata
import re
from functools import cache
from pathlib import Path

from mm_lightning import __version__

TESTED = Path(__file__).with_name("constraints.txt")
"""The lock: `name==version` a line. In a checkout a link to the file that `pip install -c` takes."""


def normalized(name: str) -> str:
    """Return a package's name as package indexes compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def tested_versions() -> dict[str, str]:
    """Return the tested version of every package, direct or not, by normalized name."""
    lines = TESTED.read_text(encoding="utf-8").splitlines()
    return {normalized(name): version for name, _, version in (line.partition("==") for line in lines) if version}


@cache
def installed_versions() -> dict[str, str]:
    """Return the version of every installed package by normalized name, without local parts such as +cpu."""
    versions: dict[str, str] = {}
    for package in importlib.metadata.distributions():  # the first on the path is the one that is imported
        metadata = package.metadata  # parsed anew at each access
        if metadata["Name"]:
            versions.setdefault(normalized(metadata["Name"]), metadata["Version"].partition("+")[0])
    return versions


def required_versions(package: str) -> str:
    """Return this project's bounds of a package, such as `>=5.0,<5.40`; "" where there are none."""
    from packaging.requirements import Requirement

    try:
        requirements = map(Requirement, importlib.metadata.requires("mm-lightning") or [])
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        return ""
    bounds = {str(bound) for one in requirements if one.name == package for bound in one.specifier}
    return ",".join(sorted(bounds, reverse=True))  # the lower one first


def untested_versions() -> dict[str, tuple[str, str]]:
    """Return (installed, tested) for every package whose installed version is not the tested one."""
    installed = installed_versions()
    return {
        name: (installed[name], tested)
        for name, tested in tested_versions().items()
        if name in installed and installed[name] != tested
    }


def mismatched_torchvision() -> str | None:
    """Return what is wrong where torch and torchvision are not of one release, else None.

    torchvision 0.N is built for torch 2.(N - 15); another torch makes `import torchvision` fail, and with it litdata.
    """
    installed = installed_versions()
    numbers = [re.match(r"(\d+)\.(\d+)", installed.get(name, "")) for name in ("torch", "torchvision")]
    if None in numbers:
        return None
    (torch, torchvision) = [(int(n[1]), int(n[2])) for n in numbers if n]
    if torch[0] != 2 or torchvision[0] != 0 or torchvision[1] == torch[1] + 15:
        return None
    return (
        f"torch {installed['torch']} and torchvision {installed['torchvision']} are not of one release: torch 2.N goes "
        f"with torchvision 0.(N + 15); install the tested pair: pip install -c constraints.txt torch torchvision"
    )


def version_text() -> str:
    """Return what `mm --version` prints: this project's version, and which packages differ from the tested ones."""
    untested = untested_versions()
    lines = [f"mm-lightning {__version__}"]
    if untested:
        lines.append("other versions than the tested ones (constraints.txt):")
        width = max(map(len, untested))
        lines += [f"  {name:<{width}}  {installed}, tested {tested}" for name, (installed, tested) in untested.items()]
    else:
        lines.append("all packages have the tested versions (constraints.txt)")
    if wrong := mismatched_torchvision():
        lines.append(wrong)
    return "\n".join(lines)
