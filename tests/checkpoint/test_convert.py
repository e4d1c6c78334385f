"""mm checkpoint convert: what DeepSpeed has saved goes on without it."""

from dataclasses import replace

import pytest
import torch
import yaml
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from resuming import Case, steps, together, tokens
from runs import metrics
from small_checkpoints import about, network, plain, sharded

from mm_lightning.checkpoint import METADATA_KEY, PARTIAL_SUFFIX, commit_folder, find_damage, weights_only_loading
from mm_lightning.checkpoint.universal import PROGRESS_ENTRIES
from mm_lightning.cli import main
from mm_lightning.errors import UserError
from mm_lightning.training.resolve_checkpoint import check_resumable
from mm_lightning.training.sharding import shard_name
from mm_lightning.training.strategies import DeepSpeed

KINDS = {"fp32": lambda p: p, "exp_avg": lambda p: -p, "exp_avg_sq": lambda p: p * p}


def universal(net, path, stage: int):
    """The universal form as DeepSpeed lays it out, after five steps: written anew here, not by what is tested."""
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    zero = partial / "checkpoint" / "zero"
    named = {f"network.{name}": p.detach() for name, p in net.named_parameters()}
    groups = [{n: p for n, p in named.items() if (p.ndim > 1) == matrices} for matrices in (True, False)]
    for name, parameter in named.items():
        (zero / name).mkdir(parents=True)
        for kind, value in KINDS.items():
            found = {"cat_dim": 0, "param": value(parameter)} if stage < 3 else value(parameter).flatten()
            torch.save(found, zero / name / f"{kind}.pt")
        if stage < 3:
            torch.save(torch.tensor(5.0), zero / name / "step.pt")
    optimizer = {"param_groups": [{"lr": 0.5, "weight_decay": w, "params": [n]} for n, w in enumerate((0.1, 0.0))]}
    if stage == 3:
        optimizer["optimizer_state_dict"] = {"state": {n: {"step": torch.tensor(5.0)} for n in range(2)}}
    torch.save(optimizer, zero / "optimizer_state.pt")
    states = {
        "param_shapes": [{name: p.shape for name, p in group.items()} for group in groups],
        "module": {name: p.bfloat16() for name, p in named.items()},
        "ds_version": "0.19.8",
        **dict.fromkeys(PROGRESS_ENTRIES, 5),
        METADATA_KEY: about(net),
    }
    torch.save(states, partial / "checkpoint" / "mp_rank_00_model_states.pt")
    commit_folder(partial, path, 2, about(net))
    return path


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("tied", [False, True])
def test_a_plain_file_of_the_universal_form(tmp_path, stage, tied):
    net = network(tied)
    source, output = universal(net, tmp_path / "step=5.universal", stage), tmp_path / "step=5.ckpt"
    assert main(["checkpoint", "convert", str(source), "--output", str(output)]) == 0
    assert find_damage(output) is None
    found = torch.load(output, weights_only=True)
    assert found.keys() == {*PROGRESS_ENTRIES, "state_dict", "optimizer_states"}
    assert {name: found[name] for name in PROGRESS_ENTRIES} == {
        **dict.fromkeys(PROGRESS_ENTRIES, 5),
        METADATA_KEY: about(net),
    }
    # weights in float32, under every name that they have in a run's own file
    wanted = net.state_dict()
    assert list(found["state_dict"]) == [f"network.{name}" for name in wanted]
    assert all(torch.equal(found["state_dict"][f"network.{name}"], value) for name, value in wanted.items())
    if tied:
        one, two = (found["state_dict"][f"network.{name}.weight"] for name in ("embedding", "classifier"))
        assert one.data_ptr() == two.data_ptr()
    # each moment where the optimizer of a run expects it
    optimizer = torch.optim.AdamW([{"params": group} for group in net.weight_decay_groups()])
    optimizer.load_state_dict(found["optimizer_states"][0])
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.5, 0.1), (0.5, 0.0)]
    for parameter in net.parameters():
        state = optimizer.state[parameter]
        assert float(state.pop("step")) == 5
        assert state.keys() == KINDS.keys() - {"fp32"}
        assert all(torch.equal(value, KINDS[kind](parameter.detach())) for kind, value in state.items())


