"""The trainer: schedules, checkpoints, snapshots, and runs that go on where they stopped."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hopscope.errors import ResultError, UsageError
from hopscope.training.fit import CHECKPOINT, RECORD, fit, open_training, snapshot_path
from hopscope.training.settings import Schedule

SCHEDULE = Schedule(steps=6, batch_size=4, learning_rate=0.05, warmup_steps=2, checkpoint_every=2)


def module(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))


def loss_of(net: nn.Module, stop_at: int | None = None):
    def loss(step: int) -> torch.Tensor:
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        return (net(x) - x.sum(dim=1, keepdim=True)).square().mean()

    return loss


def trained(folder: Path | None = None, seed: int = 0, **how) -> dict[str, torch.Tensor]:
    net = module()
    fit(net, loss_of(net), SCHEDULE, seed=seed, folder=folder, progress=False, **how)
    return dict(net.state_dict())


def assert_equal(a, b) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_rate_rises_over_the_warm_up_and_falls_to_nothing():
    schedule = Schedule(steps=110, learning_rate=2.0, warmup_steps=10)
    assert schedule.rate(0) == pytest.approx(0.2)
    assert schedule.rate(9) == schedule.rate(10) == 2.0
    assert schedule.rate(60) == pytest.approx(1.0)
    assert schedule.rate(109) == pytest.approx(1 + math.cos(math.pi * 0.99))


def test_the_rate_is_held_and_then_falls():
    schedule = Schedule(steps=100, learning_rate=2.0, warmup_steps=10, hold=0.6)
    rates = [schedule.rate(step) / 2 for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10:61] == pytest.approx([1.0] * 51)
    assert rates[80] == pytest.approx(0.5)
    assert rates[60:] == sorted(rates[60:], reverse=True)
    assert rates[-1] < 0.01


def test_a_rate_that_is_not_held_beyond_the_warm_up_falls_from_there():
    plain = Schedule(steps=100, warmup_steps=20)
    held = replace(plain, hold=0.1)
    assert [held.rate(n) for n in range(100)] == [plain.rate(n) for n in range(100)]


@pytest.mark.parametrize("stop_at", [1, 2, 5])
def test_a_run_that_was_killed_ends_with_the_weights_of_one_that_was_not(tmp_path, stop_at):
    net = module()
    with pytest.raises(KeyboardInterrupt):
        fit(net, loss_of(net, stop_at), SCHEDULE, seed=0, folder=tmp_path, progress=False)
    assert (tmp_path / CHECKPOINT).exists() == (stop_at >= 2)
    assert_equal(trained(tmp_path), trained())


def test_the_seed_is_that_of_dropout_and_the_generator_is_left_alone():
    net = module()
    before = torch.get_rng_state()
    fit(net, loss_of(net), SCHEDULE, seed=0, progress=False)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(trained(seed=0)["0.weight"], trained(seed=1)["0.weight"])


def test_frozen_parameters_stay_and_biases_do_not_decay():
    net = module()
    net[0].requires_grad_(False)
    nn.init.ones_(net[2].bias)
    frozen = net[0].weight.clone()
    decaying = replace(SCHEDULE, weight_decay=10.0, warmup_steps=0)
    fit(net, lambda step: 0 * sum(p.sum() for p in net.parameters()), decaying, seed=0)
    assert torch.equal(net[0].weight, frozen)
    assert net[2].weight.abs().max() < 0.2
    assert net[2].bias.item() == 1


def test_snapshots_are_kept_before_during_and_after_and_survive_a_kill(tmp_path):
    net = module()
    start = {name: each.clone() for name, each in net.state_dict().items()}
    how = {"seed": 0, "snapshots": {0, 3, 6}, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        fit(net, loss_of(net, 5), SCHEDULE, folder=tmp_path, **how)
    assert_equal(load_file(snapshot_path(tmp_path, 0)), start)
    done = trained(tmp_path, snapshots={0, 3, 6})
    assert_equal(load_file(snapshot_path(tmp_path, 6)), done)
    assert_equal(load_file(snapshot_path(tmp_path, 0)), start)
    assert snapshot_path(tmp_path, 3).exists()


def test_a_damaged_checkpoint_says_what_to_do(tmp_path):
    (tmp_path / CHECKPOINT).write_bytes(b"no tensors")
    with pytest.raises(ResultError, match="delete it to train from the start"):
        trained(tmp_path)


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path):
    trained(tmp_path)
    wide = nn.Linear(9, 1)
    with pytest.raises(ResultError, match="damaged"):
        fit(wide, lambda step: wide(torch.ones(9)).sum(), SCHEDULE, seed=0, folder=tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("clip", 0),
        ("learning_rate", -1.0),
        ("warmup_steps", -1),
        ("hold", 1.0),
        ("hold", -0.1),
    ],
)
def test_numbers_that_cannot_be_are_refused(field, value):
    with pytest.raises(UsageError, match=field):
        Schedule(**{field: value})


def test_a_folder_holds_one_training(tmp_path):
    place = tmp_path / "one"
    open_training(place, {"seed": 0, "shape": (1, 2)})
    open_training(place, {"seed": 0, "shape": [1, 2]})
    assert json.loads((place / RECORD).read_text()) == {"seed": 0, "shape": [1, 2]}
    with pytest.raises(ResultError, match="its seed is 0, not 1"):
        open_training(place, {"seed": 1, "shape": (1, 2)})
    (place / RECORD).write_text("{")
    with pytest.raises(ResultError, match="damaged"):
        open_training(place, {"seed": 0})
    (tmp_path / "file").write_text("")
    for other in (tmp_path, tmp_path / "file"):
        with pytest.raises(ResultError, match="holds no training run"):
            open_training(other, {"seed": 0})
