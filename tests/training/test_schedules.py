"""Learning-rate schedules against formulas by hand, and against those of torch and transformers."""

import math

import pytest
import torch
from torch.optim import lr_scheduler
from transformers import get_inverse_sqrt_schedule, get_wsd_schedule

from mm_lightning.errors import UserError
from mm_lightning.training.choices import Choice
from mm_lightning.training.schedules import Schedule

PEAK, WARMUP, STEPS, FINAL = 0.25, 5, 40, 0.1


def factors(choice, decay=0.1, warmup=WARMUP, count=STEPS):
    schedule = Schedule(Choice(choice), PEAK, warmup, FINAL, decay, lambda: STEPS)
    return [schedule.factor(step) for step in range(count)]


def optimizer():
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)


def rates(scheduler, count):
    found = []
    for _ in range(count):
        found.append(scheduler.optimizer.param_groups[0]["lr"] / PEAK)
        scheduler.optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("choice", ["cosine", "linear", "wsd", "constant", "inverse_sqrt", {"class_path": "StepLR",
                                    "init_args": {"step_size": 3}}], ids=str)  # fmt: skip
def test_every_schedule_warms_up(choice):
    assert factors(choice)[: WARMUP + 1] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert factors(choice, warmup=0)[0] == 1


def test_cosine_and_linear_by_hand():
    share = [(step - WARMUP) / (STEPS - 1 - WARMUP) for step in range(WARMUP, STEPS)]
    assert factors("cosine")[WARMUP:] == pytest.approx([0.55 + 0.45 * math.cos(math.pi * x) for x in share])
    assert factors("linear")[WARMUP:] == pytest.approx([1 - 0.9 * x for x in share])
    for name in ("cosine", "linear"):
        assert factors(name)[-1] == pytest.approx(FINAL)


def test_the_cosine_is_torchs():
    other = lr_scheduler.CosineAnnealingLR(optimizer(), STEPS - 1 - WARMUP, eta_min=FINAL * PEAK)
    assert factors("cosine")[WARMUP:] == pytest.approx(rates(other, STEPS - WARMUP))


def test_inverse_sqrt_is_that_of_transformers():
    other = get_inverse_sqrt_schedule(optimizer(), WARMUP)
    assert factors("inverse_sqrt")[WARMUP:] == pytest.approx(rates(other, STEPS)[WARMUP:])


@pytest.mark.parametrize(("decay", "length"), [(8, 8), (0.2, 8), (1, 1), (0, 0), (100, STEPS - WARMUP)])
def test_wsd_is_stable_and_then_falls_in_a_straight_line(decay, length):
    found = factors("wsd", decay)
    stable = STEPS - length
    assert found[WARMUP:stable] == [1.0] * (stable - WARMUP)
    line = [1 - 0.9 * (n + 1) / max(length, 1) for n in range(length)]
    assert found[max(stable, WARMUP + 1) :] == pytest.approx(line[max(WARMUP + 1 - stable, 0) :])


def test_wsd_is_that_of_transformers():
    # whose decay has one step more, the last stable one
    other = get_wsd_schedule(optimizer(), WARMUP, 8, num_stable_steps=STEPS - WARMUP - 8 - 1,
                             decay_type="linear", min_lr_ratio=FINAL)  # fmt: skip
    assert factors("wsd", 8)[WARMUP:] == pytest.approx(rates(other, STEPS)[WARMUP:])


def test_stable_steps_do_not_ask_how_many_there_are():
    schedule = Schedule(Choice("wsd"), PEAK, WARMUP, FINAL, 0, lambda: pytest.fail("asked"))
    assert schedule.factor(10**6) == 1


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("CosineAnnealingWarmRestarts", {"T_0": 7, "eta_min": 0.01}),
        ("StepLR", {"step_size": 3, "gamma": 0.5}),
        ("OneCycleLR", {"max_lr": 0.3, "total_steps": 60}),
        ("ExponentialLR", {"gamma": 0.9}),
    ],
)
def test_a_scheduler_of_torch_gives_its_own_rates(name, arguments):
    used = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK, momentum=0.9)
    expected = rates(getattr(lr_scheduler, name)(used, **arguments), STEPS)
    choice = {"class_path": name, "init_args": arguments}
    assert factors(choice)[WARMUP:] == pytest.approx(expected[: STEPS - WARMUP])
    assert factors(choice, warmup=0) == pytest.approx(expected)
    # at any step first, as after a resume
    schedule = Schedule(Choice(choice), PEAK, WARMUP, FINAL, 0.1, lambda: STEPS)
    assert schedule.factor(30) == pytest.approx(expected[30 - WARMUP])


@pytest.mark.parametrize(
    ("choice", "named"),
    [
        ("cosin", "cosine"),
        ("ReduceLROnPlateau", "no function of the step"),
        ({"class_path": "StepLR"}, "step_size"),
        ({"class_path": "StepLR", "step_size": 3}, "init_args"),
        ({"class_path": "nowhere.Schedule"}, "nowhere.Schedule"),
        ("torch.optim.SGD", "LRScheduler"),
    ],
)
def test_a_schedule_that_there_is_not(choice, named):
    with pytest.raises((UserError, ValueError), match=named):
        factors(choice)
