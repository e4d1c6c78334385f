"""Optimizers by name and class_path, and their parameter groups, against torch's own run by hand."""

import copy
import json
import os
from types import SimpleNamespace

import pytest
import torch
import yaml
from bad_steps import POISON
from bad_steps import config as guarded
from documented_modules import documented_modules
from resuming import Case, steps, together
from runs import metrics
from small_networks import CONFIGS, SMALL

from mm_lightning.checkpoint import universal
from mm_lightning.checkpoint.weights import open_weights
from mm_lightning.cli import main
from mm_lightning.errors import UserError
from mm_lightning.networks import TransformerConfig
from mm_lightning.training.choices import Choice
from mm_lightning.training.module import LanguageModule
from mm_lightning.training.optimizers import (
    ParameterGroup,
    build_optimizer,
    check_optimizer,
    muon_matrices,
    parameter_groups,
    state_elements,
)
from mm_lightning.training.sharding import destroy_process_groups
from mm_lightning.training.strategies import DeepSpeed

BETAS = (0.9, 0.95)
SGD = {"class_path": "SGD", "init_args": {"momentum": 0.9}}
KINDS = {
    "muon": "muon",
    "muon original": {"class_path": "muon", "init_args": {"adjust_lr_fn": "original", "momentum": 0.9}},
    "sgd": "sgd",
    "sgd momentum": SGD,
    "adafactor": "Adafactor",
    "own": {"class_path": "torch.optim.NAdam", "init_args": {"momentum_decay": 0.01}},
}


