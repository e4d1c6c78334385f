"""A run of many devices is tried by one process, which writes nothing."""

import os
import threading

import pytest
import torch
import yaml
from torch.nn.modules.module import register_module_parameter_registration_hook

from mm_lightning.cli import main
from mm_lightning.networks import GatedDeltaNetConfig, MemoryMosaicConfig
from mm_lightning.training.accumulation import accumulation_steps
from mm_lightning.training.dry_run import tiny_copy

GPUS = {"trainer.devices": 4, "trainer.num_nodes": 2, "trainer.precision": "bf16-mixed", "data.micro_batch_size": 1}


def plan(tiny, *args: str, **settings) -> int:
    words = [word for key, value in {**GPUS, **settings}.items() for word in (f"--{key}", str(value))]
    return main(["fit", "--config", str(tiny), "--plan", "8", *words, *args])


def environment() -> dict[str, str]:
    seeds_and_accelerators = ("PL_", "DS_")
    return {name: value for name, value in os.environ.items() if not name.startswith(seeds_and_accelerators)}


@pytest.mark.parametrize(
    "strategy", ["ddp", "deepspeed_stage_3", pytest.param("deepspeed_stage_2", marks=pytest.mark.slow)]
)
def test_it_goes_as_far_as_the_first_forward_pass(strategy, tiny, tmp_path, capsys):
    before, types = environment(), set()

    def note(module, name, parameter):
        if not parameter.is_meta:  # has no storage: the optimizer's states are counted on such
            types.add(parameter.dtype)

    hook = register_module_parameter_registration_hook(note)
    assert plan(tiny, **{"trainer.strategy": strategy}) == 0
    hook.remove()
    # under DeepSpeed the network is never there in float32, which keeps its shares of that apart
    assert types == {torch.float32 if strategy == "ddp" else torch.bfloat16}
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "8 devices on 2 nodes" in lines["plan"]
    assert "8 sequences = 8 devices x 1 x 1 accumulated" in lines["batch"]
    assert "GradientNorm" in lines["callbacks"]
    assert "Checkpoints" in lines["callbacks"]
    assert all(thread.name != "watchdog" for thread in threading.enumerate())
    assert "one of 32 tokens (layers 1 -> 1, dim 16 -> 8, persistent_dim 32 -> 16)" in lines["forward"]
    assert {"data", "memory", "disk", "checkpoint", "not"} <= lines.keys()
    assert not (tmp_path / "run").exists()
    assert not torch.distributed.is_initialized()
    assert environment() == before


def test_all_that_is_wrong_is_said_at_once(tiny, tmp_path, capsys):
    assert plan(tiny, **{"data.path": str(tmp_path / "nothing"), "data.global_batch_size": 12}) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no prepared data" in error
    assert "global_batch_size 12 is not a multiple" in error
    assert plan(tiny, "--model.network.vocab_size", "200") == 2
    assert "258 tokens but model.network.vocab_size is 200" in capsys.readouterr().err
    assert plan(tiny, "--plan", "6") == 2
    assert "take 4 or 8" in capsys.readouterr().err


def test_what_classes_refuse_is_said_with_the_rest(tiny, tmp_path, capsys):
    wrong = ["--trainer.callbacks+", "{class_path: EarlyStopping, init_args: {monitor: validation/los}}"]
    assert plan(tiny, *wrong, "--data.path", str(tmp_path / "nothing"), "--gpu_memory", "0.00001") == 2
    error = capsys.readouterr().err
    for problem in ("no prepared data", "monitor is 'validation/los'", "do not fit --gpu_memory 1e-05"):
        assert error.count(problem) == 1
    assert plan(tiny, **{"data.global_batch_size": 4, "data.micro_batch_size": 2}) == 2
    assert capsys.readouterr().err.count("global_batch_size") == 2  # the mistake, and what fits
    assert plan(tiny, "--gpu_memory", "80") == 0


def test_where_the_memory_is_not_known_the_rest_is_checked(tiny, capsys):
    assert plan(tiny, **{"model.optimizer": "adamww", "trainer.strategy": "ddp"}) == 2
    out, error = capsys.readouterr()
    assert "disk         not checked" in out
    assert "checkpoint   none" in out
    assert error.count("there is no adamww: did you mean AdamW?") == 1


def test_a_checkpoint_is_held_against_the_network(tiny, finished, tmp_path, capsys):
    assert plan(tiny, "--resume", **{"trainer.max_steps": 9, "model.network.dim": 32}) == 2
    assert "dim 16 instead of 32" in capsys.readouterr().err
    assert plan(tiny, "--resume", **{"trainer.max_steps": 9}) == 0
    assert "step=6.ckpt fits the network" in capsys.readouterr().out
    run = str(tmp_path / "run")
    assert plan(tiny, **{"model.initial_weights": run, "model.network.dim": 32}) == 2
    assert "dim 16 instead of 32" in capsys.readouterr().err
    assert plan(tiny, **{"model.initial_weights": run}) == 0
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["0"]


def test_data_that_will_be_made_are_not_made(tiny, tmp_path, capsys):
    values = yaml.safe_load(tiny.read_text())
    values["data"] |= {"path": str(tmp_path / "later"), "prepare": {"sources": [str(tmp_path)], "tokenizer": "bytes"}}
    tiny.write_text(yaml.safe_dump(values))
    assert plan(tiny) == 0
    assert "later is not there yet" in capsys.readouterr().out
    assert not (tmp_path / "later").exists()


def test_numbers_that_fit_are_proposed():
    assert accumulation_steps(1024, 4, 64, 8) == 4
    with pytest.raises(
        ValueError, match=r"4 x 48 devices = 192. What fits: data.global_batch_size 960 or 1152"
    ) as wrong:
        accumulation_steps(1024, 4, 48, 8)
    assert "32 or 64 devices (4 or 8 nodes)" in str(wrong.value)
    assert "micro_batch_size" not in str(wrong.value).split("What fits")[1]
    with pytest.raises(ValueError, match=r"or data.micro_batch_size 2 or 4$"):
        accumulation_steps(64, 3, 16)


def test_a_tiny_copy_network_keeps_its_kind():
    config = MemoryMosaicConfig(layers=32, dim=4096, heads=32, persistent_dim=14336, keys="leaky")
    small = tiny_copy(config)
    assert (small.layers, small.dim, small.heads, small.persistent_dim, small.keys) == (2, 128, 32, 448, "leaky")
    assert tiny_copy(GatedDeltaNetConfig(layers=8, attention_every=4)).layers == 8  # two would have no attention


def test_all_mistakes_of_settings_are_said_at_once(tiny, capsys):
    wrong = {"trainer.max_steps": -5, "trainer.gradient_clip_val": ".nan", "trainer.accumulate_grad_batches": 3}
    assert plan(tiny, **wrong, **{"trainer.max_time": "x", "data.global_batch_size": 7}) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for words in (
        "max_steps takes",
        "clip_val takes",
        "accumulate_grad_batches 3 cannot be set",
        "max_time takes",
        "size 7 is",
    ):
        assert words in message, message
    assert plan(tiny, **wrong, **{"model.learning_rate": -1, "data.context_length": 0}) == 2
    message = capsys.readouterr().err
    assert all(words in message for words in ("max_steps takes", "learning_rate takes", "context_length takes")), (
        message
    )
