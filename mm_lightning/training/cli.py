"""`mm fit | validate | test | predict`: a LightningCLI with configs that build on each other and one-line errors."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from shlex import quote
from typing import Any

from jsonargparse import ArgumentError, Namespace, set_parsing_settings
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from mm_lightning import signals
from mm_lightning.checkpoint import check_architecture, step_of
from mm_lightning.checkpoint.network_loading import check_vocabulary
from mm_lightning.checkpoint.run_folder import RunFolder
from mm_lightning.console import is_first_process, say
from mm_lightning.data import TextDataModule
from mm_lightning.data.generator import Generator
from mm_lightning.errors import UserError
from mm_lightning.networks import NetworkConfig
from mm_lightning.networks.cost import parameters
from mm_lightning.outputs import check_output
from mm_lightning.renamed import current_options
from mm_lightning.training import strategies
from mm_lightning.training.accumulation import accumulation_steps
from mm_lightning.training.check_config import config_errors
from mm_lightning.training.command_options import TRAINER_DEFAULTS, add_options, state_option_ranges
from mm_lightning.training.command_results import report_evaluation, write_predictions
from mm_lightning.training.config_files import ConfigFile, read_chain, split_configs
from mm_lightning.training.data_preparation import drop_other_preparation, enlarge_vocabulary
from mm_lightning.training.lightning_internals import kill_launched, parser_options, set_process_timeout
from mm_lightning.training.module import LanguageModule
from mm_lightning.training.parser_errors import broken_module, explain_parser_error
from mm_lightning.training.record_run import RecordRun
from mm_lightning.training.resolve_checkpoint import (
    check_resumable,
    claim_run_folder,
    folder_to_continue,
    resolve_checkpoint,
)
from mm_lightning.training.run_config import continued_checkpoint, overridden_settings, read_run_config
from mm_lightning.training.run_trainer import build_trainer
from mm_lightning.training.silence_warnings import silence_warnings
from mm_lightning.training.timeouts import lost_contact
from mm_lightning.training.tracked_runs import refused_by_tracker
from mm_lightning.training.trainer_options import refused_by_lightning
from mm_lightning.yaml_text import use_for_options

_parsers: dict[str, LightningArgumentParser] = {}
"""By command, the parser of an earlier command line of this process."""


class TrainingCLI(LightningCLI):
    """One training command, whose command line is parsed at once: `config` holds what it says.

    Args:
        command: fit, validate, test or predict.
        args: the rest of the command line.
        slurm_job: the Slurm job that a pre-empted run queues again; None for none.
        runs: whether :meth:`run` will be called; otherwise a checkpoint that is named need not exist yet.
    """

    def __init__(self, command: str, args: list[str], slurm_job: str | None = None, runs: bool = True) -> None:
        prepare()
        self.command = command
        self.slurm_job = slurm_job
        paths, self.options = split_configs(current_options(args))
        self.files: list[ConfigFile] = [file for path in paths for file in read_chain(path)]
        try:
            self.continued = continued_checkpoint(command, self.options, self.files)
        except UserError:
            if runs:
                raise
            self.continued = None
        self.run_config = read_run_config(self.continued, self.options, self.files) if self.continued else None
        if self.run_config:
            self.files.insert(0, self.run_config)
        # jsonargparse merges configs only as values of --config (parse_object validates each alone). It asks the loader
        # of set_loader for their values by a text that is no file, as a name below a file is none.
        configs = {f"{file.path}/{n}": file.values for n, file in enumerate(self.files) if file.values}
        use_for_options(configs)
        super().__init__(
            LanguageModule,
            TextDataModule,
            save_config_callback=None,
            trainer_defaults=TRAINER_DEFAULTS,
            parser_kwargs={
                "prog": f"mm {command}",
                "description": getattr(self, command).__doc__,
                "exit_on_error": False,
                "allow_abbrev": False,
            },
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=[*(f"--config={text}" for text in configs), *self.options],
            run=False,  # Lightning's parser of all commands would parse and check everything twice
        )

    def run(self) -> None:
        """Build the classes that the config names, and run the command.

        A run that a mistake ends before its first step leaves no folder.
        """
        signals.when_stuck.append(self._stuck)
        try:
            self.build()
            self.run_command()
        except (KeyboardInterrupt, SystemExit) as stop:
            # Lightning's answer to ctrl-C is SystemExit
            interrupt = stop if isinstance(stop, KeyboardInterrupt) else stop.__context__
            if not isinstance(interrupt, KeyboardInterrupt):
                raise
            self._leave(interrupt)
            raise interrupt from None
        except UserError:
            self._remove_unused()
            raise
        except Exception as error:
            if (by_tracker := refused_by_tracker(error)) or refused_by_lightning(error):
                self._remove_unused()
                which = "trainer.logger cannot begin a run: " if by_tracker else ""
                raise UserError(which + " ".join(str(error).split())) from error
            if isinstance(error, RuntimeError) and (lost := lost_contact(error, self.config.communication_timeout)):
                raise lost from error
            raise
        finally:
            signals.when_stuck.remove(self._stuck)
            if hasattr(self, "folder"):
                self.folder.release()
                if self.command == "fit" and self.config.trainer.fast_dev_run:
                    self.folder.remove_dry_run()

    def _remove_unused(self) -> None:
        if hasattr(self, "folder"):
            self.folder.remove_unused()

    def _stuck(self, interrupt: KeyboardInterrupt) -> None:
        """End the other processes of this machine in place of a main thread that waits for them."""
        kill_launched(getattr(getattr(getattr(self, "trainer", None), "strategy", None), "launcher", None))
        self._leave(interrupt)

    def _leave(self, interrupt: KeyboardInterrupt) -> None:
        """Remove all files of a training that a signal ended before its first step, except preempted.json."""
        folder = getattr(self, "folder", None)
        if self.command != "fit" or folder is None or folder.trained or signals.rank():
            return
        if self.config.trainer.fast_dev_run:
            return
        folder.remove_unused()
        checkpoint = self.checkpoint if folder.resumed else None
        step, name = (step_of(checkpoint), checkpoint.name) if checkpoint else (0, None)
        place = folder.path if folder.resumed else folder.root
        with contextlib.suppress(OSError):  # best effort: no later step depends on the mark
            signals.write_mark(place, signals.signal_of(interrupt), step, name)

    def setup_parser(self, *args: Any) -> None:
        """Take the parser of an earlier command line of this process, or build one, which takes a while."""
        if parser := _parsers.pop(self.command, None):
            self.parser = parser
        else:
            super().setup_parser(*args)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the keys beside trainer, model and data."""
        add_options(parser, self.command)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link all seeds to seed_everything, and state the ranges of numbers in the help."""
        parser.link_arguments("seed_everything", "model.seed")
        parser.link_arguments("seed_everything", "data.seed")
        state_option_ranges(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line; a mistake becomes a UserError that names key, file and nearest key."""
        try:
            self.config = parser.parse_args(args)
        except UnicodeDecodeError as error:  # a section may be given as a file
            raise UserError(f"a file that an option names, as in --model FILE, is not UTF-8 text: {error}") from error
        except Exception as error:
            if broken := broken_module(self.files, self.options):
                raise broken from error
            if not isinstance(error, ArgumentError | ModuleNotFoundError):
                raise
            raise UserError(explain_parser_error(str(error), self.files, self._known(), self.options)) from error
        finally:
            # one that could not print the config that it was asked for would print that of the next command line
            if not any(word.startswith("--print_config") for word in args):
                _parsers[self.command] = parser
        config = self.config
        drop_other_preparation(config.data, self.files, self.options)
        self.check_values()
        if self.command == "fit" and not (self.run_config or config.ckpt_path or config.model.initial_weights):
            enlarge_vocabulary(config, self.files, self.options)

    def check_values(self) -> None:
        """Check the values of all options against their ranges."""
        for _, error in config_errors(self.config):
            raise error

    def _known(self) -> list[str]:
        """Return the dotted names of all options."""
        names = [option.dest for option in parser_options(self.parser) if option.option_strings]
        return [name for name in names if not name.endswith(".help")]

    def instantiate_classes(self) -> None:
        """Do nothing: :meth:`build` does it."""

    def build(self) -> None:
        """Find the checkpoint, and build data module, module and trainer."""
        config = self.config
        self.checkpoint: Path | None = self.find_checkpoint(config)
        self.folder = RunFolder(config.run, folder_to_continue(self.command, config, self.checkpoint))
        if self.command == "fit" and config.trainer.fast_dev_run:  # Lightning: a fast_dev_run leaves no files
            self.folder = RunFolder(tempfile.mkdtemp(prefix="mm-fast-dev-run-"))
        if self.command == "fit" and self.folder.resumed and is_first_process():
            claim_run_folder(self.folder)
            if self.run_config and (changes := overridden_settings(self.run_config, self.resolved_config())):
                say(f"settings that differ from {self.run_config.path}: {', '.join(changes)}")
        try:
            super().instantiate_classes()
        except Exception as error:
            refused = isinstance(error, (ArgumentError, ValueError)) or refused_by_lightning(error)
            if isinstance(error, UserError) or not refused:
                raise
            cause = error.__cause__ or error.__context__
            if "Problem with given class_path" in str(error) and not isinstance(cause, UserError):
                raise UserError(explain_parser_error(str(error), self.files, self._known(), self.options)) from error
            raise UserError(" ".join(str(cause if isinstance(cause, UserError) else error).split())) from error
        self.model.run_folder = self.folder
        if self.checkpoint is not None:
            self._use_checkpoint(self.checkpoint)

    def find_checkpoint(self, config: Namespace) -> Path | None:
        """Return the checkpoint that the parsed config names; None for new weights."""
        return resolve_checkpoint(self.command, config, self.continued)

    def _use_checkpoint(self, checkpoint: Path) -> None:
        """Let the command load the checkpoint; one that is resumed must fit the network and the strategy."""
        if self.command != "fit":
            # only weights are needed: loaded the same from plain files and DeepSpeed folders, on any number of devices
            self.model.initial_weights, self.config_init["ckpt_path"] = str(checkpoint), None
            return
        self.config_init["ckpt_path"] = str(checkpoint)  # replaced by that of rank 0, which has checked it
        if not is_first_process():
            return
        try:
            check_architecture(checkpoint, self.model.config)
        except UserError as error:
            alone = f": `mm fit --resume {quote(str(self.folder.path))}` alone continues it" if self.run_config else ""
            raise UserError(f"{error}{alone}") from error
        check_resumable(checkpoint, self.trainer.strategy)
        say(f"resuming {checkpoint}")

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Return the trainer with the project's callbacks, loggers and checkpoint writer."""
        record = RecordRun(self.folder, self.resolved_config()) if self.command == "fit" else None
        trainer = build_trainer(config, callbacks, self.folder, record, self.slurm_job)
        set_process_timeout(trainer.strategy, timedelta(seconds=self.config.communication_timeout))
        return trainer

    def resolved_config(self) -> dict[str, Any]:
        """Return the config with every default filled in, as the values of a file that `--config` reads."""
        config = self.config.clone()
        for key in ("config", "resume", "ckpt_path", "plan", "gpu_memory"):
            config.pop(key, None)
        values: Any = self.parser.dump(config, format="values", skip_unset=False, skip_validation=True)
        return values

    # The commands

    def run_command(self) -> None:
        """Check network and data, and run the command."""
        self._check()
        getattr(self, self.command)()

    def _check(self) -> None:
        """Check the network, prepare the data and check them, before Lightning starts a process for each device.

        A process that waited for the preparation within a collective would hear no signal.
        """
        if self.command == "fit":  # a part that cannot be built is refused before data are prepared for hours
            parameters(self.model.config)
        self.datamodule.prepare_data()
        self.datamodule.setup("validate")
        check_vocabulary(self.datamodule.tokenizer, self.model.config)

    def before_fit(self) -> None:
        """Derive gradient accumulation from the global batch, and count validation in optimization steps."""
        trainer, data = self.trainer, self.datamodule
        if trainer.max_steps < 1:
            raise UserError("trainer.max_steps must be set: the learning rate falls over that many steps")
        trainer.accumulate_grad_batches = accumulation_steps(
            data.global_batch_size, data.micro_batch_size, trainer.world_size, trainer.num_devices
        )
        if isinstance(trainer.val_check_interval, int):
            trainer.val_check_interval *= trainer.accumulate_grad_batches

    def fit(self) -> None:
        """Train a network."""
        self.before_fit()
        self.trainer.fit(self.model, self.datamodule, ckpt_path=self.config_init.ckpt_path)

    def validate(self) -> None:
        """Print and save the losses of the validation data."""
        self._evaluate(self.trainer.validate)

    def test(self) -> None:
        """Print and save the losses of the test data."""
        self._evaluate(self.trainer.test)

    def _evaluate(self, run: Callable[..., Any]) -> None:
        run(self.model, self.datamodule, verbose=False)
        if self.trainer.is_global_zero and self.checkpoint is not None:
            metrics = self.trainer.callback_metrics.items()
            values = {name: float(value) for name, value in metrics if name.startswith(("validation/", "test/"))}
            report_evaluation(values, self.checkpoint, self.folder.path, self.datamodule, self.resolved_config())

    def predict(self) -> None:
        """Write one JSON line a document: what :meth:`LanguageModule.predict_step` returns of it."""
        if self.trainer.world_size > 1:
            raise UserError("mm predict runs on one device: add --trainer.devices 1")
        config = self.config
        default = self.folder.path / "predictions.jsonl"
        output = check_output(config.output or default, config.overwrite or not config.output)
        batches: list[Any] = self.trainer.predict(self.model, self.datamodule) or []
        several = len(self.datamodule.validated) > 1
        write_predictions(output, [batch for of_a_set in batches for batch in of_a_set] if several else batches)


def prepare() -> None:
    """Set up what the parser of a training command needs."""
    silence_warnings()
    strategies.register()
    # config dataclasses are chosen by class_path; short names are enough
    # LightningCLI opens values that look like URLs
    set_parsing_settings(subclasses_enabled=[NetworkConfig, Generator], config_read_mode_fsspec_enabled=False)
