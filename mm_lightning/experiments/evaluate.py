"""The command `mm evaluate`. It imports what it needs when it runs."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mm_lightning.class_options import class_options
from mm_lightning.console import say
from mm_lightning.errors import UserError
from mm_lightning.evaluation.task_options import left_out, left_out_line, make_tasks, task_options
from mm_lightning.outputs import check_folder, made_folder
from mm_lightning.ranges import Count, Few, Name, Natural, Place

if TYPE_CHECKING:
    from mm_lightning.evaluation.run import EvaluatedModel, Job


@class_options(
    "tasks",
    task_options,
    "options of the tasks, with what they are for",
    helped=functools.partial(task_options, built_in=False),
)
def evaluate_command(
    checkpoint: list[Place],
    tasks: list[Name],
    output: Place = "results",
    names: list[Name] | None = None,
    long_term: Literal["on", "off"] = "on",
    inference_delay: Count | None = None,
    network: dict[str, Any] | None = None,
    batch_size: Count = 16,
    precision: Literal["auto", "32", "bf16"] = "auto",
    device: Name = "auto",
    processes: Few = 1,
    overwrite: bool = False,
    rank: Natural = 0,
    world_size: Count = 1,
    local_rank: Natural = 0,
    **settings: Any,
) -> None:
    """Ask trained networks what they can do, and write a report.

    mm evaluate --checkpoint runs/v2 runs/transformer --tasks loss_by_position --contexts 4k 8k 16k 32k

    `mm evaluate --tasks TASK --help` shows the options of a task too, `mm evaluate --help all` those of all tasks.

    Tasks:
      loss_by_position  loss against position in the context, beyond the training context too: where does it break?
      long_ppl          perplexity of the tokens that a long context makes much more probable than a short one (LongPPL)
      retrieval_profile the weight with which the last token reads each pair, by distance (Figure 1)
      new_knowledge     qa_1 and qa_2: questions about one of many documents, of SQuAD and of HotpotQA (RULER)
      needles           niah_single_1 to _3, niah_multikey_1 to _3, niah_multivalue, niah_multiquery (RULER)
      regbench          languages learned in context, for networks trained on `mm data regbench`
      mqar              values recalled by their keys, for networks trained on `mm data mqar` (Zoology)
      generated_facts   questions about made-up facts, for networks trained on `mm data facts`
      in_context        banking77, goemotions and tacred (your licensed copy): classes learned from demonstrations
      in_context_free   banking77, goemotions, and semeval2010_task8 and redocred in the place of tacred
      classification    the same of a data set of your own, --dataset my.yaml
      persistent        13 benchmarks of lm-evaluation-harness, or any of them by its name: openbookqa, arc_easy, ...
      other             6 more that long-term memory matters to; variants: other readings of the paper's names.
                        Of these groups what runs programs of the network (humaneval_plus, mbpp) needs --run_code and
                        is else left out
      module.Class      a task in a module of your own (docs/extending.md)

    Every answer is kept as it comes: interrupted, the same command goes on. At the end a table of the results is
    printed, one column a network, with 95% intervals and items. OUTPUT gets report/index.html, the report of all
    networks evaluated there that `mm report OUTPUT` makes, with differences from the first network of the command; and
    for each network and task NAME/TASK/results.json (the numbers, and where they come from) and samples.jsonl (a line
    for every question, with all that is needed to check its score).

    Several processes: --processes N on one machine, each on a GPU of its own if there are GPUs; or torchrun, or
    anything else that says RANK and WORLD_SIZE, on machines that share the output folder.

    Args:
        checkpoint: run folders (of each its newest valid checkpoint is taken) or checkpoints.
        tasks: names of tasks and groups, separated by spaces or commas.
        output: the folder for results; results of other networks and tasks in it stay.
        names: names of the networks in results, one for each checkpoint; by default of run folder, step and options.
        long_term: off removes the long-term memory from the trained networks.
        inference_delay: another m for the long-term memory than the networks' own.
        network: other settings than the networks were trained with, which leave their parameters as they are, such as
            '{"yarn_factor": 8, "yarn_context": 512}' or '{"rope_base": 5e6}' for transformers.
        batch_size: questions side by side at most.
        precision: 32, or bf16; auto is bf16 on a GPU and 32 elsewhere.
        device: cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.
        processes: how many share the work on this machine.
        overwrite: begin anew where the output holds answers to other settings or of other networks.
        rank: which of world_size processes this is; RANK says it.
        world_size: processes that share the work, started by torchrun or the like; WORLD_SIZE says it.
        local_rank: which process of this machine this is, and so which GPU it takes; LOCAL_RANK says it.
    """
    chosen = make_tasks(tasks, settings, "--")
    if rank >= world_size:
        raise UserError(f"rank must be below world_size {world_size}, got {rank}")
    if processes > 1 and world_size > 1:
        raise UserError(f"processes must be 1 where others start the processes, got {processes}")
    if overwrite and world_size > 1:
        raise UserError(f"several processes would delete each other's answers: delete {output} instead of --overwrite")
    from mm_lightning.evaluation.run import Job

    if rank == 0 and (without := left_out(tasks, settings)):
        say(left_out_line(without), stderr=True)
    if world_size > 1:
        device = device_of_rank(device, local_rank)
    subjects = make_subjects(
        checkpoint, names, long_term == "on", inference_delay, resolve_precision(precision, device), network
    )
    job = Job(subjects, chosen, Path(output).expanduser(), batch_size, device, rank, world_size)
    evaluate(job, processes, overwrite)


def evaluate(job: Job, processes: int, overwrite: bool) -> None:
    """Evaluate the networks, print the results and write the report of the output folder."""
    from mm_lightning.evaluation.processes import run_processes
    from mm_lightning.evaluation.run import run
    from mm_lightning.experiments.report import REPORT

    if job.rank == 0:
        check_folder(job.output / "report", REPORT, True)
    try:
        with made_folder(job.output), contextlib.ExitStack() as stack:
            _claim_folders(job, overwrite, stack)
            try:
                if processes > 1:
                    run_processes(job, processes)
                else:
                    run(job)
            except Exception:
                if job.rank == 0:
                    show_results(job)  # what is finished
                raise
        if job.rank == 0:
            show_results(job)
    except OSError as error:
        raise UserError(f"cannot write to {job.output}: {error.strerror or error}") from error


def _claim_folders(job: Job, overwrite: bool, stack: contextlib.ExitStack) -> None:
    """Check that the folders of all results hold answers to the same, or begin anew in them.

    Args:
        job: what is asked.
        overwrite: whether to begin anew in all of them.
        stack: brings back the answers before if an error ends it.
    """
    for subject, task in itertools.product(job.subjects, job.tasks):
        samples, identity = job.samples(subject, task), job.identity(subject, task)
        if overwrite:
            stack.enter_context(samples.begun_anew())
        elif job.world_size == 1 and (reason := samples.renew(identity)):
            say(
                f"{task.title} of {subject.name}: {reason}: asked again; the answers before are kept in "
                f"{samples.folder}/before.*",
                stderr=True,
            )
        samples.claim(identity, None)


def show_results(job: Job) -> None:
    """Print the table of what the job has finished, and write the report of its folder."""
    from mm_lightning.evaluation.samples import RESULTS
    from mm_lightning.experiments.evaluated.load_results import load_results
    from mm_lightning.experiments.evaluated.summary import summary
    from mm_lightning.experiments.report import write_report

    folders = [job.samples(subject, task).folder for subject in job.subjects for task in job.tasks]
    done = [folder for folder in folders if (folder / RESULTS).is_file()]
    if not done:
        return
    gathered = load_results([job.output])
    evaluations = sorted((e for e in gathered.evaluations if e.path in done), key=lambda e: done.index(e.path))
    summary(gathered, evaluations).show()
    for note in gathered.notes:
        say(note)
    if importlib.util.find_spec("matplotlib") is None:
        say(f"no report without matplotlib: pip install 'mm-lightning[report]', then mm report {job.output}")
        return
    report = write_report(job.output, baseline=done[0].parent.name)
    say(f"{report / 'index.html'}: all results in {job.output}")


def make_subjects(
    checkpoints: list[str],
    names: list[str] | None,
    long_term: bool,
    inference_delay: int | None,
    precision: str,
    settings: dict[str, Any] | None = None,
) -> list[EvaluatedModel]:
    """Return the networks of these checkpoints.

    Raises:
        UserError: there is no checkpoint, one cannot be read, has no tokenizer or cannot be given the settings, or two
            would have one name.
    """
    from mm_lightning.checkpoint import find_checkpoint, network_config, read_metadata, restore_tokenizer
    from mm_lightning.evaluation.model import changed
    from mm_lightning.evaluation.run import EvaluatedModel, run_name

    paths = [find_checkpoint(path) for path in checkpoints]
    for path in paths:
        about = read_metadata(path)
        changed(network_config(about, path), path, long_term, inference_delay, settings)
        restore_tokenizer(about, path)
    if names is not None and len(names) != len(paths):
        raise UserError(f"--names has {len(names)} for {len(paths)} checkpoints: give one for each")
    names = names or [run_name(path, long_term, inference_delay, settings) for path in paths]
    for name in names:
        if not name or "/" in name or name.startswith("."):
            raise UserError(f"--names {name!r} cannot be a folder's name: use letters, digits, - and _")
        if names.count(name) > 1:
            raise UserError(f"two checkpoints would be called {name}: tell them apart with --names, one for each")
    options: dict[str, Any] = {"long_term": long_term, "inference_delay": inference_delay, "precision": precision}
    options |= {"settings": settings} if settings else {}
    return [EvaluatedModel(path, name, options) for path, name in zip(paths, names, strict=True)]


def resolve_precision(precision: str, device: str) -> str:
    """Return the precision, that of the device for auto."""
    from mm_lightning.inference.generate import choose_device

    kind = choose_device(device).type
    return precision if precision != "auto" else "bf16" if kind == "cuda" else "32"


def device_of_rank(device: str, local_rank: int) -> str:
    """Return the device of one of several processes of a machine."""
    import torch

    return f"cuda:{local_rank}" if device in ("auto", "cuda") and torch.cuda.is_available() else device
