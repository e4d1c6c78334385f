"""Write the model card (README.md) of an exported network from its run folder."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_lightning.checkpoint.environment import describe_hardware
from mm_lightning.errors import UserError
from mm_lightning.markdown import Markup, code, markdown_table, plain
from mm_lightning.side_files import known_config, read_lines, read_object
from mm_lightning.versions import required_versions

if TYPE_CHECKING:
    from mm_lightning.networks import Network

RECIPE = (
    ("model", ("optimizer", "learning_rate", "schedule", "warmup_steps", "decay_steps", "final_learning_rate")),
    ("model", ("weight_decay", "betas", "parameter_groups", "initial_weights")),
    ("trainer", ("max_steps", "precision", "gradient_clip_val", "strategy", "devices", "num_nodes")),
    ("data", ("context_length", "global_batch_size")),
)
"""The settings of a config.yaml that enter the table "Training"."""

_HEAD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- memory-mosaics
---

# {name}

A {kind} language model, trained with mm-lightning ([Memory Mosaics at scale]({home})).

**License: not chosen yet.** Before you publish this folder, name one here and as `license:` at the top of this
file{code}.
"""

_HOME = "https://arxiv.org/abs/2507.03285"

_LOAD = """\
```python
{imports}
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER{trust})
tokenizer = AutoTokenizer.from_pretrained(FOLDER{trust})
tokens = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**tokens, max_new_tokens=50, do_sample=True)[0]))
```

{versions}

Batches are padded on the left. The cache of `generate` is the memory's state, `model.new_cache()`; `copy.deepcopy`
forks it, so that several texts continue a prefix that was read once. It cannot be cropped: no assisted decoding."""


def model_card(checkpoint: Path, about: dict[str, Any], network: Network, self_contained: bool) -> str:
    """Return the text of a model card.

    Args:
        checkpoint: the exported checkpoint; the files of its run folder are read.
        about: its entry `mm_lightning`.
        network: as exported.
        self_contained: whether the folder holds the modeling code.
    """
    run = checkpoint.parent.parent
    config = known_config(run / "config.yaml")
    kind = type(network).__name__
    code = " (the code beside the weights is mm-lightning's, Apache-2.0)" if self_contained else ""
    load = {"imports": "import mm_lightning.transformers", "trust": "", "versions": _versions()}
    if self_contained:
        load |= {"imports": "", "trust": ", trust_remote_code=True"}
    sections = {
        "Loading": _LOAD.format(**load).replace("```python\n\n", "```python\n"),
        "Network": _network(about, network),
        "Training": _training(checkpoint, about, config),
        "Data": _data(about, config),
        "Evaluation": _evaluation(checkpoint, run),
    }
    head = _HEAD.format(name=plain(_name(run, checkpoint)), kind=kind, home=_HOME, code=code)
    return "\n".join([head, *(f"## {title}\n\n{text}\n" for title, text in sections.items())])


def _versions() -> str:
    """Return a sentence with the versions of transformers that load the folder."""
    written = importlib.metadata.version("transformers")
    return f"Needs transformers{required_versions('transformers')}; it was written with {written}."


def table(rows: Iterable[tuple[Any, ...]], head: tuple[str, ...]) -> str:
    """Return a Markdown table."""
    return markdown_table(head, ([_cell(value) for value in row] for row in rows), len(head))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return value if isinstance(value, Markup) else str(value)


def _name(run: Path, checkpoint: Path) -> str:
    if checkpoint.parent.name != "checkpoints":
        return checkpoint.name.removesuffix(".ckpt")
    run = run.resolve()
    return f"{run.parent.name} {run.name}" if run.name.isdigit() else run.name


def _network(about: dict[str, Any], network: Network) -> str:
    parameters = sum(p.numel() for p in network.parameters())
    dtype = str(next(network.parameters()).dtype).removeprefix("torch.")
    fields = about["network"]["fields"].items()
    rows = [("parameters", f"{parameters:,} ({dtype})"), *((code(name), value) for name, value in fields)]
    return table(rows, ("setting", "value"))


