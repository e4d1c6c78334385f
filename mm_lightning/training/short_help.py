"""The short help of training commands: the main options; `--help all` lists every one."""

from __future__ import annotations

import re

HELP = """\
usage: mm {command} --config FILE [OPTIONS]

{about}.

what to run:
  --config FILE                   a config, a shipped one by name (quickstart); given again, an overlay
  --run FOLDER                    where numbered run folders lie; default: runs/default
  --seed_everything N             seed of weights, data order and steps; default: 1

where to begin:
  --resume [FOLDER]               continue a run with its own configuration
  --ckpt_path FILE                the checkpoint to begin with or to evaluate
  --model.initial_weights FILE    weights to fine-tune, with a fresh optimizer
  --plan GPUS                     check a run of N GPUs on this machine instead of training

data:
  --data.path FOLDER              what `mm data prepare` wrote, or {{FOLDER: WEIGHT, ...}}
  --data.context_length N         tokens of a sequence
  --data.global_batch_size N      sequences of an optimization step on all devices
  --data.micro_batch_size N       sequences of a forward pass on a device; gradients are accumulated

network:
  --model.network CLASS           MemoryMosaicConfig, TransformerConfig, GatedDeltaNetConfig or a class of your own
  --model.network.KEY VALUE       its settings: layers, dim, heads, vocab_size, persistent_dim,
                                  short_term_window ...; all of them: --model.network.help MemoryMosaicConfig

optimization:
  --model.optimizer NAME          adamw, muon, sgd ... of torch.optim, or {{class_path: ..., init_args: ...}}
  --model.schedule NAME           cosine, linear, wsd (with --model.decay_steps), constant, inverse_sqrt ...
  --model.learning_rate X         peak learning rate, after --model.warmup_steps
  --model.warmup_steps N          steps of linear warmup
  --model.weight_decay X          weight decay of weight matrices
  --trainer.max_steps N           optimization steps; the learning rate decays until the last
  --trainer.max_time D:H:M:S      stop after this time, with a checkpoint
  --trainer.gradient_clip_val X   maximum norm of the gradients
  --trainer.val_check_interval N  optimization steps between validations

machine:
  --trainer.devices N             GPUs of each node
  --trainer.num_nodes N           nodes
  --trainer.precision P           32-true, bf16-mixed, bf16-true, 16-mixed
  --trainer.strategy S            ddp, deepspeed_stage_1, _2, _3 ...
  --model.compile true            compile blocks; --model.activation_checkpointing saves memory

Every option is a key of the YAML too. `mm {command} --help all` lists all of them, --print_config shows
every key with its value, --trainer.callbacks.help CLASS (--trainer.strategy.help ...) what a class takes.

examples:
  mm fit --config quickstart
  mm fit --config quickstart --trainer.max_steps 1000 --model.learning_rate 1e-3 --run runs/longer
  mm fit --resume runs/longer"""


def short_help(command: str, about: str) -> str:
    """Return the help of a training command.

    Args:
        command: fit, validate, test or predict.
        about: description of the command in one line.
    """
    parts = HELP.format(command=command, about=about[0].upper() + about[1:]).split("\n\n")
    if command != "fit":
        parts = [part for part in parts if not part.startswith(("optimization", "examples"))]
        parts = [re.sub(r"\n  --(resume|plan|model\.initial_weights) .*", "", part) for part in parts]
    return "\n\n".join(parts)
