"""A document that was read once can be stored and asked later."""

import json

import pytest
import torch
from byte_networks import CONFIGS, STATES, build
from safetensors import safe_open
from safetensors.torch import save_file

from mm_lightning.cli import main
from mm_lightning.data.tokenizer_training import train_tokenizer
from mm_lightning.errors import UserError
from mm_lightning.inference.generate import collect, read_prompts, write
from mm_lightning.inference.memory_file import fingerprint, load_memory, save_memory
from mm_lightning.inference.reader import Reader
from mm_lightning.inference.sampling import Sampling

TEXT = "a document that is longer than every window of these networks"
SAMPLING = Sampling(temperature=1.0, repetition_penalty=1.3, seed=4)


def saved(path, network, tokenizer):
    reader = Reader(network, together=20)
    reader.read([[tokenizer.bos, *tokenizer.encode(TEXT)]])
    save_memory(path, reader, tokenizer)
    return reader


@pytest.mark.parametrize("name", [*CONFIGS, *STATES])
def test_a_loaded_memory_goes_on_as_if_it_had_read_the_document(name, tokenizer, tmp_path):
    path = tmp_path / "folder" / "a.memory"
    first = saved(path, build(name), tokenizer)
    network = build(name)
    loaded = load_memory(path, network, tokenizer)
    assert loaded.documents == first.documents
    assert torch.allclose(loaded.logits.double(), first.logits, atol=1e-6)
    for reader in (loaded, loaded := load_memory(path, network, tokenizer)):
        again = read_prompts(network, tokenizer, [TEXT + " and"])
        reader.read([tokenizer.encode(" and")])
        assert torch.allclose(reader.logits, again.logits, atol=1e-9, rtol=0)
    assert collect(write(reader, tokenizer, SAMPLING, 10), 1) == collect(write(again, tokenizer, SAMPLING, 10), 1)


def test_a_memory_holds_no_more_than_the_state(network, tokenizer, tmp_path):
    path = tmp_path / "a.memory"
    reader = saved(path, network, tokenizer)
    size = reader.state.bytes + 8 * (1 + len(TEXT.encode())) + 4 * 258
    header = int.from_bytes(path.read_bytes()[:8], "little") + 8
    assert path.stat().st_size == size + header
    assert [p.name for p in tmp_path.iterdir()] == ["a.memory"]
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_memory_of_bf16_goes_on_in_float32(tokenizer, tmp_path):
    torch.manual_seed(0)
    network = CONFIGS["v2"].build().eval()
    with torch.autocast("cpu", torch.bfloat16):
        saved(tmp_path / "a.memory", network, tokenizer)
        load_memory(tmp_path / "a.memory", network, tokenizer).read([[1, 2, 3]])
    reader = load_memory(tmp_path / "a.memory", network, tokenizer)
    reader.read([[1]])
    whole = read_prompts(network, tokenizer, [TEXT + "\x01"])
    assert (reader.logits - whole.logits).abs().max() < 0.05 * whole.logits.abs().max()


def test_the_fingerprint_is_of_the_weights(network):
    assert fingerprint(build("v2")) == fingerprint(network) == fingerprint(build("v2").float())
    assert fingerprint(build("v2", seed=1)) != fingerprint(network)


def test_a_memory_of_something_else_is_refused(network, tokenizer, tmp_path):
    path = tmp_path / "a.memory"
    saved(path, network, tokenizer)
    with pytest.raises(UserError, match="another network, MemoryMosaicConfig instead of TransformerConfig: use the "):
        load_memory(path, build("transformer"), tokenizer)
    with pytest.raises(UserError, match=r"another network, .*keys gated instead of leaky"):
        load_memory(path, build("v1"), tokenizer)
    with pytest.raises(UserError, match="other weights, such as another checkpoint"):
        load_memory(path, build("v2", seed=1), tokenizer)
    other = train_tokenizer(["a b c"], 258, tmp_path / "t.json", progress=False)
    with pytest.raises(UserError, match="another tokenizer: use the checkpoint it was made with"):
        load_memory(path, network, other)


def test_a_memory_that_cannot_be_written_leaves_nothing(network, tokenizer, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UserError, match=r"cannot write .*a\.memory: No space left"):
        saved(tmp_path / "a.memory", network, tokenizer)
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_memory(network, tokenizer, tmp_path):
    from safetensors.torch import load_file, save_file

    text, folder, weights = tmp_path / "a.txt", tmp_path / "folder", tmp_path / "weights.safetensors"
    text.write_text("hello")
    folder.mkdir()
    save_file({"x": torch.zeros(1)}, weights)
    for path in (text, weights):
        with pytest.raises(UserError, match="not a memory file"):
            load_memory(path, network, tokenizer)
        with pytest.raises(UserError, match="and a memory file would take its place"):
            saved(path, network, tokenizer)
    assert text.read_text() == "hello"
    with pytest.raises(UserError, match="is a folder"):
        saved(folder, network, tokenizer)
    with pytest.raises(UserError, match="is a file, not a folder"):
        saved(text / "a.memory", network, tokenizer)
    with pytest.raises(UserError, match="there is no memory file"):
        load_memory(tmp_path / "none", network, tokenizer)

    path = tmp_path / "a.memory"
    saved(path, network, tokenizer)
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(UserError, match="not a memory file, or a damaged one"):
        load_memory(path, network, tokenizer)
    path.write_bytes(content)
    about = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    tensors = load_file(path)
    save_file(tensors, path, {**about, "version": "2"})
    with pytest.raises(UserError, match="of version 2 of the memory file, this program reads 1"):
        load_memory(path, network, tokenizer)
    for missing in ("state.length", "document", "state.blocks.0.contextual.long.keys"):
        save_file({name: x for name, x in tensors.items() if name != missing}, path, about)
        with pytest.raises(UserError, match="a damaged memory file"):
            load_memory(path, network, tokenizer)
    begin = "state.blocks.1.contextual.short."
    save_file({name: x for name, x in tensors.items() if not name.startswith(begin)}, path, about)
    with pytest.raises(UserError, match="a damaged memory file"):
        load_memory(path, network, tokenizer)


def test_a_flipped_bit_is_found(network, tokenizer, tmp_path, capsys):
    path = tmp_path / "m.memory"
    saved(path, network, tokenizer)
    whole = path.read_bytes()
    assert main(["checkpoint", "verify", str(path)]) == 0
    for place in (len(whole) // 2, len(whole) - 1, whole.index(b'"tokens"') + 11):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"checksum|damaged"):
            load_memory(path, network, tokenizer)
        assert main(["checkpoint", "verify", str(path)]) == 2
        assert "is damaged (its checksum is not the one it was written with)" in capsys.readouterr().out


def test_a_memory_of_earlier_versions_has_no_checksum(network, tokenizer, tmp_path):
    path = tmp_path / "m.memory"
    saved(path, network, tokenizer)
    with safe_open(path, "pt") as file:
        about = {name: text for name, text in file.metadata().items() if name != "crc32"}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, about)
    assert load_memory(path, network, tokenizer).documents
