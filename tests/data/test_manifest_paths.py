"""Paths in a manifest lead nowhere but into its folder."""

import json

import pytest

from mm_lightning.data.manifest import check_inside
from mm_lightning.errors import UserError


@pytest.mark.parametrize("name", ["../x.bin", "train/../../x.bin", "/etc/passwd", "link/x.bin", "shard.bin"])
def test_a_path_that_leads_out_is_refused(tmp_path, name):
    folder = tmp_path / "prepared"
    folder.mkdir()
    (tmp_path / "x.bin").write_bytes(b"x")
    (folder / "link").symlink_to(tmp_path)
    (folder / "shard.bin").symlink_to(tmp_path / "x.bin")
    with pytest.raises(UserError, match="outside of"):
        check_inside(folder, name)
    check_inside(folder, "train/chunk-0-0.bin")
    check_inside(folder, "train/../tokenizer.json")


def test_a_manifest_that_names_one_is_refused(tmp_path):
    from mm_lightning.data.manifest import FORMAT_VERSION, Manifest

    shard = {"file": "../../secret", "bytes": 1, "tokens": 1, "crc32": "00000000"}
    split = {"documents": 1, "tokens": 1, "bytes": 1, "unigram_entropy": 0.0, "longest_document": 1}
    split |= {"length_histogram": [1], "shards": [shard]}
    content = {"tokenizer": {}, "dtype": "uint16", "splits": {"train": split}, "sources": [], "settings": {}}
    content |= {"fingerprint": "", "format_version": FORMAT_VERSION}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"names train/\.\./\.\./secret, which is outside of"):
        Manifest.load(tmp_path)
