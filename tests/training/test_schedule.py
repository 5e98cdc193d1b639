import math

import pytest

from multipath_jax.config.keys import default_config
from multipath_jax.config.schedule import Plan, learning_rate, make_plan, parse_duration
from multipath_jax.errors import UserError

CIFAR_STEPS = 50_000 // 128  # 390 steps per epoch


def config(**changes):
    made = default_config()
    made.update_from_flattened_dict(
        {"train_for": "200 epochs", "schedule.boundaries": "80 epochs, 150 epochs"} | changes
    )
    return made


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("200 epochs", 78_000),
        ("1 epoch", 390),
        ("0.5 epochs", 195),
        ("50 steps", 50),
        (" 1 step ", 1),
        ("0.0001 epochs", 1),  # at least one step
    ],
)
def test_durations_become_steps(text, steps):
    assert parse_duration("train_for", text).steps(CIFAR_STEPS) == steps


@pytest.mark.parametrize(
    "text", ["", "200", "epochs", "-1 epochs", "0 steps", "1.5 steps", "3 weeks", "1 epoch 2"]
)
def test_what_is_no_duration_is_refused_by_its_key(text):
    with pytest.raises(UserError, match=r"log_every=.*is not a duration"):
        parse_duration("log_every", text)


def test_the_papers_schedule():
    """Section 6.2: 0.1, divided by 10 after epochs 80 and 150 of 200."""
    made = config()
    plan = make_plan(made, CIFAR_STEPS)
    assert (plan.total, plan.boundaries) == (78_000, (31_200, 58_500))
    rate = learning_rate(made, plan)
    for step, expected in [
        (0, 0.1),
        (31_199, 0.1),
        (31_200, 0.01),
        (58_499, 0.01),
        (58_500, 0.001),
    ]:
        assert float(rate(step)) == pytest.approx(expected, rel=1e-7)  # float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_for": "150 epochs"}, "past the end"),
        ({"profile": "77990-78001"}, "past the 78000 steps"),
        ({"train_for": "10 steps"}, "past the end"),
        ({"schedule.boundaries": "9 epochs, 8 epochs"}, "must be increasing"),
        ({"schedule.boundaries": "8 epochs, 8 epochs"}, "must be increasing"),
        ({"schedule.boundaries": "1 epoch,"}, "='1 epoch,' is not a list of durations"),
        ({"schedule.warmup": "80 epochs"}, "schedule.warmup='80 epochs' must end before"),
        ({"schedule.warmup": "200 epochs", "schedule.boundaries": ""}, "must end before"),
    ],
)
def test_boundaries_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make_plan(config(**changes), CIFAR_STEPS)


def test_no_boundaries_is_a_constant_rate():
    made = config(**{"schedule.boundaries": ""})
    rate = learning_rate(made, make_plan(made, CIFAR_STEPS))
    assert float(rate(0)) == float(rate(77_999)) == pytest.approx(0.1)


def rates(steps, **changes):
    """The learning rates of all steps of a run."""
    made = config(**{"train_for": f"{steps} steps", "schedule.boundaries": "", **changes})
    rate = learning_rate(made, make_plan(made, CIFAR_STEPS))
    return [float(rate(step)) for step in range(steps)]


def test_a_warm_up_rises_to_the_rate_and_moves_no_drop():
    found = rates(8, **{"schedule.warmup": "4 steps", "schedule.boundaries": "5 steps, 7 steps"})
    expected = [0.025, 0.05, 0.075, 0.1, 0.1, 0.01, 0.01, 0.001]
    assert found == pytest.approx(expected, rel=1e-6)  # float32
    assert rates(3, **{"schedule.warmup": "1 step"}) == pytest.approx([0.1] * 3)


def test_a_cosine_falls_to_zero_at_the_end():
    found = rates(5, **{"schedule.kind": "cosine"})
    cosine = [0.05 * (1 + math.cos(math.pi * step / 5)) for step in range(6)]
    assert found == pytest.approx(cosine[:5], rel=1e-6)  # float32
    assert cosine[5] == 0  # at the end, after the last step


def test_a_cosine_follows_the_warm_up():
    found = rates(7, **{"schedule.kind": "cosine", "schedule.warmup": "2 steps"})
    cosine = [0.05 * (1 + math.cos(math.pi * step / 5)) for step in range(5)]
    assert found == pytest.approx([0.05, 0.1, *cosine], rel=1e-6)  # float32


def test_a_call_ends_at_epochs_and_at_whatever_is_due():
    plan = Plan(
        steps_per_epoch=10, total=24, boundaries=(), log_every=4, eval_every=6, checkpoint_every=100
    )
    stops, step = [], 0
    while step < plan.total:
        step = plan.next_stop(step)
        stops.append(step)
    assert stops == [4, 6, 8, 10, 12, 16, 18, 20, 24]
    assert [step for step in range(25) if plan.due(plan.eval_every, step)] == [0, 6, 12, 18, 24]
    assert plan.due(plan.checkpoint_every, plan.total)  # always due at the end


def test_a_call_ends_where_a_trace_begins_and_ends():
    plan = Plan(10, 24, (), log_every=100, eval_every=100, checkpoint_every=100, profile=(3, 12))
    assert [plan.next_stop(step) for step in (0, 3, 10, 12)] == [3, 10, 12, 20]


@pytest.mark.parametrize("warmup", [0, 10])
def test_a_straight_line_falls_to_zero_at_the_end(warmup):
    changes = {"schedule.kind": "linear", "schedule.boundaries": "", "train_for": "100 steps"}
    made = config(**changes | ({"schedule.warmup": f"{warmup} steps"} if warmup else {}))
    rate = learning_rate(made, make_plan(made, CIFAR_STEPS))
    falling = 100 - warmup
    expected = [0.1 * (n + 1) / warmup for n in range(warmup)]
    expected += [0.1 * (falling - n) / falling for n in range(falling + 1)]
    found = [float(rate(step)) for step in range(101)]
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-8)  # float32
