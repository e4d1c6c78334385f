"""Exported folders: bit-equal weights, equal ids, a card of what is known, loaded with and without this package."""

import ast
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import yaml
from byte_networks import BASELINES, CONFIGS
from saved_networks import save_run

from mm_lightning.checkpoint import (
    find_checkpoint,
    fingerprint,
    load_network,
    open_weights,
)
from mm_lightning.cli import main
from mm_lightning.data.manifest import Manifest, Split
from mm_lightning.data.tokenizer_training import train_tokenizer
from mm_lightning.errors import UserError
from mm_lightning.inference.export import ABOUT, EXPORT, export_command
from mm_lightning.inference.export_tokenizer import transformers_tokenizer
from mm_lightning.inference.flatten import MODULES, flatten, holds_other_code
from mm_lightning.inference.import_checkpoint import import_command
from mm_lightning.networks.cost import parameters
from mm_lightning.versions import required_versions

transformers = pytest.importorskip("transformers")

import mm_lightning.transformers  # noqa: E402, F401

TEXTS = [
    "",
    "def f(x):\n\n    return x  # é ☃ 12345",
    "a <|end_of_text|> and <|begin_of_text|>",
    "\ud7ff\x00\x7f\xa0\xad\xff",
]


@pytest.fixture(scope="module", params=CONFIGS | BASELINES)
def run(request, tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("run") / "0", request.param)


@pytest.fixture(scope="module")
def v2(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("v2") / "0", "v2")


