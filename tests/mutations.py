"""Faults that tests must notice: each is put into a copy of the repository, and the tests named beside it run there.

    python tests/mutations.py [NAME ...]     all of them, or those whose name contains one of these
    python tests/mutations.py --list         only whether each place is still found

A mutation whose text is not found exactly once, or whose tests cannot be run, is an error: mend the table.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent

PAPER = "tests/networks/test_networks.py::test_mosaic_is_the_papers_equations"
STATE = "tests/networks/test_state.py::test_documents_end_and_begin_anywhere"


class Mutation(NamedTuple):
    """A fault: `old` becomes `new` in a file, and one of the tests (files or node ids) must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = [
    Mutation(
        "4-sign",
        "mm_lightning/memory/retrieval.py",
        '"bthd,bshd->bhts", q, k) * scale',
        '"bthd,bshd->bhts", q, k) * -scale',
        (
            PAPER,
            "tests/memory/test_retrieval.py",
        ),
    ),
    Mutation(
        "4-queries-and-keys-swapped",
        "mm_lightning/memory/retrieval.py",
        '"bthd,bshd->bhts", q, k) * scale',
        '"bshd,bthd->bhts", q, k) * scale',
        (
            PAPER,
            "tests/memory/test_retrieval.py",
        ),
    ),
    Mutation(
        "6-sign",
        "mm_lightning/memory/bandwidth.py",
        ".to(alpha.dtype) ** alpha)",
        ".to(alpha.dtype) ** -alpha)",
        (
            "tests/memory/test_bandwidth.py",
            PAPER,
        ),
    ),
    Mutation(
        "6-number-of-pairs",
        "mm_lightning/memory/documents.py",
        "(position + 1 - self.delay)",
        "(position - self.delay)",
        (
            "tests/memory/test_documents.py",
            PAPER,
        ),
    ),
    Mutation(
        "6-fixed-bandwidth",
        "mm_lightning/memory/bandwidth.py",
        "(2 * V1_SCALAR_SCALE * _to_float32",
        "(V1_SCALAR_SCALE * _to_float32",
        ("tests/networks/test_networks.py::test_v1_is_its_published_equations",),
    ),
    Mutation(
        "7-sign",
        "mm_lightning/memory/keys.py",
        "return -(V1_SCALAR_SCALE * self.leak).abs()",
        "return (V1_SCALAR_SCALE * self.leak).abs()",
        (
            "tests/memory/test_keys.py",
            "tests/networks/test_networks.py",
        ),
    ),
    Mutation(
        "8-sign-of-decay",
        "mm_lightning/memory/keys.py",
        "-self.W_lambda(x).abs()",
        "self.W_lambda(x).abs()",
        (
            "tests/memory/test_keys.py",
            PAPER,
        ),
    ),
    Mutation(
        "8-sign-in-a-step",
        "mm_lightning/memory/keys.py",
        "torch.stack([scale + decay, gate])",
        "torch.stack([scale - decay, gate])",
        ("tests/memory/test_keys.py",),
    ),
    Mutation(
        "8-sign-in-chunks",
        "mm_lightning/memory/kernels/torch_features.py",
        "u = gate - total\n",
        "u = gate + total\n",
        ("tests/memory/kernels/test_kernels.py",),
    ),
    Mutation(
        "8-documents-in-chunks",
        "mm_lightning/memory/kernels/torch_features.py",
        "u = u + reach * (position == 0).cumsum(-1)",
        "u = u + 0 * reach",
        (
            "tests/memory/kernels/test_kernels.py",
            "tests/networks/test_networks.py",
        ),
    ),
    Mutation(
        "8-document-at-decoding",
        "mm_lightning/memory/keys.py",
        "            scale = scale.masked_fill(documents.starts, -torch.inf)\n",
        "            scale = scale + 0\n",
        (STATE,),
    ),
    Mutation(
        "9-sign",
        "mm_lightning/memory/kernels/torch_features.py",
        "torch.lerp(ahead, now, gamma",
        "torch.lerp(now, ahead, gamma",
        (
            "tests/memory/test_values.py",
            PAPER,
        ),
    ),
    Mutation(
        "9-scale",
        "mm_lightning/memory/values.py",
        "torch.where(theta < 0, -theta, theta)",
        "torch.where(theta < 0, theta, -theta)",
        (
            "tests/memory/test_values.py",
            PAPER,
        ),
    ),
    Mutation(
        "9-document",
        "mm_lightning/memory/values.py",
        "documents.position[:, 1:] == 0",
        "documents.position[:, 1:] < 0",
        (
            "tests/memory/test_values.py",
            "tests/memory/kernels/test_kernels.py",
        ),
    ),
    Mutation(
        "9-raw-value-carried",
        "mm_lightning/memory/values.py",
        'carried["raw"] = vtilde[:, -1]',
        'carried["raw"] = vtilde[:, 0]',
        ("tests/networks/test_state.py::test_any_split_equals_the_whole",),
    ),
    Mutation(
        "10-window-off-by-one",
        "mm_lightning/memory/retrieval.py",
        "age < span.delay + span.size\n",
        "age <= span.delay + span.size\n",
        (
            "tests/memory/test_retrieval.py",
            PAPER,
        ),
    ),
    Mutation(
        "10-delay-off-by-one",
        "mm_lightning/memory/retrieval.py",
        "(age >= span.delay)",
        "(age > span.delay)",
        (
            "tests/memory/test_retrieval.py",
            PAPER,
        ),
    ),
    Mutation(
        "10-document",
        "mm_lightning/memory/retrieval.py",
        " & (age <= documents.position[:, queries, None])",
        " & (age <= documents.position[:, queries, None] + 10**6)",
        (
            "tests/memory/test_retrieval.py",
            PAPER,
        ),
    ),
    Mutation(
        "10-window-of-the-cpu",
        "mm_lightning/memory/kernels/cpu_window.py",
        "(age >= size)",
        "(age > size)",
        ("tests/memory/kernels/test_cpu_window.py",),
    ),
    Mutation(
        "10-window-at-decoding",
        "mm_lightning/memory/pair_cache.py",
        "seen &= age < span.delay + span.size",
        "seen &= age <= span.delay + span.size",
        ("tests/networks/test_state.py::test_any_split_equals_the_whole",),
    ),
    Mutation(
        "10-document-at-decoding",
        "mm_lightning/memory/pair_cache.py",
        "(age <= position[..., None])",
        "(age <= position[..., None] + 1)",
        (STATE,),
    ),
    Mutation(
        "targets-of-the-next-document",
        "mm_lightning/data/batch.py",
        "targets[begins[:, 1:] | marked[:, 1:]] = IGNORE_INDEX",
        "targets[marked[:, 1:]] = IGNORE_INDEX",
        ("tests/data/test_batch.py",),
    ),
    Mutation(
        "documents-of-a-batch",
        "mm_lightning/data/batch.py",
        "position -= np.repeat(offsets[:-1], lengths)",
        "position -= 0",
        ("tests/data/test_batch.py",),
    ),
    Mutation(
        "mask-of-the-loss",
        "mm_lightning/networks/loss.py",
        "count = (targets != IGNORE_INDEX).sum()",
        "count = (targets == targets).sum()",
        ("tests/networks/test_loss.py",),
    ),
    Mutation(
        "shards-of-epochs-alike",
        "mm_lightning/data/sequences.py",
        "RandomState([self._seed, epoch]).permutation",
        "RandomState([self._seed, 0]).permutation",
        ("tests/data/test_datamodule.py",),
    ),
    Mutation(
        "epochs-alike",
        "mm_lightning/data/sequences.py",
        "RandomState([self._seed, epoch, window]).shuffle",
        "RandomState([self._seed, 0, window]).shuffle",
        (
            "tests/data/test_datamodule.py",
            "tests/training/test_old_run.py",
        ),
    ),
    Mutation(
        "shard-checksum",
        "mm_lightning/data/sequences.py",
        "checksum = number % ranks == rank and number not in self._summed",
        "checksum = False",
        (
            "tests/data/test_faults.py",
            "tests/data/test_datamodule.py",
        ),
    ),
    Mutation(
        "shard-cut-while-read",
        "mm_lightning/data/sequences.py",
        "if len(data) < self._size:",
        "if False:",
        (
            "tests/data/test_faults.py",
            "tests/data/test_datamodule.py",
        ),
    ),
    Mutation(
        "checkpoint-checksum",
        "mm_lightning/checkpoint/integrity.py",
        'zlib.crc32(b"\\0\\0", crc32(path, end=end)) != seal',
        "False",
        ("tests/checkpoint/test_checkpoint_damage.py",),
    ),
    Mutation(
        "sharded-checkpoint-checksum",
        "mm_lightning/checkpoint/integrity.py",
        'f"{crc32(path):08x}" != value',
        "False",
        ("tests/checkpoint/test_checkpoint_damage.py",),
    ),
    Mutation(
        "optimizer-forgotten-at-resume",
        "mm_lightning/checkpoint/trainer_io.py",
        "return load(broadcast_path(path))",
        "content = load(broadcast_path(path)); "
        "[state.update(state={}) for state in content['optimizer_states']]; return content",
        ("tests/training/test_fit.py::test_resume_equals_uninterrupted",),
    ),
    Mutation(
        "schedule-upside-down",
        "mm_lightning/training/schedules.py",
        "(1 - final) * (1 + math.cos(",
        "(1 - final) * (1 - math.cos(",
        ("tests/training/test_fit.py",),
    ),
    Mutation(
        "weight-decay-of-scalars",
        "mm_lightning/networks/base.py",
        "p.shape)) >= 2]",
        "p.shape)) >= 1]",
        (
            "tests/networks/test_parts.py",
            "tests/networks/test_networks.py",
            "tests/training/test_fit.py",
        ),
    ),
    Mutation(
        "signal-swallowed",
        "callbacks/preemption.py",
        "self._signal, self._received_at = number, now",
        "self._signal, self._received_at = 0, now",
        ("tests/callbacks/test_preemption.py",),
    ),
    Mutation(
        "bad-step-applied",
        "callbacks/bad_step_guard.py",
        "optimizer.found_inf = self._step.bad.float()",
        "optimizer.found_inf = 0 * self._step.bad.float()",
        ("tests/callbacks/test_bad_step_guard.py",),
    ),
    Mutation(
        "top-p-off-by-one",
        "mm_lightning/inference/sampling.py",
        "before = probabilities.cumsum(-1) - probabilities",
        "before = probabilities.cumsum(-1)",
        ("tests/inference/test_sampling.py",),
    ),
    Mutation(
        "randomness-of-a-step",
        "mm_lightning/networks/base.py",
        'of seed {seed}, step {step}"',
        'of seed {seed}"',
        (
            "tests/networks/test_spans.py",
            "tests/networks/test_networks.py",
            "tests/training/test_fit.py",
        ),
    ),
]


