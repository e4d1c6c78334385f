"""Folders exported with one version of transformers, read by another: each in an environment of its own."""

import importlib.util
import json
import os
import site
import subprocess
import sys
import venv

import pytest
import torch

pytest.importorskip("transformers")

from saved_networks import save_run

from mm_lightning.checkpoint import load_network

VERSIONS = ("5.23.0", "5.24.0")
"""The last one that says `past_key_values`, and the first one that says `cache`."""
TEXT = "mosaic of memories"

EXPORT = """
import sys, transformers
from mm_lightning.cli import main
version, run, *folders = sys.argv[1:]
assert transformers.__version__ == version, transformers.__version__
for folder in folders:
    contained = ["--self_contained"] if "contained" in folder else []
    assert main(["export", "--checkpoint", run, "--output", folder, *contained]) == 0
"""

READ = """
import copy, json, sys, torch, transformers
version, text, *folders = sys.argv[1:]
assert transformers.__version__ == version, transformers.__version__
if any("contained" in folder for folder in folders):
    sys.modules |= dict.fromkeys(["mm_lightning", "numba", "triton"])  # cannot be imported
else:
    import mm_lightning.transformers
found = {}
for folder in folders:
    trust = {"trust_remote_code": "contained" in folder}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **trust)
    tokens = transformers.AutoTokenizer.from_pretrained(folder, **trust)(text, return_tensors="pt")
    def write(**more):
        return model.generate(**tokens, max_new_tokens=12, do_sample=False, **more)[0].tolist()
    found[folder] = [write(), write(num_beams=2), write(use_cache=False)]
    with torch.no_grad():
        prefix = model(tokens["input_ids"][:, :8])
    for name in ("cache", "past_key_values"):
        found[folder].append(write(**{name: copy.deepcopy(getattr(prefix, name))}))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def pythons(tmp_path_factory):
    """By version of transformers, the interpreter of an environment that has it, and the running one's packages."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("the running environment has no pip to install another transformers with")
    found = {}
    for version in VERSIONS:
        folder = tmp_path_factory.mktemp("environments") / version
        venv.create(folder, symlinks=True)
        found[version] = str(folder / "bin" / "python")
        packages = run_python(found[version], "import site; print(site.getsitepackages()[0])")
        lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
        with open(f"{packages}/running_environment.pth", "w") as file:
            file.write("\n".join(lines) + "\n")
        command = [sys.executable, "-m", "pip", "--python", found[version], "install", "--quiet", "--no-deps"]
        command += ["--retries", "1", "--timeout", "20", "--disable-pip-version-check", f"transformers=={version}"]
        installed = subprocess.run(command, capture_output=True, text=True)
        if installed.returncode:
            pytest.skip(f"pip cannot install transformers {version} here: {installed.stderr.strip().splitlines()[-1]}")
    return found


def run_python(python, code, *arguments, **environment):
    """What a program prints."""
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([python, "-c", code, *arguments], capture_output=True, text=True, env=settings)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_either_exports_both_read_and_write_the_same(pythons, tmp_path):
    run = save_run(tmp_path / "run" / "0", "v2")
    network = load_network(run)[0]
    ids = torch.tensor([[256, *TEXT.encode()]])
    expected = ids
    with torch.inference_mode():
        for _ in range(12):
            expected = torch.cat([expected, network(expected)[:, -1:].argmax(-1)], 1)
    folders = {"contained": [], "plain": []}
    for version, python in pythons.items():
        own = {kind: str(tmp_path / f"{kind}_{version}".replace(".", "_")) for kind in folders}
        run_python(python, EXPORT, version, str(run), *own.values())
        for kind, folder in own.items():
            folders[kind].append(folder)
    beams = set()
    for version, python in pythons.items():
        for kind, those in folders.items():
            home = str(tmp_path / f"home_{version}")
            printed = run_python(python, READ, version, TEXT, *those, HF_HOME=home)
            for plain, beam, *others in json.loads(printed.splitlines()[-1]).values():
                assert [plain, *others] == [expected[0].tolist()] * 4, (version, kind)
                beams.add(tuple(beam))
    assert len(beams) == 1