def gradients(network, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def names_of(network, parameters):
    names = {id(p): name for name, p in network.named_parameters()}
    return [names[id(p)] for p in parameters]


def test_adamw_is_what_it_was():
    """The groups, settings and state that checkpoints of earlier versions have."""
    network = CONFIGS["v2"].build()
    optimizer = build_optimizer(Choice("adamw"), parameter_groups(network, Choice("adamw"), 0.1), 0.01, BETAS)
    before = torch.optim.AdamW(
        [{"params": p, "weight_decay": d} for p, d in zip(network.weight_decay_groups(), (0.1, 0.0), strict=True)],
        lr=0.01, betas=BETAS, fused=True,
    )  # fmt: skip
    assert optimizer.state_dict() == before.state_dict()
    assert [[id(p) for p in g["params"]] for g in optimizer.param_groups] == [
        [id(p) for p in g["params"]] for g in before.param_groups
    ]


def test_a_step_of_muon_is_that_of_torchs_muon_and_adamw():
    network = CONFIGS["transformer-sharp"].build()  # with depthwise convolutions
    other = copy.deepcopy(network)
    optimizer = build_optimizer(Choice("muon"), parameter_groups(network, Choice("muon"), 0.3), 0.01, BETAS)
    matrices = [
        p for name, p in other.named_parameters() if p.dim() == 2 and "blocks" in name and "convolution" not in name
    ]
    chosen = {id(p) for p in matrices}
    others = [p for p in other.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(matrices, lr=0.01, weight_decay=0.3, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in others if p.dim() > 1], "weight_decay": 0.3},
            {"params": [p for p in others if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=0.01, betas=BETAS, fused=True,
    )  # fmt: skip
    for step in range(4):
        gradients(network, step)
        gradients(other, step)
        optimizer.step()
        muon.step()
        adamw.step()
        if step == 1:  # with a state that was saved and restored
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = build_optimizer(Choice("muon"), parameter_groups(network, Choice("muon"), 0.3), 0.5, BETAS)
            optimizer.load_state_dict(saved)
    for (name, found), expected in zip(network.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(found, expected), name


@pytest.mark.parametrize("name", CONFIGS)
def test_muon_has_the_matrices_of_linear_maps(name):
    network = CONFIGS[name].build()
    chosen = names_of(network, muon_matrices(network))
    assert chosen
    for key, parameter in network.named_parameters():
        outside = not key.startswith("blocks") or parameter.dim() != 2 or "convolution" in key
        assert (key in chosen) == (not outside), key
    groups = parameter_groups(network, Choice("muon"), 0.1)
    assert [group["use_muon"] for group in groups] == [True, False, False]
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))


def test_groups_by_pattern():
    network = TransformerConfig(**SMALL).build()
    patterns = [
        ParameterGroup("embedding|classifier", learning_rate=0.1, weight_decay=0.0),
        ParameterGroup(r"blocks\.0\.|embedding", weight_decay=0.7),
    ]
    groups = parameter_groups(network, Choice("adamw"), 0.2, patterns)
    found = {}
    for group in build_optimizer(Choice("adamw"), groups, 0.01, BETAS).param_groups:
        for name in names_of(network, group["params"]):
            found[name] = (pytest.approx(group["lr"]), group["weight_decay"])
    assert len(found) == len(list(network.parameters()))
    assert found["embedding.weight"] == found["classifier.weight"] == (0.001, 0.0)  # the first pattern decides
    assert found["norm.weight"] == (0.01, 0.0)
    for name, parameter in network.named_parameters():
        if name.startswith("blocks.0"):
            assert found[name] == (0.01, 0.7 if parameter.dim() > 1 else 0.0)
        elif name.startswith("blocks.1"):
            assert found[name] == (0.01, 0.2 if parameter.dim() > 1 else 0.0)


def test_a_tied_embedding_goes_by_both_names():
    network = TransformerConfig(**SMALL, tied=True).build()
    groups = parameter_groups(network, Choice("adamw"), 0.2, [ParameterGroup("^classifier", learning_rate=0.1)])
    assert names_of(network, groups[-1]["params"]) == ["embedding.weight"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"optimizer": "adamx"}, ["model.optimizer", "adamx", "Adam"]),
        ({"optimizer": "LBFGS"}, ["LBFGS"]),
        ({"optimizer": {"class_path": "SGD", "init_args": {"momentun": 1}}}, ["SGD", "momentun", "momentum"]),
        ({"optimizer": {"class_path": "SGD", "init_args": {"lr": 1}}}, ["model.learning_rate"]),
        ({"optimizer": {"class_path": "SGD", "momentum": 1}}, ["model.optimizer", "momentum"]),
        ({"optimizer": {"class_path": "torch.optim.Muon"}}, ["Muon", "2D"]),
        ({"optimizer": "torch.nn.Linear"}, ["torch.optim"]),
        ({"parameter_groups": [{"pattern": "embeding"}]}, ["embeding", "embedding"]),
        ({"parameter_groups": [{"pattern": "("}]}, ["parameter_groups", "regular expression"]),
        ({"parameter_groups": [{"pattern": "norm", "learning_rate": -1}]}, ["learning_rate", "at least 0"]),
        ({"schedule": "cosin"}, ["model.schedule", "cosine"]),
        ({"optimizer": "muon", "learning_rate": -1}, ["model.learning_rate"]),
    ],
)
def test_mistakes_are_named(tiny, tmp_path, capsys, settings, named):
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({"base": str(tiny), "model": settings}))
    assert main(["fit", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert [word for word in named if word not in error] == [], error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("adamw", 2.0), ("sgd", 0.0), (SGD, 1.0), ("muon", None), ("Adafactor", None)],
    ids=str,
)
def test_states_are_counted(choice, expected):
    network = CONFIGS["v2"].build()
    groups = parameter_groups(network, Choice(choice), 0.1)
    count = sum(p.numel() for p in network.parameters())
    optimizer = build_optimizer(Choice(choice), groups, 0.01, BETAS)
    gradients(network, 0)
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    kept = sum(value.numel() for value in states if value.numel() > 1)
    found = state_elements(groups, Choice(choice))
    if choice == "Adafactor":  # rows and columns of matrices are left out
        assert found < kept < 0.5 * count
        return
    assert found == kept
    if expected is None:
        expected = 2 - sum(p.numel() for p in muon_matrices(network)) / count
    assert found == pytest.approx(expected * count)


