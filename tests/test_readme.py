"""README and documentation against the program: numbers that a command prints, and commands that can be typed."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from mm_lightning.cli import COMMANDS, TRAINING, find_command, load, main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXT = " ".join(" ".join(page.read_text(encoding="utf-8") for page in PAGES).split())


def cost(capsys, *args: str) -> dict:
    assert main(["cost", "--json", *args]) == 0
    return json.loads(capsys.readouterr().out)


def test_parameters_and_flops_of_the_large_models(capsys):
    whole = cost(capsys, "--config", "8b", "--context", "256")
    short = cost(capsys, "--config", "8b", "--context", "256", "--model.network.levels", "[short]")
    transformer = cost(capsys, "--config", "8b_transformer", "--context", "256")
    (b, f), (b_short, f_short), (b_transformer, f_transformer) = [
        (f"{c['parameters'] / 1e9:.2f}", f"{c['forward_flops_per_token'] / 1e9:.1f}")
        for c in (whole, short, transformer)
    ]
    assert f"prints {b} B parameters and {f} GFLOPs per token at context 256" in TEXT
    assert f"({b_short} B and {f_short} without the long-term memory, {b_transformer} B and {f_transformer} for" in TEXT


def test_memory_of_the_large_model(capsys):
    def gigabytes(*args: str) -> int:
        return round(cost(capsys, "--config", "8b", *args)["total_bytes_per_device"] / 1e9)

    assert f"about {gigabytes()} GB on each" in TEXT
    zero_2 = ["--config", "overlays/zero_2"]
    on_64, on_8 = gigabytes(*zero_2), gigabytes(*zero_2, "--trainer.num_nodes", "1")
    assert f"about {on_64} GB a GPU at 64 GPUs and {on_8} at 8" in TEXT


RECIPE = (ROOT / "docs" / "recipe_small.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("config", ["small", "small_transformer", "small_32k", "small_32k_transformer"])
def test_the_costs_of_the_recipe(config, capsys):
    """Tokens, FLOPs, hours at 989 TFLOP/s with an MFU of 0.3, and days of 8 GPUs, as the page's formula gives them."""
    token = cost(capsys, "--config", config)["training_flops_per_token"]
    assert main(["fit", "--config", config, "--print_config"]) == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    data = settings["data"]
    tokens = settings["trainer"]["max_steps"] * data["global_batch_size"] * data["context_length"]
    hours = token * tokens / (989e12 * 0.3) / 3600
    name = "transformer" if "transformer" in config else "v2"
    (row,) = [row for row in RECIPE.splitlines() if row.startswith(f"| {name}, context {data['context_length']:,} |")]
    amount = f"{tokens / 1e9:.{1 if tokens > 1e10 else 2}f} B"
    cells = [f"{token / 1e9:.3f}", f"{token * tokens:.2e}".replace("e+", "e"), f"{hours:,.0f}", f"{hours / 192:.1f}"]
    assert row.split(" | ")[2:] == [*cells[:-1], f"{cells[-1]} |"]
    assert row.split(" | ")[1] == amount


def test_the_memory_of_the_recipe(capsys):
    small, long = (cost(capsys, "--config", config) for config in ("small", "small_32k"))
    assert f"{small['forward_flops_per_token'] / 1e9:.3f} GFLOPs a token forward" in RECIPE
    assert f"{small['total_bytes_per_device'] / 1e9:.1f} of each GPU's 80 GB" in " ".join(RECIPE.split())
    assert f"prints {long['total_bytes_per_device'] / 1e9:.1f} GB a GPU" in RECIPE


@pytest.mark.parametrize("config", ["quickstart", "regbench", "facts", "small", "8b"])
def test_parameters_in_the_table_of_configs(config, capsys):
    parameters = cost(capsys, "--config", config)["parameters"]
    stated, unit = re.search(rf"\| `{config}\.yaml` \| [^|]*?([\d.]+) ([MB])\b", TEXT).groups()
    assert stated == f"{parameters / {'M': 1e6, 'B': 1e9}[unit]:.1f}"