def test_mistakes(tmp_path, capsys):
    source = universal(network(), tmp_path / "step=5.universal", 2)
    file = plain(network(), tmp_path / "step=4.ckpt")
    for checkpoint, output, told in (
        (source, "again", "is in the universal form already"),
        (source, "x.safetensors", "x.safetensors must end in .ckpt"),
        (source, "step=4.ckpt", "step=4.ckpt exists"),
        (file, "x.ckpt", "is a plain checkpoint"),
    ):
        assert main(["checkpoint", "convert", str(checkpoint), "--output", str(tmp_path / output)]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1
    with pytest.raises(
        UserError, match=r"convert \S*step=5.universal --output (\S*plain-step=5.ckpt), then --ckpt_path \1$"
    ):
        check_resumable(source, SingleDeviceStrategy())
    next(source.rglob("exp_avg.pt")).unlink()
    assert main(["checkpoint", "convert", str(source), "--output", str(tmp_path / "x.ckpt")]) == 2
    assert "exp_avg.pt is missing" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step=4.ckpt", "step=5.universal"]


@pytest.mark.parametrize(("saved", "resumed"), [(2, 3), (3, 2), (2, 1), (3, 3)])
def test_stage_3_and_the_others_do_not_resume_each_other(tmp_path, saved, resumed):
    path = sharded(network(), tmp_path / "step=5.ckpt", saved)
    strategy = DeepSpeed(stage=resumed)
    if (saved == 3) == (resumed == 3):
        check_resumable(path, strategy)
        return
    with pytest.raises(UserError, match=r"by stage \S+( or 2)? of ZeRO, .* in stage .*: keep the stage"):
        check_resumable(path, strategy)


@pytest.mark.parametrize(
    ("precision", "file"), [("bf16-mixed", "bf16_zero"), ("32-true", "zero"), ("16-mixed", "zero")]
)
def test_deepspeed_names_shards_by_precision(precision, file):
    strategy = DeepSpeed(stage=2, precision_plugin=DeepSpeedPrecision(precision))
    assert shard_name(strategy.bf16) == f"{file}_pp_rank_0_mp_rank_00_optim_states.pt"


SETTINGS = {
    "trainer.max_steps": 40,
    "trainer.val_check_interval": 10,
    "model.network.layers": 1,
    "data.global_batch_size": 4,
    "data.micro_batch_size": 2,
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("stage", "tied"), [(1, False), (2, True), (3, True)])
def test_a_run_goes_on_without_deepspeed(tiny, tmp_path, stage, tied):
    values = yaml.safe_load(tiny.read_text())
    del values["trainer"]["callbacks"], values["run"]
    tiny.write_text(yaml.safe_dump(values))
    whole = Case("whole", {**SETTINGS, "model.network.tied": tied})
    whole.run(str(tiny), tmp_path)
    zero = Case("zero", {**whole.settings, "trainer.strategy": f"deepspeed_stage_{stage}"}, [20], [20])
    assert not any(together(str(tiny), tmp_path, [(zero, 0, 1)]))
    folder = tmp_path / "zero" / "run" / "0"
    files = [tmp_path / "step=20.ckpt", folder / "plain-step=20.ckpt"]
    assert main(["checkpoint", "convert", str(folder), "--output", str(tmp_path / "step=20.universal")]) == 0
    assert main(["checkpoint", "convert", str(tmp_path / "step=20.universal"), "--output", str(files[0])]) == 0
    assert main(["checkpoint", "convert", str(folder), "--output", str(files[1])]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step=20.ckpt"]
    assert_holds_the_shards(files[0], folder / "checkpoints" / "step=20.ckpt", stage)

    # one process in the run's own folder by --resume, and two with DDP by --ckpt_path in a fresh one
    alone = replace(
        zero, settings={**whole.settings, "resume": str(files[1]), "trainer.strategy": "auto", "trainer.devices": 1}
    )
    alone.run(str(tiny), tmp_path, 1)
    ddp = Case("ddp", {**whole.settings, "trainer.strategy": "ddp", "ckpt_path": str(files[0])})
    assert not any(together(str(tiny), tmp_path, [(ddp, 0, None)]))
    expected = steps(tmp_path, whole)
    for case, first in ((alone, 0), (ddp, 20)):
        found = steps(tmp_path, case)
        assert sorted(found) == list(range(first, 40))
        assert tokens(found) == tokens({step: expected[step] for step in found})
        for step, batches in found.items():
            for is_, should in zip(batches, expected[step], strict=True):
                assert (is_["m"], is_["groups"]) == (should["m"], should["groups"])
                assert float.fromhex(is_["loss"]) == pytest.approx(float.fromhex(should["loss"]), rel=1e-6), step
        validated = metrics(tmp_path / case.name / "run" / "0", "validation/loss")
        wanted = metrics(tmp_path / "whole" / "run" / "0", "validation/loss")
        assert validated == pytest.approx({step: wanted[step] for step in range(max(first, 10), 41, 10)}, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_weights_in_bf16_come_from_their_float32_copies(tiny, tmp_path, stage):
    settings = {"trainer.strategy": f"deepspeed_stage_{stage}", "trainer.precision": "bf16-mixed"}
    case = Case("zero", {**SETTINGS, **settings, "trainer.max_steps": 2, "trainer.val_check_interval": 2})
    assert not any(together(str(tiny), tmp_path, [(case, 0, None)]))
    source = tmp_path / "zero" / "run" / "0" / "checkpoints" / "step=2.ckpt"
    assert main(["checkpoint", "convert", str(source), "--output", str(tmp_path / "step=2.ckpt")]) == 0
    assert_holds_the_shards(tmp_path / "step=2.ckpt", source, stage)
    weight = torch.load(tmp_path / "step=2.ckpt", weights_only=True)["state_dict"]["network.embedding.weight"]
    assert not torch.equal(weight, weight.bfloat16().float())


def assert_holds_the_shards(file, folder, stage: int) -> None:
    """Every tensor of the file is what lies, in pieces, in the shards of two processes."""
    plain_file = torch.load(file, weights_only=True)
    with weights_only_loading(folder):
        files = [next((folder / "checkpoint").glob(f"*_rank_{rank}_*optim_states.pt")) for rank in range(2)]
        shards = [torch.load(part)["optimizer_state_dict"] for part in files]
        model = torch.load(next((folder / "checkpoint").glob("*model_states.pt")))
    base = "optimizer_state_dict" if stage == 3 else "base_optimizer_state"
    copies = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    (states,), count = plain_file["optimizer_states"], 0
    for index, group in enumerate(model["param_shapes"]):
        pieces = {kind: [shard[base]["state"][index][kind] for shard in shards] for kind in ("exp_avg", "exp_avg_sq")}
        pieces["fp32"] = [shard[copies][index] for shard in shards]
        assert states["param_groups"][index]["params"] == list(range(count, count + len(group)))
        begin = 0
        for (name, shape), number in zip(group.items(), states["param_groups"][index]["params"], strict=True):
            size = -(-shape.numel() // 2) if stage == 3 else shape.numel()
            for kind, parts in pieces.items():
                # stage 3 halves each parameter, 1 and 2 the whole of a group
                flat = [part[begin : begin + size] for part in parts] if stage == 3 else [torch.cat(parts)[begin:]]
                value = torch.cat(flat)[: shape.numel()].view(shape)
                found = plain_file["state_dict"][name] if kind == "fp32" else states["state"][number][kind]
                assert found.dtype == torch.float32
                assert torch.equal(found, value), f"{kind} of {name}"
            assert states["state"][number]["step"] == shards[0][base]["state"][index]["step"]
            begin += size
        count += len(group)
    assert count == len(states["state"])