def test_mm_cost_knows_the_states(tiny, capsys):
    def states(*options):
        assert main(["cost", "--config", str(tiny), "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)["bytes_per_device"]["optimizer states"]

    one = states("--model.optimizer", json.dumps(SGD))
    assert states() == 2 * one
    assert states("--model.optimizer", "SGD") == 0
    assert one < states("--model.optimizer", "muon") < 2 * one
    zero = [states("--model.optimizer", "muon", "--trainer.strategy", f"deepspeed_stage_{n}") for n in (1, 2, 3)]
    assert zero[0] == zero[1] == states("--trainer.strategy", "deepspeed_stage_2")  # momentum twice
    assert zero[2] == states() / 2 + states("--model.optimizer", "muon")  # with a copy of the weights


def settings(**more):
    return {"trainer.max_steps": 8, "trainer.val_check_interval": 100, "data.micro_batch_size": 4, **more}


def optimizer_option(choice):
    return {"model.optimizer": choice if isinstance(choice, str) else json.dumps(choice)}


PATTERNS = {"model.parameter_groups": '[{"pattern": "embedding|classifier", "learning_rate": 0.1, "weight_decay": 0}]'}


@pytest.fixture
def config(tiny) -> str:
    """The tiny config without its callbacks and run, which cases set."""
    values = yaml.safe_load(tiny.read_text())
    del values["trainer"]["callbacks"], values["run"]
    tiny.write_text(yaml.safe_dump(values))
    return str(tiny)


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_goes_on_bit_for_bit(config, tmp_path, kind):
    same = settings(**optimizer_option(KINDS[kind]), **PATTERNS)
    whole, cut = Case("whole", same), Case("cut", same, [5], [3])
    for case in (whole, cut):
        case.run(config, tmp_path)
    expected = steps(tmp_path, whole)
    assert steps(tmp_path, cut) == expected
    losses = metrics(tmp_path / "whole" / "run" / "0")
    assert min(losses[n] for n in range(2, 9)) < losses[1]
    # the last groups are those of the pattern: a tenth of the rate, no decay
    first, last = (expected[4][0]["groups"][n] for n in (0, -1))
    assert last == [pytest.approx(0.1 * first[0]), 0.0]


@pytest.mark.slow
def test_a_killed_run_of_two_processes_goes_on_bit_for_bit(config, tmp_path):
    same = settings(**optimizer_option("muon"), **{"trainer.strategy": "ddp", "data.micro_batch_size": 2})
    whole, cut = Case("whole", same), Case("cut", same, [5], [3])
    assert not any(together(config, tmp_path, [(whole, 0, None), (cut, 0, None)], forked=True))
    assert steps(tmp_path, cut) == steps(tmp_path, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_step_changes_nothing(tiny, tmp_path, monkeypatch, capsys, kind):
    monkeypatch.setattr(LanguageModule, "training_step", LanguageModule.training_step)  # put back afterwards
    space = {}
    exec(POISON, space)
    space["poison"](3)
    options = [f"--{key}={value}" for key, value in optimizer_option(KINDS[kind]).items()]
    assert main(["fit", "--config", guarded(tiny, tmp_path), *options]) == 0
    output = capsys.readouterr().out
    assert output.count("host sync") == 1
    assert "step 3 was bad: loss nan" in output
    before, after, later = (
        torch.load(tmp_path / "run/0/checkpoints" / f"step={n}.ckpt", weights_only=True) for n in (2, 3, 4)
    )
    weights = [checkpoint["state_dict"] for checkpoint in (before, after, later)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[1][name], weights[2][name]) for name in weights[0])
    states = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (before, after)]
    for one, two in zip(*(state.values() for state in states), strict=True):
        assert one.keys() == two.keys()
        assert all(
            torch.equal(torch.as_tensor(one[key]), torch.as_tensor(two[key])) for key in one if one[key] is not None
        )


def test_fused_adamw_needs_no_host_sync(tiny, capsys):
    assert main(["fit", "--config", str(tiny)]) == 0
    assert "host sync" not in capsys.readouterr().out


def test_another_optimizer_or_other_groups_do_not_go_on_from_a_checkpoint(finished, tiny, capsys):
    resume = ["fit", "--config", str(tiny), "--resume", "--trainer.max_steps", "8"]
    for option, value in (("optimizer", "muon"), ("parameter_groups", '[{"pattern": "norm"}]')):
        assert main([*resume, f"--model.{option}", value]) == 2
        error = capsys.readouterr().err
        assert f"model.{option}" in error
        assert "--model.initial_weights" in error
    assert main([*resume, "--model.schedule", "linear"]) == 0
    assert "model.schedule linear instead of cosine" in capsys.readouterr().out


def test_wsd_decays_branched_off_one_stable_run(config, tmp_path):
    """Each is, step by step, the run that had its decay from the start."""
    stable = {"model.schedule": "wsd", "model.warmup_steps": 2, "trainer.val_check_interval": 4}
    Case("stable", {**settings(**stable), "model.decay_steps": 0, "trainer.max_steps": 100}, [9], [4]).run(
        config, tmp_path, last=1
    )
    for start, decay in ((4, 3), (8, 4)):
        end = {**settings(**stable), "model.decay_steps": decay, "trainer.max_steps": start + decay}
        branch = {**end, "ckpt_path": tmp_path / f"stable/run/0/checkpoints/step={start}.ckpt"}
        whole = Case(f"whole {start}", end)
        whole.run(config, tmp_path)
        branched = Case(f"branch {start}", branch)
        branched.run(config, tmp_path)
        expected = {n: step for n, step in steps(tmp_path, whole).items() if n >= start}
        assert steps(tmp_path, branched) == expected
        assert len(expected) == decay
        rates = [step[0]["groups"][0][0] for step in expected.values()]
        assert rates == pytest.approx([0.01 * (1 - 0.99 * (n + 1) / decay) for n in range(decay)])
        one, two = (metrics(tmp_path / case.name / "run" / "0", "validation/loss") for case in (whole, branched))
        assert one[start + decay] == two[start + decay]


def test_the_documented_optimizer_and_schedule_go_on_bit_for_bit(config, tmp_path, monkeypatch):
    (tmp_path / "my_optimizers.py").write_text(documented_modules()["my_optimizers.py"], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = {
        "model.optimizer": '{"class_path": "my_optimizers.Lion", "init_args": {"betas": [0.9, 0.98]}}',
        "model.schedule": '{"class_path": "my_optimizers.Halving", "init_args": {"every": 3}}',
        "model.learning_rate": 0.001,
    }
    whole, cut = Case("whole", settings(**own)), Case("cut", settings(**own), [5], [3])
    for case in (whole, cut):
        case.run(config, tmp_path)
    expected = steps(tmp_path, whole)
    assert steps(tmp_path, cut) == expected
    factors = [0.5, 1, 1, 1, 1, 0.5, 0.5, 0.5]  # two steps of warm-up, then halved every three
    assert [step[0]["groups"][0][0] for step in expected.values()] == pytest.approx([0.001 * f for f in factors])
    saved = torch.load(tmp_path / "cut/run/0/checkpoints/step=3.ckpt", weights_only=True)["optimizer_states"][0]
    assert saved["param_groups"][0]["betas"] == [0.9, 0.98]
    assert "momentum" in saved["state"][0]


@pytest.fixture
def processes():
    """Ends the process group that a run began in this process, and forgets its address."""
    before = dict(os.environ)
    yield
    destroy_process_groups()
    for name in set(os.environ) - set(before):
        del os.environ[name]


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("choice", ["torch.optim.Muon", "Adafactor"])
def test_zero_refuses_what_needs_whole_matrices(tiny, capsys, choice):
    zero = ["--trainer.strategy", "deepspeed_stage_2", "--trainer.devices", "1"]
    assert main(["fit", "--config", str(tiny), *zero, "--model.optimizer", choice]) == 2
    assert "needs whole matrices, of which ZeRO gives each process a flat piece" in (error := capsys.readouterr().err)
    assert "ddp" in error


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, ["clips its orthogonalized updates", "trainer.gradient_clip_val 1.0: set it to null", "ddp"]),
        (
            {"trainer.gradient_clip_val": "null", "model.optimizer": {"nesterov": False}},
            ["model.optimizer", "nesterov"],
        ),
    ],
)
def test_zero_refuses_muon_with(tiny, capsys, options, named):
    choice = json.dumps({"class_path": "muon", "init_args": options.pop("model.optimizer", {})})
    zero = {"trainer.strategy": "deepspeed_stage_2", "trainer.devices": 1, "model.optimizer": choice, **options}
    assert main(["fit", "--config", str(tiny), *(f"--{key}={value}" for key, value in zero.items())]) == 2
    error = capsys.readouterr().err
    assert [word for word in named if word not in error] == [], error


