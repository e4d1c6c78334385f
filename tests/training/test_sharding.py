"""Each private name of DeepSpeed and torch.distributed that the package touches is where it was."""

import inspect
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import nn
from torch.distributed import distributed_c10d

from mm_lightning.checkpoint import set_deepspeed_accelerator
from mm_lightning.training import sharding

pytestmark = pytest.mark.interfaces


@pytest.fixture
def processes():
    with sharding.fake_processes(4):
        assert torch.distributed.get_world_size() == 4
        yield
    assert not torch.distributed.is_initialized()


def deepspeed():
    set_deepspeed_accelerator()
    import deepspeed

    return deepspeed


def test_all_groups_get_the_limit(processes, monkeypatch):
    torch.distributed.new_group([0, 1])
    limits = []
    name = "set_timeout" if hasattr(distributed_c10d, "set_timeout") else "_set_pg_timeout"
    assert list(inspect.signature(getattr(distributed_c10d, name)).parameters) == ["timeout", "group"]
    monkeypatch.setattr(distributed_c10d, name, lambda limit, group: limits.append(limit))
    sharding.limit_groups(timedelta(seconds=3))
    assert limits == [timedelta(seconds=3)] * 2


def test_whole_parameters_are_counted_and_read_as_they_are():
    module = nn.Linear(3, 2)
    assert not any(map(sharding.is_partitioned, module.parameters()))
    assert sharding.parameter_count(module) == 8
    with sharding.gathered(module.parameters()):
        assert module.weight.shape == (2, 3)


def test_partitioned_parameters_are_marked():
    deepspeed()
    from deepspeed.runtime.zero import partition_parameters

    source = inspect.getsource(partition_parameters)
    assert "param.ds_id = " in source
    assert "param.ds_numel = " in source
    assert "param.ds_shape = " in source
    assert inspect.isclass(partition_parameters.GatheredParameters)


def test_deepspeed_keeps_its_process_group_in_one_place():
    deepspeed()
    from deepspeed.comm import comm

    assert comm.cdb is None
    assert callable(comm.destroy_process_group)


def test_deepspeed_compiles_by_one_name():
    deepspeed()
    from deepspeed.runtime import compiler

    before = compiler.compile
    with sharding.eager_deepspeed():
        assert compiler.compile()(test_deepspeed_compiles_by_one_name) is test_deepspeed_compiles_by_one_name
    assert compiler.compile is before
    muon = (Path(compiler.__file__).parent / "zero" / "muon" / "original_muon.py").read_text()
    assert "@compiler.compile()\ndef muon_update(" in muon


def test_cpus_are_set_up_by_names_that_exist():
    module = deepspeed()
    from deepspeed.accelerator import set_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    assert callable(set_accelerator)
    assert isinstance(module.ops.__compatible_ops__, dict)
    builder = CPU_Accelerator().create_op_builder("ShareMemCommBuilder")
    assert builder is None or builder.NAME in module.ops.__compatible_ops__
    assert DDPStrategy()._process_group_backend is None
    for name in ("_init_deepspeed_distributed", "_format_config", "_auto_select_batch_size", "set_world_ranks"):
        assert callable(getattr(DeepSpeedStrategy, name))
    assert "_process_group_backend" in inspect.getsource(DeepSpeedStrategy._init_deepspeed_distributed)


def test_the_engine_writes_by_its_checkpoint_engine():
    deepspeed()
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.engine import DeepSpeedEngine

    assert list(inspect.signature(TorchCheckpointEngine.save).parameters)[1:3] == ["state_dict", "path"]
    assert "self.checkpoint_engine.save(" in inspect.getsource(DeepSpeedEngine)
    engine = SimpleNamespace(checkpoint_engine=SimpleNamespace(save=None))
    sharding.write_shards_with(engine, print)
    assert engine.checkpoint_engine.save is print


def test_shards_are_named_after_the_precision():
    deepspeed()
    from deepspeed.runtime.engine import DeepSpeedEngine

    source = inspect.getsource(DeepSpeedEngine._get_zero_ckpt_prefix)
    assert "bf16_" in source
    assert "zero_pp_rank_" in source


def test_overflow_and_norm():
    deepspeed()
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    assert callable(DeepSpeedEngine.get_global_grad_norm)
    assert "self.check_grad_overflow = " in inspect.getsource(DeepSpeedZeroOptimizer.__init__)
    for optimizer in (DeepSpeedZeroOptimizer, DeepSpeedZeroOptimizer_Stage3):
        source = inspect.getsource(optimizer)
        assert "self.overflow = " in source
        assert "self.clip_grad = " in source
        assert "self.loss_scaler = " in source
        assert "self.dynamic_loss_scale = " in source
    engine = SimpleNamespace(optimizer=SimpleNamespace(overflow=True), get_global_grad_norm=lambda: 3.0)
    norm, skipped = sharding.step_norm(engine)
    assert skipped
    assert norm != norm
    engine.optimizer.overflow = False
    assert sharding.step_norm(engine) == (3.0, False)
    engine.optimizer.check_grad_overflow = False
    sharding.watch_overflow(engine)
    assert engine.optimizer.check_grad_overflow


def test_dynamic_scales_have_a_place():
    deepspeed()
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler

    scaler = DynamicLossScaler(2.0**16, 1000, 1.0, 2, False)
    assert {"cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis", "dynamic"} <= vars(scaler).keys()
    assert not LossScaler(1.0).dynamic


def test_the_universal_form_is_asked_for_by_the_config():
    deepspeed()
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.engine import DeepSpeedEngine

    assert "load_universal_checkpoint" in inspect.getsource(DeepSpeedConfig)
    assert "self._config.load_universal_checkpoint" in inspect.getsource(DeepSpeedEngine)


def test_what_the_universal_form_gets_wrong_is_mended():
    steps = torch.zeros(())
    state = {"a": {"step": steps}, "b": {"step": steps}}
    groups = [{"params": [1], "lr": 1.0, "weight_decay": 0.1}, {"params": [2], "lr": 1.0, "weight_decay": 0.0}]
    optimizer = SimpleNamespace(param_groups=groups, optimizer=SimpleNamespace(state=state))
    engine = SimpleNamespace(optimizer=optimizer, _config=SimpleNamespace(load_universal_checkpoint=False))

    def load():
        assert engine._config.load_universal_checkpoint
        groups[1]["weight_decay"] = 0.1
        return {"lr_schedulers": [{"_last_lr": [0.5, 0.25]}]}

    sharding.load_universal(engine, load)
    assert not engine._config.load_universal_checkpoint
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(0.5, 0.1), (0.25, 0.0)]
    assert state["a"]["step"] is not state["b"]["step"]
