"""Names that other programs have for our commands and options, for hints."""

from __future__ import annotations

from collections.abc import Iterable

SYNONYMS = {
    "model.learning_rate": "lr learning_rate max_lr peak_lr base_lr optimizer.lr",
    "model.optimizer": "optimizer optim optimizer_name",
    "model.schedule": "scheduler schedule lr_scheduler lr_scheduler_type lr_schedule",
    "model.decay_steps": "num_decay_steps decay_steps cooldown cooldown_steps",
    "model.parameter_groups": "param_groups",
    "model.final_learning_rate": "min_lr final_lr lr_min eta_min",
    "model.weight_decay": "wd weight_decay optimizer.weight_decay",
    "model.betas": "beta1 beta2 betas adam_beta1 adam_beta2",
    "model.warmup_steps": "warmup num_warmup_steps warmup_steps warmup_iters warmup_ratio",
    "model.activation_checkpointing": "gradient_checkpointing checkpoint_activations recompute",
    "model.compile": "torch_compile compile",
    "model.network.layers": "n_layer n_layers num_layers num_hidden_layers depth layers blocks",
    "model.network.dim": "d_model hidden_size hidden_dim n_embd embed_dim embedding_dim dim width model_dim",
    "model.network.heads": "n_head n_heads num_heads num_attention_heads heads",
    "model.network.vocab_size": "vocab vocabulary vocab_size",
    "model.network.persistent_dim": "intermediate_size ffn_dim mlp_dim d_ff persistent_dim",
    "model.network.dropout": "dropout",
    "model.network.short_term_window": "window window_size sliding_window short_term_window",
    "model.initial_weights": "init_from pretrained from_pretrained weights model_name_or_path load_from",
    "data.context_length": "seq_len seq_length sequence_length context context_size block_size max_length max_seq_len "
    "max_seq_length context_length",
    "data.global_batch_size": "batch_size total_batch_size train_batch_size global_batch_size batch",
    "data.micro_batch_size": "per_device_train_batch_size device_batch_size micro_batch micro_batch_size",
    "data.num_workers": "workers dataloader_num_workers num_workers",
    "data.path": "data_dir dataset data_path dataset_path train_data train_file corpus",
    "trainer.max_steps": "steps max_iters num_steps iterations max_steps train_steps total_steps num_train_steps",
    "trainer.max_epochs": "epochs epoch num_epochs max_epochs num_train_epochs n_epochs",
    "trainer.max_time": "max_time time_limit",
    "trainer.precision": "precision dtype bf16 fp16 mixed_precision amp",
    "trainer.devices": "gpus num_gpus n_gpus devices ngpus gpu num_devices nproc_per_node",
    "trainer.num_nodes": "nodes num_nodes nnodes",
    "trainer.accelerator": "device accelerator",
    "trainer.strategy": "strategy ddp deepspeed zero zero_stage fsdp",
    "trainer.gradient_clip_val": "clip grad_clip gradient_clip max_grad_norm clip_grad_norm clip_norm",
    "trainer.val_check_interval": "eval_every eval_steps eval_interval val_interval validate_every val_every",
    "trainer.log_every_n_steps": "log_every logging_steps log_interval log_freq",
    "trainer.callbacks": "callbacks save_steps save_every checkpoint_every save_interval",
    "trainer.logger": "logger wandb report_to",
    "seed_everything": "seed random_seed",
    "run": "output_dir out_dir save_dir out output run_dir log_dir exp_name experiment name default_root_dir",
    "resume": "resume_from_checkpoint resume_from resume_path continue restart",
    "ckpt_path": "ckpt checkpoint load_checkpoint checkpoint_path",
    # plain commands
    "output": "out out_dir output_dir output_path o",
    "sources": "source input inputs files path data data_dir text texts",
    "text": "file input document",
    "checkpoint": "ckpt ckpt_path checkpoint_path model model_path run",
    "max_new_tokens": "max_tokens max_length tokens n_tokens length num_tokens",
    "temperature": "temp t",
    "samples": "num_samples n_samples num_return_sequences n",
    "batch_size": "bs batch",
    "jobs": "workers num_workers processes n_jobs parallel",
    "workers": "num_workers jobs processes num_proc",
    "vocab_size": "vocab vocabulary_size",
    "validation_fraction": "val_fraction valid_fraction test_size val_split",
    "repetition_penalty": "rep_penalty",
    "device": "gpu cuda accelerator",
    "contexts": "context context_length seq_len lengths",
    "settings": "overrides set config",
}
"""The names of an option in other programs, by its name here."""

COMMANDS = {
    "fit": "train pretrain finetune finetune_full continue resume",
    "evaluate": "eval lm_eval",
    "generate": "sample complete",
    "data prepare": "prepare preprocess tokenize",
    "data fetch": "download fetch",
    "tokenizer train": "train_tokenizer",
    "import": "convert_to_litgpt convert_hf_checkpoint",
    "export": "convert convert_from_litgpt push upload",
    "checkpoint consolidate": "consolidate merge zero_to_fp32",
}
"""The names of a command in other programs, by its name here."""


def command_synonym(name: str) -> str | None:
    """Return the command that another program's name means here: `pretrain` is `fit`."""
    typed = name.lower().replace("-", "_")
    return next((command for command, words in COMMANDS.items() if typed in words.split()), None)


def synonym(name: str, known: Iterable[str]) -> str | None:
    """Return the option that another program's name means here: `lr` is `model.learning_rate`.

    Args:
        name: as typed, with its section or without.
        known: names that exist; those of the network's switches need not be among them.
    """
    typed, names = name.lower().replace("-", "_"), set(known)
    for word in (typed, typed.rsplit(".", 1)[-1]):
        for option, words in SYNONYMS.items():
            listed = option in names or (option.startswith("model.network.") and "model.network" in names)
            if listed and option != name and word in words.split():
                return option
    return None
