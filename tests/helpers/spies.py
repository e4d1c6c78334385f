"""Callbacks that write down what a run in another process does, for tests to read."""

import copy
import json
import pickle
import weakref
from pathlib import Path

import torch
from lightning.pytorch import Callback
from torch.nn.modules.module import register_module_parameter_registration_hook

from mm_lightning.callbacks import Evaluation


class StepSpy(Callback):
    """Saves weights and first moments by name after the first optimization step, as `file`."""

    def __init__(self, file: str):
        self.file = file

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step != 1 or Path(self.file).exists():
            return
        found = {name: self.weight_and_moment(trainer, p) for name, p in pl_module.network.named_parameters()}
        if trainer.is_global_zero:
            torch.save(found, self.file)

    def weight_and_moment(self, trainer, parameter):
        if not hasattr(parameter, "_hp_mapping") and not hasattr(parameter, "ds_id"):
            return parameter.detach().clone(), trainer.optimizers[0].state[parameter]["exp_avg"].clone()
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        weight = safe_get_full_fp32_param(parameter).clone()
        if hasattr(parameter, "ds_id"):
            return weight, safe_get_full_optimizer_state(parameter, "exp_avg").clone()
        return weight, moment_of_partitions(trainer.optimizers[0].optimizer, parameter)


def moment_of_partitions(optimizer, parameter):
    """A parameter's first moment, put together from each process's part of the flat states of stages 1 and 2."""
    moment = torch.zeros(parameter.shape)
    here = parameter._hp_mapping
    if here is not None:
        place, memory = here.hp_fragment_address, here.hp_fragment.untyped_storage().data_ptr()
        flats = [flat for group in optimizer.param_groups for flat in group["params"]]
        flat = next(flat for flat in flats if flat.untyped_storage().data_ptr() == memory)
        part = optimizer.state[flat]["exp_avg"].narrow(0, place.start, place.numel)
        moment.view(-1).narrow(0, here.lp_fragment_address.start, place.numel).copy_(part)
    torch.distributed.all_reduce(moment)
    return moment


class HeldSpy(Callback):
    """Writes to `file` + rank the most numbers of parameters that this process held while the network was built."""

    def __init__(self, file: str):
        self.file = file
        self.alive = weakref.WeakSet()
        self.most = self.largest = 0

    def setup(self, trainer, pl_module, stage):
        self.hook = register_module_parameter_registration_hook(self.count)

    def count(self, module, name, parameter):
        self.alive.add(parameter)
        self.largest = max(self.largest, parameter.numel())
        self.most = max(
            self.most, sum(p.numel() + (p.ds_tensor.numel() if hasattr(p, "ds_tensor") else 0) for p in self.alive)
        )

    def on_fit_start(self, trainer, pl_module):
        self.hook.remove()
        numbers = {"most": self.most, "largest": self.largest, "all": pl_module.parameter_count}
        Path(f"{self.file}.{trainer.global_rank}").write_text(json.dumps(numbers))


class AskedSpy(Callback):
    """Writes down what each process is asked in an evaluation, a line of keys each, as RANK.jsonl in `folder`."""

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def on_train_start(self, trainer, pl_module):
        (task,) = next(callback for callback in trainer.callbacks if isinstance(callback, Evaluation)).tasks
        ask = task.ask

        def spied(model, items):
            self.folder.mkdir(exist_ok=True)
            with open(self.folder / f"{trainer.global_rank}.jsonl", "a") as file:
                file.write(json.dumps([item.key for item in items]) + "\n")
            return ask(model, items)

        task.ask = spied


class GroupsSpy(Callback):
    """Writes a JSON line a step, as `file`: the settings that the optimizer takes it with, by parameter group."""

    def __init__(self, file: str):
        self.file = file

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if not trainer.is_global_zero or trainer.fit_loop.epoch_loop._should_accumulate():
            return
        names = ("lr", "weight_decay", "betas", "eps")
        line = {name: [group[name] for group in trainer.optimizers[0].param_groups] for name in names}
        scheduler = trainer.lr_scheduler_configs[0].scheduler
        clip = getattr(trainer.optimizers[0], "clip_grad", trainer.gradient_clip_val)  # of ZeRO 1 and 2: restored, too
        line |= {"step": trainer.global_step + 1, "base_lrs": scheduler.base_lrs, "clip": clip}
        with open(self.file, "a") as file:
            file.write(json.dumps(line) + "\n")


class StopSpy(Callback):
    """Stops the run after so many micro batches."""

    def __init__(self, batches: int):
        self.batches = batches

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches -= 1
        trainer.should_stop = trainer.should_stop or self.batches == 0


class BatchSpy(Callback):
    """Writes a JSON line a micro batch, as `file`: the step that it belongs to, and its rows of tokens."""

    def __init__(self, file: str):
        self.file = file

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.is_global_zero:
            with open(self.file, "a") as file:
                file.write(json.dumps([trainer.global_step + 1, batch.tokens.tolist()]) + "\n")


class CopySpy(Callback):
    """Copies and pickles what takes part in the first step, and writes, as `file`, what cannot be."""

    def __init__(self, file: str):
        self.file = file

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step > 1 or Path(self.file).exists():
            return
        things = [pl_module, pl_module.network, pl_module.network.new_state(1, 8), trainer.datamodule, batch]
        things += [trainer.train_dataloader, *trainer.optimizers, trainer.lr_scheduler_configs[0].scheduler]
        things += [*trainer.callbacks, trainer.callbacks, *trainer.loggers]
        failed = []
        for thing in things:
            for copied in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
                try:
                    assert type(copied(thing)) is type(thing)
                except Exception as error:
                    failed.append(f"{type(thing).__name__}: {type(error).__name__}: {error}")
        for _ in range(2):  # a copy reads, and watches nothing
            copy.deepcopy(pl_module.network)(batch.tokens, batch.documents)
        next(iter(copy.deepcopy(trainer.train_dataloader)))
        Path(self.file).write_text(json.dumps({"copied": len(things), "failed": failed}))