def test_sizes_of_the_quickstart(capsys):
    assert f"MemoryMosaic, {cost(capsys, '--config', 'quickstart')['parameters']:,} parameters" in TEXT
    assert main(["fit", "--config", "quickstart", "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    sequences, length = config["data"]["global_batch_size"], config["data"]["context_length"]
    assert f"{sequences} sequences of {length} = {sequences * length:,} tokens" in TEXT
    assert f"step {config['trainer']['max_steps']}/{config['trainer']['max_steps']}" in TEXT


def test_runs_of_the_ablation():
    from mm_lightning.experiments.sweep_file import read_sweep
    from mm_lightning.experiments.sweep_runs import plan

    assert f"{len(plan(read_sweep('ablation')))} runs, two at a time" in TEXT


def test_the_install_commands_are_what_ci_runs():
    for file in PAGES:
        assert "pip install -e" not in " ".join(file.read_text(encoding="utf-8").split()), file
    assert '-c "$folder/constraints.txt" -e ".[dev]"' in (ROOT / ".ci" / "environment").read_text()
    assert re.search(r'pip install -c constraints\.txt -e "\.\[dev\]" && pytest\b', TEXT)


def typed_commands() -> list[str]:
    """Every `mm ...` line of the code blocks of README and docs, without comments and continued lines joined."""
    commands = []
    for file in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for block in re.findall(r"```(?:bash|sh|console)?\n(.*?)```", file.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                part = re.search(r"(?:^|&& )\s*(mm (?!--)[a-z].*)", line)
                if part and "..." not in part[1].split("#")[0].split("'")[0]:
                    commands.append(part[1])
    return sorted(set(commands))


@pytest.fixture(scope="module")
def fit_options() -> set[str]:
    """The dotted names of all options of `mm fit`, those of the quickstart's network among them."""
    from mm_lightning.training.cli import TrainingCLI
    from mm_lightning.training.parse_fit import network_config_of

    parsed = TrainingCLI("fit", ["--config", "quickstart"], runs=False)
    network = {f"model.network.{name}" for name in vars(network_config_of(parsed.config))}
    return {*parsed._known(), *network, "config", "print_config", "data.prepare.vocab_size", "data.prepare.tokenizer"}


@pytest.mark.parametrize("command", typed_commands())
def test_a_command_that_is_shown_has_the_options_that_it_is_shown_with(command, fit_options):
    name, rest = find_command(shlex.split(command, comments=True)[1:])
    options = {word.split("=")[0].removeprefix("--") for word in rest if word.startswith("--")}
    if name in TRAINING:
        known = fit_options | {"ckpt_path", "output"}
    elif name == "cost":
        known = fit_options | {"context", "json"}
    elif name == "launch":
        from mm_lightning.experiments.launch import launch_parser

        known = fit_options | set(vars(launch_parser().parse_args([])))
    else:
        parser = ArgumentParser()
        parser.add_function_arguments(load(COMMANDS[name][0]), as_group=False)
        known = {action.dest for action in parser._actions}
    assert options <= known


def test_the_first_command_of_the_data_page_prints_what_it_says(tmp_path, monkeypatch, capsys):
    """Numbers of files and bytes change with every page: the words are compared."""
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    command, output = re.findall(r"```\w*\n(.*?)\n```", page, re.DOTALL)[:2]
    monkeypatch.chdir(ROOT)
    assert main(shlex.split(command.replace("data/docs", str(tmp_path / "docs")))[1:]) == 0
    printed = "".join(capsys.readouterr()).replace(str(tmp_path), "data").strip()
    assert re.sub(r"[\d.,]+", "N", printed) == re.sub(r"[\d.,]+", "N", output)


def test_every_equation_has_its_file_and_its_test():
    """The table of the architecture: rows of an equation, a file and a test that are there."""
    rows = re.findall(r"^\|[^|]+\| `(mm_lightning/memory/\w+\.py)` \| `(tests/[\w/]+\.py)` \|$", README, re.MULTILINE)
    assert len(rows) == 6
    assert all((ROOT / file).is_file() for row in rows for file in row)
    equations = " ".join(re.findall(r"^\| (\([\d), (]+\))", README, re.MULTILINE))
    assert set(re.findall(r"\d+", equations)) == {"4", "6", "7", "8", "9", "10"}


def rows_of_table(text: str, header: str) -> list[str]:
    """The first cells of the table that begins with a header."""
    table = text[text.index(header) :].split("\n\n")[0]
    return [row.split("|")[1] for row in table.splitlines()]


@pytest.mark.parametrize(("header", "page"), [("| equation |", "architecture.md"), ("| config |", "training.md")])
def test_the_tables_of_the_readme_are_those_of_the_pages(header, page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert rows_of_table(README, header) == rows_of_table(text, header)


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_the_tables_of_extras_have_all_of_them(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    table = text[text.index("| extra |") :].split("\n\n")[0]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == extras.keys()
    assert f"| `report` | {re.match(r'[a-z]+', extras['report'][0])[0]} |" in table


def test_the_readme_is_short():
    assert README.count("\n") <= 180


def test_the_site_shows_every_page():
    names = re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:")[1])
    generated = {"commands.md"}
    written = {p.relative_to(ROOT / "docs").as_posix() for p in PAGES[1:] if p.parent.parent.name != "results"}
    assert set(names) - generated == written


def test_links_of_the_readme_lead_somewhere():
    files = re.findall(r"\]\((?!http)([^)#]+)", README)
    assert files
    assert not [file for file in files if file != "docs/commands.md" and not (ROOT / file).exists()]


def test_the_versions_agree():
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_dockerfile_copies_what_is_there_and_installs_known_extras():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = [name for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for name in line.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    extras = re.search(r"-c constraints\.txt \"\.\[([\w,]+)\]", text)[1].split(",")
    known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(extras) <= set(known)


PLACES = ("", "mm_lightning/", "tests/", "docs/", "configs/", "mm_lightning/memory/", "mm_lightning/evaluation/")


def test_files_that_pages_name_are_there():
    named = {name for page in PAGES for name in re.findall(r"`([\w/]+/\w+\.(?:py|yaml))`", page.read_text("utf-8"))}
    made_up = {"data/mine.yaml"}
    assert not {name for name in named - made_up if not any((ROOT / place / name).is_file() for place in PLACES)}