def _training(checkpoint: Path, about: dict[str, Any], config: dict[str, Any]) -> str:
    rows: list[tuple[str, Any]] = [("checkpoint", checkpoint.name)]
    if "imported" in about:
        rows.append(("imported from", about["imported"]))
    from mm_lightning.checkpoint import step_of

    step, planned = step_of(checkpoint), config.get("trainer", {}).get("max_steps")
    if step >= 0:
        rows.append(("steps", f"{step:,}" + (f" of {planned:,} planned" if planned and step < planned else "")))
    if about.get("tokens") is not None:
        rows.append(("tokens", f"{about['tokens']:,}"))
    trained = about.get("recipe", {})  # the config is of the run's last start
    for part, names in RECIPE:
        known = {n: trained.get(f"{part}.{n}", config.get(part, {}).get(n)) for n in names}
        rows += [(code(f"{part}.{n}"), value) for n, value in known.items() if value is not None]
    if "seed_everything" in config:
        rows.append((code("seed_everything"), config["seed_everything"]))
    if environment := read_object(checkpoint.parent.parent / "environment.json"):
        rows += _environment(environment)
    if len(rows) > 1:
        return table(rows, ("setting", "value"))
    return f"Nothing is known but its name, {code(checkpoint.name)}: it did not lie in a run folder."


def _environment(environment: dict[str, Any]) -> list[tuple[str, Any]]:
    code, packages = environment.get("code"), environment.get("packages", {})
    dirty = " with uncommitted changes" if code and code.get("dirty") else ""
    return [
        ("commit", f"{code['commit']}{dirty}" if code else f"mm-lightning {packages.get('mm-lightning')}, no checkout"),
        ("hardware", describe_hardware(environment)),
        ("versions", ", ".join(f"{name} {version}" for name, version in packages.items() if version)),
    ]


def _data(about: dict[str, Any], config: dict[str, Any]) -> str:
    from mm_lightning.data.manifest import Manifest

    tokenizer = about["tokenizer"]
    rows: list[tuple[str, Any]] = []
    if tokenizer:
        rows += [("tokenizer", Path(tokenizer["name"]).name), ("tokenizer sha256", code(tokenizer["sha256"]))]
    path = config.get("data", {}).get("path")
    weights = path if isinstance(path, dict) else {path: 1.0} if path else {}
    try:
        manifests = [(weight, Manifest.load(folder)) for folder, weight in weights.items()]
    except UserError as error:
        return "\n\n".join(
            [table(rows, ("what", "value")), f"The data's manifest could not be read: {plain(str(error))}."]
        )
    if not manifests:
        return table(rows, ("what", "value")) if rows else "Nothing is known of it."
    trained_on = (about.get("data") or {}).get("content", "")
    if trained_on and not all(manifest.content[:12] in trained_on for _, manifest in manifests):
        return "\n\n".join([table(rows, ("what", "value")), "The data were prepared anew since, with other content."])
    for number, (weight, manifest) in enumerate(manifests, 1):
        if len(manifests) > 1:
            rows.append((f"data set {number}", f"{weight / sum(weights.values()):.1%} of the training sequences"))
        for name, split in manifest.splits.items():
            rows.append((f"{name} documents", f"{split.documents:,}"))
            rows.append((f"{name} tokens", f"{split.tokens:,}"))
            rows.append((f"{name} bytes", f"{split.bytes:,}"))
        rows.append(("fingerprint", code(manifest.fingerprint)))
        rows.append(("content", code(manifest.content)))
        rows += [(f"source {n}", _source(source)) for n, source in enumerate(manifest.sources, 1)]
    return table(rows, ("what", "value"))


def _source(source: dict[str, Any]) -> str:
    """Return a source of a manifest as a line."""
    parts = {n: f"{len(v)} files" if isinstance(v, list) else v for n, v in source.items() if not isinstance(v, dict)}
    return ", ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in parts.items()
    )


def _evaluation(checkpoint: Path, run: Path) -> str:
    from mm_lightning.checkpoint import fingerprint, step_of

    sections = []
    last: dict[str, Any] = {}
    for line in read_lines(run / "metrics.jsonl", "step"):
        if "validation/loss" in line and line["step"] <= step_of(checkpoint):
            last = {name: value for name, value in line.items() if not name.startswith("train/")}
    if last:
        sections.append("Last validation during training:\n\n" + table([tuple(last.values())], tuple(last)))
    rows = [_flat(line) for line in read_lines(run / "evaluation.jsonl")]
    rows = [row for row in rows if row.get("checkpoint", checkpoint.name) == checkpoint.name]
    if any("weights" in row for row in rows):  # a run that was rewound may have had other weights under this name
        weights = fingerprint(checkpoint)
        rows = [row for row in rows if row.get("weights", weights) == weights]
    if rows:
        names = tuple(dict.fromkeys(name for row in rows for name in row))
        sections.append("Afterwards:\n\n" + table([tuple(row.get(n, "") for n in names) for row in rows], names))
    return "\n\n".join(sections) or "Not evaluated."


def _flat(line: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested results by path: {"a": {"b": 1}} as {"a/b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in line.items():
        flat |= _flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