def load(folder, **settings):
    """The model of a folder, of which nothing may be missing or left over."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **settings)
    assert not any(info.values())
    return model


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.interfaces
def test_there_and_back_again(run, tmp_path):
    saved = load_network(run)[0].state_dict()
    export_command(str(run), str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"a folder of transformers: .* mm import --source"):
        find_checkpoint(tmp_path / "out")
    assert same(load(tmp_path / "out").network.state_dict(), saved)
    import_command(str(tmp_path / "out"), str(tmp_path / "back"))
    network, tokenizer = load_network(tmp_path / "back")
    assert same(network.state_dict(), saved)
    assert (tokenizer.name, network.config) == ("bytes", load_network(run)[0].config)
    export_command(str(tmp_path / "back"), str(tmp_path / "again"), self_contained=True)
    for file in ("model.safetensors", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_every_import_of_the_flat_code_finds_what_it_names():
    trees = {name.removesuffix(".py"): ast.parse(text) for name, text in flatten(*MODULES).items()}
    assert {"memory_kernels_numba_features", "memory_kernels_triton_launch"} <= trees.keys()  # imported as modules
    defined = {
        name: {
            *(node.id for node in ast.walk(tree) if isinstance(node, ast.Name)),
            *(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)),
            *(
                alias.asname or alias.name
                for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom)
                for alias in node.names
            ),
            "__doc__",
        }
        for name, tree in trees.items()
    }
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                there = defined[node.module] if node.module else trees.keys()
                assert {alias.name for alias in node.names} <= set(there), f"{name}: {ast.unparse(node)}"


def test_old_code_is_written_anew_by_a_command_that_is_named(v2, tmp_path, capsys):
    folder = tmp_path / "out"
    export_command(str(v2), str(folder), self_contained=True)
    capsys.readouterr()
    import_command(str(folder), str(tmp_path / "same"))
    assert "write it anew" not in capsys.readouterr().out
    code = folder / "inference_modeling.py"
    code.write_text(code.read_text().replace("cache", "past_key_values"))
    import_command(str(folder), str(tmp_path / "run"))
    printed = capsys.readouterr().out.splitlines()
    anew = f"mm export --checkpoint {tmp_path / 'run'} --output {folder}_new --self_contained"
    assert [line.endswith(anew) for line in printed] == [False, True]
    assert main(anew.split()[1:]) == 0
    assert not holds_other_code(Path(f"{folder}_new"))
    assert main(["export", "--checkpoint", str(folder), "--output", str(tmp_path / "no")]) == 2
    error = capsys.readouterr().err
    assert f"mm import --source {folder} --output RUN (and export it again, " in error


def test_half_as_many_bytes_in_several_files(v2, tmp_path):
    export_command(str(v2), str(tmp_path / "out"), "bfloat16", max_shard_size="20KB")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    assert len({file.stat().st_mode for file in (tmp_path / "out").iterdir()}) == 1
    expected = load_network(v2, dtype=torch.bfloat16)[0].state_dict()
    assert same(load(tmp_path / "out").network.state_dict(), expected)
    (tmp_path / "out" / ABOUT).unlink()  # as after save_pretrained in transformers
    import_command(str(tmp_path / "out"), str(tmp_path / "back"), tokenizer="bytes")
    back = open_weights(find_checkpoint(tmp_path / "back"))
    assert all(torch.equal(back[name], x) for name, x in expected.items())


def test_bytes_and_their_ids(tokenizer, tmp_path):
    transformers_tokenizer(tokenizer).save_pretrained(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert loaded(text)["input_ids"] == [256, *text.encode()]
    every = "".join(map(chr, range(256)))
    assert loaded.decode(loaded(every)["input_ids"], skip_special_tokens=True) == every
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (256, 257, 257)
    padded = loaded(["a", "bcd"], padding=True)
    assert padded["input_ids"] == [[257, 257, 256, 97], [256, 98, 99, 100]]
    assert padded["attention_mask"] == [[0, 0, 1, 1], [1, 1, 1, 1]]


def test_words_and_their_ids(tmp_path):
    ours = train_tokenizer(["def f(x):\n    return x + 1\n" * 9], 280, tmp_path / "tokenizer.json", progress=False)
    transformers_tokenizer(ours).save_pretrained(tmp_path / "out")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        ids = ours.encode(text)
        assert loaded(text)["input_ids"] == [ours.bos, *ids]
        assert loaded(text, add_special_tokens=False)["input_ids"] == ids
        assert loaded.decode(ids) == ours.decode(ids)


@pytest.fixture
def documented(tmp_path):
    """A run folder as training leaves it."""
    run = save_run(tmp_path / "runs" / "tale" / "0", "v2")
    split = Split(3, 12345, 45678, 2.5, 9, [1], [])
    sources = [{"path": "tales", "files": ["a.txt", "b.txt"], "bytes": 45678}]
    tokenizer = {"name": "bytes", "sha256": "x", "vocab_size": 258, "bos": 256, "eos": 257}
    (tmp_path / "data").mkdir()
    Manifest(tokenizer, "uint16", {"train": split}, sources, {}, "f1n6e7").save(tmp_path / "data")
    config = {
        "seed_everything": 7,
        "model": {"learning_rate": 0.00125, "initial_weights": None},
        "trainer": {"max_steps": 20},
        "data": {"path": str(tmp_path / "data"), "global_batch_size": 16},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    environment = {"host": "secret", "code": {"commit": "c0ffee", "dirty": True}, "gpus": [{"name": "Fast GPU"}] * 2}
    (run / "environment.json").write_text(json.dumps(environment))
    metrics = [{"step": 10, "validation/loss": 3.5}, {"step": 20, "validation/loss": 2.25, "train/loss": 1.0}]
    metrics += [{"step": 20, "train/loss": 9.0}, {"step": 30, "validation/loss": 1.5}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    scores = [
        {"checkpoint": "step=20.ckpt", "piqa": {"acc": 0.625}},
        {"checkpoint": "step=10.ckpt", "piqa": {"acc": 0.5}},
    ]
    (run / "evaluation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in scores))
    return run


def test_the_card_has_evaluations_of_these_weights_alone(documented, tmp_path):
    """A run that went back, or began anew, may have had other weights under the same name."""
    path = find_checkpoint(documented)
    lines = [
        {"checkpoint": path.name, "weights": fingerprint(path), "data": "one", "validation/loss": 2.125},
        {"checkpoint": path.name, "weights": fingerprint(path), "data": "other", "validation/loss": 4.5},
        {"checkpoint": path.name, "weights": "0" * 16, "data": "one", "validation/loss": 1.75},
    ]
    folder = path.parent.parent
    (folder / "evaluation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    export_command(str(documented), str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| one | 2.125 |" in card
    assert "| other | 4.5 |" in card
    assert "1.75" not in card


def test_the_card_says_what_the_run_folder_knows(documented, tmp_path, capsys):
    export_command(str(documented), str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    for line in (
        "# tale 0",
        "**License: not chosen yet.**",
        "import mm_lightning.transformers\nfrom transformers import",
        f"Needs transformers{required_versions('transformers')}; it was written with {transformers.__version__}.",
        f"| parameters | {parameters(CONFIGS['v2']):,} (float32) |",
        "| `short_term_window` | 8 |",
        "| `model.learning_rate` | 0.00125 |",
        "| `data.global_batch_size` | 16 |",
        "| `seed_everything` | 7 |",
        "| commit | c0ffee with uncommitted changes |",
        "| hardware | 2 x Fast GPU |",
        "| train tokens | 12,345 |",
        "| fingerprint | `f1n6e7` |",
        "| source 1 | path tales, files 2 files, bytes 45,678 |",
        "| step | validation/loss |\n| --- | --- |\n| 20 | 2.25 |",
        "| checkpoint | piqa/acc |\n| --- | --- |\n| step=20.ckpt | 0.625 |",
    ):
        assert line in card, line
    assert not [word for word in ("secret", "initial_weights", "0.5 |", "trust_remote_code") if word in card]
    assert "names no license" in capsys.readouterr().out
    (tmp_path / "data" / "manifest.json").unlink()
    export_command(str(documented), str(tmp_path / "other"), self_contained=True)
    card = (tmp_path / "other" / "README.md").read_text()
    assert "manifest could not be read" in card
    assert "trust_remote_code=True" in card


def test_mistakes_are_one_line(v2, tmp_path, capsys, monkeypatch):
    def export(*more):
        assert main(["export", "--checkpoint", str(v2), *more]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    assert "full exists and is not an export" in export("--output", str(tmp_path / "full"))
    assert "float8" in export("--output", str(tmp_path / "out"), "--dtype", "float8")
    assert "such as 5GB, got 'much'" in export("--output", str(tmp_path / "out"), "--max_shard_size", "much")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "needs the package transformers: pip install" in export("--output", str(tmp_path / "out"))
    assert os.listdir(tmp_path) == ["full"]


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [(KeyboardInterrupt(), 130, "interrupted"), (OSError(28, "No space left on device"), 2, "No space left on device")],
)
def test_an_export_that_does_not_end_leaves_nothing(v2, tmp_path, capsys, monkeypatch, error, status, message):
    def fail(*_):
        raise error

    monkeypatch.setattr("mm_lightning.inference.model_card.model_card", fail)
    assert main(["export", "--checkpoint", str(v2), "--output", str(tmp_path / "out")]) == status
    assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_a_tokenizer_that_comes_out_differently_is_refused(v2, tmp_path, monkeypatch):
    from mm_lightning.data.tokenizer import ByteTokenizer

    monkeypatch.setattr(ByteTokenizer, "encode_batch", lambda self, texts: [[1, 2, 3] for _ in texts])
    with pytest.raises(UserError, match="transformers cannot express the tokenizer bytes"):
        export_command(str(v2), str(tmp_path / "out"))
    assert os.listdir(tmp_path) == []


def test_the_line_that_loads_an_export_can_be_typed(v2, tmp_path, capsys):
    folder = tmp_path / "it's"
    assert main(["export", "--checkpoint", str(v2), "--output", str(folder)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("load it: ")]
    names = {}
    exec(line.removeprefix("load it: "), names)
    assert type(names["model"]).__name__ == "MMLightningForCausalLM"


def test_without_a_tokenizer(tmp_path, capsys):
    export_command(str(save_run(tmp_path / "run", "v2", tokenizer=None)), str(tmp_path / "out"))
    assert "carries no tokenizer" in capsys.readouterr().out
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    assert load(tmp_path / "out").generation_config.eos_token_id is None


def test_flat_files_are_the_sources_but_for_their_imports():
    files = flatten("mm_lightning.inference.modeling")
    assert {"inference_modeling.py", "networks_base.py", "memory_state.py", "errors.py"} <= files.keys()
    from mm_lightning.memory import state

    source, flat = Path(state.__file__).read_text().splitlines(), files["memory_state.py"].splitlines()[1:]
    assert all(a == b or "import" in a for a, b in zip(source, flat, strict=True))
    for name, text in files.items():
        for node in ast.walk(ast.parse(text, name)):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert node.module.split(".")[0] != "mm_lightning"


def test_a_folder_with_the_code_is_one_that_can_be_replaced(tmp_path):
    for name in flatten(*MODULES):
        (tmp_path / name).touch()
    assert EXPORT.others(tmp_path) == []


ELSEWHERE = """
import json, sys, torch
sys.modules |= dict.fromkeys(["mm_lightning", "numba", "triton"])  # cannot be imported
import threading
from transformers import AutoModelForCausalLM, AutoTokenizer
def generate(folder, **settings):
    tokens = AutoTokenizer.from_pretrained(folder, **settings)("mosaic", return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(folder, **settings)
    return [model.generate(**tokens, max_new_tokens=12, num_beams=2)[0].tolist(), type(model).__module__]
def add(folder, **settings):
    tokenizer = AutoTokenizer.from_pretrained(folder, **settings)
    if type(tokenizer).__name__ != "MMLightningTokenizer":
        return "transformers of this version passes over registered classes of tokenizers"
    tokenizer.add_special_tokens({{"additional_special_tokens": ["<|user|>"]}})
    tokenizer.add_tokens(["<word>"])
    tokenizer.save_pretrained(folder + "_more")
    again = AutoTokenizer.from_pretrained(folder + "_more", **settings)
    text = "a<|user|>b<|end_of_text|><|user|><|end_of_text|><word>"
    results = []
    for one in (tokenizer, again):
        ids = one(text)["input_ids"]
        shown = [ids, one.decode(ids), one.decode([*ids, 257], skip_special_tokens=True), len(one)]
        results.append([*shown, one("<|end_of_text|>", "<|user|>")["input_ids"]])
    return results
results = {{"contained": [f({contained!r}, trust_remote_code=True) for f in (generate, add)]}}
results["hybrid"] = generate({hybrid!r}, trust_remote_code=True)[0]
del sys.modules["mm_lightning"], sys.modules["numba"], sys.modules["triton"]
import mm_lightning.transformers
results["plain"] = [f({plain!r}) for f in (generate, add)]
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def elsewhere(v2, tmp_path_factory):
    """What a process without the package does with a self-contained folder, and then with the package with another."""
    root = tmp_path_factory.mktemp("elsewhere")
    folders = {name: str(root / name) for name in ("contained", "plain")}
    for name, folder in folders.items():
        export_command(str(v2), folder, self_contained=name == "contained")
    folders["hybrid"] = str(root / "hybrid")
    export_command(str(save_run(root / "run", "gated_deltanet_hybrid")), folders["hybrid"], self_contained=True)
    environment = {**os.environ, "HF_HOME": str(root / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", ELSEWHERE.format(**folders)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return folders, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_elsewhere_without_and_with_the_package(elsewhere):
    folders, results = elsewhere
    first, second = results["contained"][0], results["plain"][0]
    assert "transformers_modules" in first[1]
    assert second[1] == "mm_lightning.inference.modeling"
    tokens = torch.tensor([[256, *b"mosaic"]])
    expected, hybrid = (
        load(folders[name]).generate(tokens, max_new_tokens=12, num_beams=2)[0].tolist() for name in ("plain", "hybrid")
    )
    assert first[0] == second[0] == expected
    assert results["hybrid"] == hybrid


@pytest.mark.slow
@pytest.mark.parametrize("name", ["contained", "plain"])
def test_added_special_tokens_are_found_in_texts(elsewhere, name):
    added = elsewhere[1][name][1]
    if isinstance(added, str) and name == "plain":
        pytest.skip(added)
    end = list(b"<|end_of_text|>")
    ids = [256, *b"a", 258, *b"b", *end, 258, *end, 259]
    text = "a<|user|>b<|end_of_text|><|user|><|end_of_text|><word>"
    shown = [ids, "<|begin_of_text|>" + text, text.replace("<|user|>", ""), 260]
    assert added == [[*shown, [256, *end, 256, 258]]] * 2


def test_the_tokenizer_of_a_folder_loads_without_its_code(v2, tmp_path):
    for contained in (True, False):
        folder = tmp_path / str(contained)
        export_command(str(v2), str(folder), self_contained=contained)
        loaded = transformers.AutoTokenizer.from_pretrained(folder)
        assert loaded("a <|end_of_text|>")["input_ids"] == [256, *b"a <|end_of_text|>"]


def test_pipelines_and_streamers(v2, tmp_path):
    export_command(str(v2), str(tmp_path / "out"))
    model, tokenizer = load(tmp_path / "out"), transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    written = model.generate(**tokenizer("mosaic", return_tensors="pt"), max_new_tokens=8, do_sample=False)[0]
    expected = tokenizer.decode(written, skip_special_tokens=True)
    pipeline = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    texts = pipeline(["mosaic", "a longer text"], batch_size=2, max_new_tokens=8, do_sample=False)
    assert texts[0][0]["generated_text"] == expected
    assert texts[1][0]["generated_text"].startswith("a longer text")
    streamer = transformers.TextIteratorStreamer(tokenizer, timeout=60, skip_special_tokens=True)
    settings = {"streamer": streamer, "max_new_tokens": 8, "do_sample": False}
    thread = threading.Thread(target=model.generate, kwargs=tokenizer("mosaic", return_tensors="pt") | settings)
    thread.start()
    assert "".join(streamer) == expected
    thread.join()


class Uploads:
    """In the place of huggingface_hub's HfApi: keeps what it is asked for, or raises the error that it is given."""

    def __init__(self, error=None):
        self.error, self.repositories, self.files = error, {}, {}

    def create_repo(self, name, private, exist_ok):
        assert exist_ok
        self.repositories[name] = private
        return f"https://hub/{name}"

    def upload_folder(self, repo_id, folder_path, commit_message):
        if self.error:
            raise self.error
        self.files[repo_id] = sorted(path.name for path in Path(folder_path).iterdir())


@pytest.fixture
def uploads(monkeypatch):
    import huggingface_hub

    hub = Uploads()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_token")
    return hub


@pytest.mark.parametrize("public", [False, True])
def test_a_folder_is_uploaded_when_it_is_whole(v2, tmp_path, uploads, capsys, public):
    words = ["--push", "org/mosaic", *(["--public"] if public else [])]
    assert main(["export", "--checkpoint", str(v2), "--output", str(tmp_path / "out"), *words]) == 0
    assert uploads.repositories == {"org/mosaic": not public}
    assert uploads.files["org/mosaic"] == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", ABOUT} <= {*uploads.files["org/mosaic"]}
    assert "uploaded to https://hub/org/mosaic" in capsys.readouterr().out


def test_nothing_is_uploaded_of_an_export_that_fails(v2, tmp_path, uploads, monkeypatch):
    from mm_lightning.inference import model_card

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("of someone else")
    assert main(["export", "--checkpoint", str(v2), "--output", str(tmp_path / "out"), "--push", "org/mosaic"]) == 2

    def fail(*args):
        raise UserError("no card")

    monkeypatch.setattr(model_card, "model_card", fail)
    assert main(["export", "--checkpoint", str(v2), "--output", str(tmp_path / "new"), "--push", "org/mosaic"]) == 2
    assert (uploads.repositories, uploads.files) == ({}, {})


@pytest.mark.parametrize(
    ("token", "words", "reason"),
    [
        (
            "",
            ["--push", "org/mosaic"],
            "no token to publish org/mosaic with: log in by `hf auth login`, or set HF_TOKEN",
        ),
        ("hf_x", ["--push", "mosaic"], "'mosaic' is not the name of a repository"),
        ("hf_x", ["--public"], "give that too"),
    ],
)
def test_what_cannot_be_uploaded_is_said_before_the_export(
    v2, tmp_path, uploads, monkeypatch, capsys, token, words, reason
):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token or None)
    assert main(["export", "--checkpoint", str(v2), "--output", str(tmp_path / "out"), *words]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError("not yours"), "not allowed: not yours"),
        (type("ConnectError", (Exception,), {})("no route"), r"cannot be reached: no route \(is there a network\?\)"),
    ],
)
def test_an_upload_that_fails_leaves_the_export(v2, tmp_path, uploads, capsys, error, reason):
    uploads.error = error
    assert main(["export", "--checkpoint", str(v2), "--output", str(tmp_path / "out"), "--push", "org/mosaic"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mm: ")]
    assert re.search(rf"out is exported, but cannot be published as org/mosaic: {reason} \(later: hf upload ", line)
    load(tmp_path / "out")
