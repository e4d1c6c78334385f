"""The short help of training commands: the main options; `--help all` lists every one."""

from __future__ import annotations

GROUPS: dict[str, list[tuple[str, str]]] = {
    "what to run": [
        ("--config FILE", "a config, a shipped one by name (quickstart); given again, an overlay"),
        ("--run FOLDER", "where numbered run folders lie; default: runs/default"),
        ("--seed_everything N", "seed of weights, data order and steps; default: 1"),
    ],
    "where to begin": [
        ("--resume [FOLDER]", "continue a run with its own configuration"),
        ("--ckpt_path FILE", "the checkpoint to begin with or to evaluate"),
        ("--model.initial_weights FILE", "weights to fine-tune, with a fresh optimizer"),
        ("--plan GPUS", "check a run of N GPUs on this machine instead of training"),
    ],
    "data": [
        ("--data.path FOLDER", "what `mm data prepare` wrote, or {FOLDER: WEIGHT, ...}"),
        ("--data.context_length N", "tokens of a sequence"),
        ("--data.global_batch_size N", "sequences of an optimization step on all devices"),
        ("--data.micro_batch_size N", "sequences of a forward pass on a device; gradients are accumulated"),
    ],
    "network": [
        ("--model.network CLASS", "MemoryMosaicConfig, TransformerConfig, GatedDeltaNetConfig or a class of your own"),
        (
            "--model.network.KEY VALUE",
            "its settings: layers, dim, heads, vocab_size, persistent_dim,",
        ),
        ("", "short_term_window ...; all of them: --model.network.help MemoryMosaicConfig"),
    ],
    "optimization (AdamW)": [
        ("--model.learning_rate X", "peak learning rate, after --model.warmup_steps"),
        ("--model.warmup_steps N", "steps of linear warmup"),
        ("--model.weight_decay X", "weight decay of weight matrices"),
        ("--trainer.max_steps N", "optimization steps; the learning rate decays until the last"),
        ("--trainer.max_time D:H:M:S", "stop after this time, with a checkpoint"),
        ("--trainer.gradient_clip_val X", "maximum norm of the gradients"),
        ("--trainer.val_check_interval N", "optimization steps between validations"),
    ],
    "machine": [
        ("--trainer.devices N", "GPUs of each node"),
        ("--trainer.num_nodes N", "nodes"),
        ("--trainer.precision P", "32-true, bf16-mixed, bf16-true, 16-mixed"),
        ("--trainer.strategy S", "ddp, deepspeed_stage_1, _2, _3 ..."),
        ("--model.compile true", "compile blocks; --model.activation_checkpointing saves memory"),
    ],
}

EXAMPLES = """\
examples:
  mm fit --config quickstart
  mm fit --config quickstart --trainer.max_steps 1000 --model.learning_rate 1e-3 --run runs/longer
  mm fit --resume runs/longer"""

ONLY_FIT = ("--resume [FOLDER]", "--plan GPUS", "--model.initial_weights FILE", "optimization (AdamW)")


def short_help(command: str, about: str) -> str:
    """Return the help of a training command.

    Args:
        command: fit, validate, test or predict.
        about: description of the command in one line.
    """
    width = max(len(option) for rows in GROUPS.values() for option, _ in rows)
    lines = [f"usage: mm {command} --config FILE [OPTIONS]", "", f"{about[0].upper()}{about[1:]}.", ""]
    for title, rows in GROUPS.items():
        if command != "fit" and title in ONLY_FIT:
            continue
        lines.append(f"{title}:")
        shown = [row for row in rows if command == "fit" or row[0] not in ONLY_FIT]
        lines += [f"  {option:<{width}}  {text}".rstrip() for option, text in shown]
        lines.append("")
    lines += [
        f"Every option is a key of the YAML too. `mm {command} --help all` lists all of them, --print_config shows",
        "every key with its value, --trainer.callbacks.help CLASS (--trainer.strategy.help ...) what a class takes.",
    ]
    return "\n".join([*lines, "", EXAMPLES] if command == "fit" else lines)
