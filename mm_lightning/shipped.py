"""The configs that come with the package, found by name where the user has no such file."""

from __future__ import annotations

from pathlib import Path

from mm_lightning.options import nearest


def configs_folder() -> Path:
    """Return the folder of the shipped configs: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir())


def resolve_config(name: str | Path, group: str = "", beside: Path | None = None) -> Path:
    """Return the path that a config is named by, or the shipped config of that name where the user has no such file.

    `quickstart`, `quickstart.yaml` and `configs/quickstart.yaml` all name the shipped quickstart; `overlays/zero_2`
    names an overlay.

    Args:
        name: a path, or a shipped config's name.
        group: a folder of the shipped configs whose files go without it, as in `mm sweep ablation`.
        beside: the file that names this one: paths are relative to it.
    """
    typed = Path(name).expanduser()
    path = typed if beside is None else beside.parent / typed
    plain = _plain(typed)
    if not path.is_file() and plain.name and not plain.is_absolute() and ".." not in plain.parts:
        for folder in (configs_folder() / group, configs_folder()):
            if (shipped := folder / f"{plain}.yaml").is_file():
                return shipped
    return path


def suggest_config(path: Path) -> str:
    """Return a hint for a config that does not exist: the shipped one of the most similar name, or all of them."""
    folder = configs_folder()
    shipped = [file.relative_to(folder).with_suffix("").as_posix() for file in sorted(folder.rglob("*.yaml"))]
    # by its whole name or its last part: overlays/zero_2 is meant by zero_2 too
    names = {name.rsplit("/", 1)[-1]: name for name in reversed(shipped)} | {name: name for name in shipped}
    near = nearest(_plain(path).name, names, 0.6)
    top = ", ".join(name for name in shipped if "/" not in name)
    return f"did you mean the shipped {names[near]}?" if near else f"the package ships {top}"


def _plain(path: Path) -> Path:
    """Return a path as shipped configs are named: without `configs/` before and `.yaml` after."""
    path = path.with_suffix("") if path.suffix == ".yaml" else path
    return Path(*path.parts[1:]) if path.parts[:1] == ("configs",) else path