def test_zero_refuses_muon_with_loss_scales():
    strategy = DeepSpeed(stage=2)
    trainer = SimpleNamespace(strategy=strategy, gradient_clip_val=None, precision="16-mixed")
    with pytest.raises(UserError, match=r"loss scales, got trainer\.precision 16-mixed: use bf16-mixed"):
        check_optimizer(trainer, Choice("muon"))
    trainer.precision = "bf16-mixed"
    check_optimizer(trainer, Choice("muon"))
    strategy.config["gradient_clipping"] = 0.5
    with pytest.raises(UserError, match=r"gradient_clip_val 0\.5"):
        check_optimizer(trainer, Choice("muon"))


@pytest.mark.parametrize("rates", ["original", "match_rms_adamw", "spectral_unclamped"])
def test_deepspeeds_muon_is_torchs(rates):
    """On whole matrices, for which it orthogonalizes by itself: in bf16, whose products have 2 or 3 digits, of which
    five steps of Newton-Schulz have 15 in a row."""
    choice = Choice({"class_path": "muon", "init_args": {"adjust_lr_fn": rates, "momentum": 0.9}})
    patterns = [ParameterGroup("W_o|norm", learning_rate=0.5, weight_decay=0.7)]
    moved = []
    for zero in (False, True):
        torch.manual_seed(0)
        network = CONFIGS["v2"].build()
        before = [p.detach().clone() for p in network.parameters()]
        optimizer = build_optimizer(choice, parameter_groups(network, choice, 0.3, patterns), 0.01, BETAS, zero)
        assert {(g["lr"], g["weight_decay"]) for g in optimizer.param_groups} == {
            *((0.01, 0.3), (0.01, 0.0), (0.005, 0.7), (0.005, 0.0))
        }
        for step in range(4):
            gradients(network, step)
            with torch.compiler.set_stance("force_eager"):  # DeepSpeed compiles its Newton-Schulz, for seconds
                optimizer.step()
        moved.append([p.detach() - b for p, b in zip(network.parameters(), before, strict=True)])
    for (name, parameter), one, two in zip(network.named_parameters(), *moved, strict=True):
        assert (one - two).norm() < (0.06 if parameter.use_muon else 1e-5) * one.norm(), name