def text_of(mutation: Mutation, root: Path = ROOT) -> str:
    """Return the mutated file of a copy of the repository.

    Raises:
        SystemExit: its text is not found exactly once.
    """
    path = root / mutation.file
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if (count := text.count(mutation.old)) != 1:
        raise SystemExit(f"{mutation.name}: found {count} times in {mutation.file}, must be once: {mutation.old!r}")
    return text.replace(mutation.old, mutation.new)


def copy_repository(folder: Path) -> None:
    """Copy what git tracks, and lay the folders outside of the package where its own copy is imported first."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    for name in ("callbacks", "configs"):
        (folder / "mm_lightning" / name).symlink_to(folder / name)


def status_of_tests(folder: Path, tests: tuple[str, ...]) -> int:
    """Return pytest's exit status in a process forked from this one, which has imported what takes long."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)
    sys.path[:] = [str(folder), *(path for path in sys.path if Path(path).resolve() not in (ROOT, ROOT / "tests"))]
    output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    import pytest

    os._exit(pytest.main(["-n", "0", "-q", "-x", "-p", "no:cacheprovider", *tests]))


def main(words: list[str]) -> int:
    """Return 0 if every chosen mutation was caught."""
    chosen = [m for m in MUTATIONS if not words or "--list" in words or any(word in m.name for word in words)]
    if not chosen:
        raise SystemExit(f"no mutation is named {words}: {', '.join(m.name for m in MUTATIONS)}")
    for mutation in MUTATIONS:
        text_of(mutation)
    if "--list" in words:
        print(*(f"{m.name:32} {m.file}" for m in MUTATIONS), sep="\n")
        return 0
    import hypothesis  # noqa: F401
    import lightning.pytorch  # noqa: F401

    missed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        copy_repository(folder)
        for mutation in chosen:
            path = folder / mutation.file
            before = path.read_bytes()
            path.write_text(text_of(mutation, folder), encoding="utf-8")
            status = status_of_tests(folder, mutation.tests)
            path.write_bytes(before)
            failed = [x for x in (folder / "output.txt").read_text().splitlines() if x.startswith(("FAILED", "ERROR"))]
            caught = status == 1 and any(x.startswith("FAILED") for x in failed)
            verdict = "caught" if caught else "NOT CAUGHT" if status == 0 else f"CANNOT BE RUN (pytest: {status})"
            print(f"{verdict:12} {mutation.name:32} {failed[0][:150] if failed else ''}", flush=True)
            missed += not caught
    print(f"{len(chosen) - missed} of {len(chosen)} mutations caught")
    return missed > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
