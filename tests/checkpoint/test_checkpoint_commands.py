"""mm checkpoint, on a plain checkpoint and on shards laid out as DeepSpeed lays them."""

import json
import os
import subprocess
import sys

import pytest
import torch
from small_checkpoints import network, plain, sharded

from mm_lightning.checkpoint import (
    METADATA_KEY,
    integrity,
    load_network,
    open_weights,
)
from mm_lightning.cli import main


@pytest.mark.parametrize("kind", ["plain", "stage 2", "stage 3"])
@pytest.mark.parametrize("tied", [False, True])
def test_consolidated_weights_are_the_same(tmp_path, capsys, kind, tied):
    net = network(tied)
    path = tmp_path / "step=5.ckpt"
    _ = plain(net, path) if kind == "plain" else sharded(net, path, int(kind[-1]))
    output = tmp_path / "weights.safetensors"
    assert main(["checkpoint", "consolidate", str(path), "--output", str(output)]) == 0
    from safetensors.torch import load_file

    found = load_file(output)
    wanted = dict(net.named_parameters())
    assert found.keys() == wanted.keys()  # tied weights once
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name
    assert main(["checkpoint", "compare", str(path), str(output)]) == 0
    assert "tensors are the same" in capsys.readouterr().out
    again = json.loads(output.read_bytes()[8 : 8 + int.from_bytes(output.read_bytes()[:8], "little")])["__metadata__"]
    assert json.loads(again[METADATA_KEY])["context_length"] == 16


def test_a_safetensors_file_is_a_checkpoint_and_is_verified(tmp_path, capsys):
    net = network()
    output = tmp_path / "weights.safetensors"
    path = plain(net, tmp_path / "step=5.ckpt")
    assert main(["checkpoint", "consolidate", str(path), "--output", str(output), "--dtype", "bfloat16"]) == 0
    weights = open_weights(output)
    assert weights["embedding.weight"].equal(net.embedding.weight.bfloat16())
    with pytest.raises(ValueError, match="no tokenizer"):  # after its network was loaded
        load_network(output)
    good = output.read_bytes()
    for place in range(8, len(good), 5):
        output.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        integrity._damage.cache_clear()
        assert integrity.find_damage(output) is not None, place
    output.write_bytes(good[:-1])
    assert main(["checkpoint", "verify", str(output)]) == 2
    assert "is truncated" in capsys.readouterr().out


def test_memory_holds_one_tensor_at_a_time(tmp_path):
    """64 MB of weights in matrices of 4 MB, put together by a process that may grow by 40 MB."""
    count, size = 16, 1 << 20
    folder = tmp_path / "step=1.ckpt.partial" / "checkpoint"
    folder.mkdir(parents=True)
    shapes = [{f"network.{n}": torch.Size([size]) for n in range(count)}]
    torch.save({"param_shapes": shapes}, folder / "mp_rank_00_model_states.pt")
    for rank in range(2):
        part = torch.full((count * size // 2,), float(rank))
        states = {"zero_stage": 2, "single_partition_of_fp32_groups": [part]}
        torch.save({"optimizer_state_dict": states}, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    code = """
import pathlib, sys, torch
from mm_lightning.checkpoint.safetensors_file import write_safetensors
from mm_lightning.checkpoint.weights import read_shards
def anonymous():  # what files that are mapped bring in can be dropped at any time, and is not counted
    return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1]) / 1024
class Watched(dict):
    peak = 0.0
weights = read_shards(pathlib.Path(sys.argv[1]))
before, peaks = anonymous(), []
read = type(weights).__getitem__
type(weights).__getitem__ = lambda self, name: (peaks.append(anonymous()), read(self, name))[1]
write_safetensors(weights, pathlib.Path(sys.argv[2]), {}, {}, torch.float32)
print(max(*peaks, anonymous()) - before)
"""
    output = tmp_path / "x.safetensors"
    words = [sys.executable, "-c", code, str(folder.parent), str(output)]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 40
    weights = open_weights(output)
    assert [float(weights[str(n)].mean()) for n in range(count)] == [0.0] * 8 + [1.0] * 8


def test_compare_names_what_differs(tmp_path, capsys):
    one, two = network(), network()
    with torch.no_grad():
        two.embedding.weight[3, 1] += 0.25
    paths = [str(plain(net, tmp_path / f"step={n}.ckpt")) for n, net in enumerate((one, two))]
    assert main(["checkpoint", "compare", *paths]) == 2
    said = capsys.readouterr()
    assert "embedding.weight (12, 4): largest difference 0.25, mean 0.00521" in said.out
    assert "1 of" in said.err
    assert main(["checkpoint", "compare", *paths, "--tolerance", "0.3"]) == 0


def test_list_and_verify(tmp_path, capsys):
    place = tmp_path / "0" / "checkpoints"
    plain(network(), place / "step=5.ckpt")
    damaged = sharded(network(), place / "step=10.ckpt", 3)
    os.truncate(next(damaged.rglob("*optim*")), 100)
    (place / "step=15.ckpt.partial").write_bytes(b"half")
    assert main(["checkpoint", "list", str(tmp_path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if len(line.split()) > 1]
    assert [row[0] for row in rows] == ["step", "5", "10", "15"]
    assert [row[2] for row in rows[1:]] == ["complete", "damaged:", "partial"]
    assert main(["checkpoint", "verify", str(tmp_path)]) == 2
    assert "2 of the checkpoints" in capsys.readouterr().err