def test_zero_states_of_others_are_not_converted(tmp_path, monkeypatch):
    monkeypatch.setattr(universal, "read_metadata", lambda path: {"recipe": {"model.optimizer": "sgd"}})
    with pytest.raises(UserError, match="as many processes"):
        universal.to_universal(tmp_path / "step=3.ckpt", tmp_path / "universal")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("kind", ["sgd", "sgd momentum", "own"])
def test_zero_goes_on_bit_for_bit(config, tmp_path, stage, kind):
    same = settings(**optimizer_option(KINDS[kind]), **PATTERNS)
    same |= {"trainer.strategy": f"deepspeed_stage_{stage}", "data.micro_batch_size": 2}
    whole, cut = Case("whole", same), Case("cut", same, [5], [3])
    assert not any(together(config, tmp_path, [(whole, 0, None), (cut, 0, None)]))
    found = steps(tmp_path, whole)
    assert steps(tmp_path, cut) == found
    # and about what one process does without ZeRO
    alone = Case("alone", settings(**optimizer_option(KINDS[kind]), **PATTERNS))
    alone.run(config, tmp_path)
    losses = metrics(tmp_path / "alone" / "run" / "0")
    assert metrics(tmp_path / "whole" / "run" / "0") == pytest.approx(losses, rel=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("stage", "precision"), [(1, "32-true"), (2, "32-true"), (3, "32-true"), (2, "bf16-mixed")])
def test_muon_under_zero_is_torchs_and_goes_on_bit_for_bit(config, tmp_path, stage, precision):
    """Losses agree as closely as those of other optimizers do, in bf16 to half of its rounding step, and weights to the
    rounding of Newton-Schulz: wrong rates, decays or gradients would show in both."""
    same = settings(**optimizer_option("muon"), **PATTERNS) | {"trainer.precision": precision}
    same["trainer.gradient_clip_val"] = "null"
    zero = same | {"trainer.strategy": f"deepspeed_stage_{stage}", "data.micro_batch_size": 2}
    whole, cut = Case("whole", zero, [], [1]), Case("cut", zero, [5], [3])
    assert not any(together(config, tmp_path, [(whole, 0, None), (cut, 0, None)]))
    seen = steps(tmp_path, whole)
    assert steps(tmp_path, cut) == seen
    alone = Case("alone", same, [], [1])
    alone.run(config, tmp_path)
    for step, expected in steps(tmp_path, alone).items():
        assert [seen[step][0]["groups"][n] for n in (0, -1)] == [expected[0]["groups"][n] for n in (0, -1)]
    runs = [tmp_path / case.name / "run" / "0" for case in (whole, alone)]
    losses, expected = (metrics(run) for run in runs)
    assert losses == pytest.approx(expected, rel=1e-4 if precision == "32-true" else 1e-3)
    assert not metrics(runs[0], "train/gradient_norm")
    assert metrics(runs[1], "train/gradient_norm")
    (first, last), reference = ([open_weights(run / "checkpoints" / f"step={n}.ckpt") for n in (1, 8)] for run in runs)
    assert not any(torch.equal(first[name], last[name]) for name in last)
    if precision == "32-true":
        apart = sum((last[name] - reference[1][name]).square().sum() for name in last)
        moved = sum((reference[1][name] - reference[0][name]).square().sum() for name in last)
        assert (apart / moved).sqrt() < 0.1  # small singular values are rounded away in bf16
