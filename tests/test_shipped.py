"""Configs that come with the package, found by name; the wheel that holds them."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from mm_lightning.errors import UserError
from mm_lightning.experiments.sweep_file import read_sweep
from mm_lightning.shipped import configs_folder, resolve_config
from mm_lightning.training.config_files import read_chain

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml", "configs/quickstart.yaml", "configs/quickstart"])
def test_a_shipped_config_is_found_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_config(name) == configs_folder() / "quickstart.yaml"
    assert [Path(file.path).name for file in read_chain(name)] == ["recipe.yaml", "quickstart.yaml"]


def test_overlays_and_sweeps_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_config("overlays/zero_2") == configs_folder() / "overlays" / "zero_2.yaml"
    assert resolve_config("8b") == configs_folder() / "8b.yaml"
    assert resolve_config("ablation", "sweeps") == configs_folder() / "sweeps" / "ablation.yaml"
    assert resolve_config("configs/sweeps/ablation.yaml", "sweeps") == configs_folder() / "sweeps" / "ablation.yaml"
    assert read_sweep("ablation").base == read_sweep(ROOT / "configs" / "sweeps" / "ablation.yaml").base


def test_a_file_of_the_users_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.yaml").write_text("run: mine")
    (tmp_path / "quickstart").mkdir()  # a run folder, say
    assert resolve_config("configs/quickstart.yaml") == Path("configs/quickstart.yaml")
    assert resolve_config("quickstart") == configs_folder() / "quickstart.yaml"


def test_a_config_of_the_users_builds_on_a_shipped_one(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: quickstart\nrun: mine")
    chain = read_chain(tmp_path / "mine.yaml")
    assert [Path(file.path).name for file in chain] == ["recipe.yaml", "quickstart.yaml", "mine.yaml"]
    (tmp_path / "sweep.yaml").write_text("base: quickstart\nruns: {keys: ablations/keys_leaky}")
    sweep = read_sweep(tmp_path / "sweep.yaml")
    assert [Path(name).name for name in [*sweep.base, *sweep.runs["keys"].configs]] == [
        "quickstart.yaml",
        "keys_leaky.yaml",
    ]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("quikstart", "quickstart"),
        ("zero2", "overlays/zero_2"),
        ("zzz.yaml", "8b"),
        ("../quickstart", "quickstart"),
        ("", "8b"),
    ],
)
def test_a_config_that_is_nowhere(name, hint, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match=hint):
        read_chain(name)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from the files that git would commit."""
    copy, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if listed.returncode:
        pytest.skip("the sources are not a git checkout")
    for name in filter(None, listed.stdout.decode().split("\0")):
        source, target = ROOT / name, copy / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source.readlink()) if source.is_symlink() else target.write_bytes(source.read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(output), str(copy)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    return next(output.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_config(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if not name.startswith("mm_lightning-")}
    code = {f"mm_lightning/{path.relative_to(ROOT / 'mm_lightning')}" for path in (ROOT / "mm_lightning").rglob("*")}
    code |= {f"mm_lightning/{path.relative_to(ROOT)}" for path in (ROOT / "callbacks").glob("*.py")}
    code |= {f"mm_lightning/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*") if path.is_file()}
    files = {name for name in code if Path(name).suffix and "__pycache__" not in name}
    assert held == files


@pytest.mark.slow
def test_the_wheel_trains_in_an_empty_folder(wheel, tmp_path):
    """`pip install` of the wheel and one command; the packages that it needs are those installed here."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    # the other environment's packages, without the links of an editable installation that lie beside them
    (site / "others.pth").write_text("\n".join(path for path in sys.path if Path(path).name == "site-packages"))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True)
    (tmp_path / "empty").mkdir()
    small = ["--trainer.max_steps", "3", "--trainer.val_check_interval", "3", "--model.warmup_steps", "1"]
    data = ["--data.path", "data", "--data.prepare.sources", "[python-stdlib]", "--data.prepare.tokenizer", "bytes"]
    data += ["--model.network.vocab_size", "258"]
    command = [python, "-P", "-m", "mm_lightning.cli", "fit", "--config", "quickstart", *small, *data]
    done = subprocess.run(command, cwd=tmp_path / "empty", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "empty" / "runs" / "quickstart" / "0" / "finished.json").is_file()
    where = [python, "-P", "-c", "import mm_lightning; print(mm_lightning.__file__)"]
    assert str(site) in subprocess.run(where, cwd=tmp_path, capture_output=True, text=True).stdout
