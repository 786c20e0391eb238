"""LinearProbe: classes that are there and that are not, the optimum, dtypes, files, mistakes."""

from __future__ import annotations

import numbers
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hopscope.probes import LinearProbe
from hopscope.probes.probe_files import write_probe
from scipy.optimize import minimize
from torch import Tensor

from hopscope.errors import ResultError, UsageError


def clusters(n: int, d_model: int, n_classes: int, spread: float) -> tuple[Tensor, Tensor]:
    """States around one point for each class, and their classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % n_classes
    points = 3 * torch.randn(n_classes, d_model, generator=generator)
    return points[labels] + spread * torch.randn(n, d_model, generator=generator), labels


def standardised(probe: LinearProbe, acts: Tensor) -> Tensor:
    return ((acts - probe.center) / probe.scale).double()


def objective(parameters: Tensor, inputs: Tensor, labels: Tensor, probe: LinearProbe) -> Tensor:
    """What the docstring says is minimised; parameters are weights, then biases."""
    weight, bias = parameters.split([probe.n_classes * inputs.shape[1], probe.n_classes])
    weight = weight.view(probe.n_classes, -1)
    errors = torch.nn.functional.cross_entropy(inputs @ weight.T + bias, labels, reduction="sum")
    return errors + probe.l2 / 2 * weight.square().sum()


def flat(probe: LinearProbe) -> Tensor:
    return torch.cat([probe.weight.flatten(), probe.bias]).double()


def test_it_reads_the_layer_that_knows_and_no_other() -> None:
    known, labels = clusters(120, 16, 4, spread=0.3)
    noise = torch.randn(120, 16, generator=torch.Generator().manual_seed(1))
    acts = torch.stack([noise, known], dim=1)
    probe = LinearProbe(4).fit(acts[:80], labels[:80])
    at_noise, at_known = probe.score(acts[80:], labels[80:]).tolist()
    assert at_known == 1
    assert at_noise < 0.5
    assert torch.equal(probe.predict(acts[80:])[:, 1], labels[80:])


@pytest.mark.parametrize(("n", "d_model"), [(30, 50), (90, 6)], ids=["wide", "tall"])
@pytest.mark.parametrize("l2", [0.3, 10.0])
def test_the_optimum_is_one(n: int, d_model: int, l2: float) -> None:
    acts, labels = clusters(n, d_model, 3, spread=4)
    probe = LinearProbe(3, l2=l2).fit(acts, labels)
    inputs = standardised(probe, acts)
    found = flat(probe).requires_grad_()
    loss = objective(found, inputs, labels, probe)
    (gradient,) = torch.autograd.grad(loss, found)
    assert gradient.abs().max() < 5e-4 * n

    def value_and_slope(values: Any) -> tuple[float, Any]:
        at = torch.tensor(values).requires_grad_()
        value = objective(at, inputs, labels, probe)
        return value.item(), torch.autograd.grad(value, at)[0].numpy()

    start = torch.zeros(len(found), dtype=torch.double).numpy()
    options = {"ftol": 1e-14, "gtol": 1e-8, "maxiter": 5000}
    best = minimize(value_and_slope, start, jac=True, method="L-BFGS-B", options=options)
    assert loss.item() == pytest.approx(best.fun, rel=1e-4)
    weights = 3 * d_model
    torch.testing.assert_close(
        found[:weights].detach(), torch.tensor(best.x)[:weights], atol=1e-2, rtol=1e-2
    )


def test_each_layer_is_as_if_alone() -> None:
    acts, labels = clusters(40, 10, 3, spread=3)
    layers = torch.stack([acts, acts.flip(1) ** 2, acts * 5], dim=1)
    together = LinearProbe(3).fit(layers, labels)
    for layer in range(3):
        alone = LinearProbe(3).fit(layers[:, layer], labels)
        torch.testing.assert_close(
            together.logits(layers)[:, layer], alone.logits(layers[:, layer])
        )
        score = alone.score(layers[:, layer], labels)
        assert score.shape == ()
        assert score == together.score(layers, labels)[layer]


def test_the_scale_of_a_coordinate_does_not_matter() -> None:
    acts, labels = clusters(40, 10, 3, spread=3)
    stretched = acts * torch.logspace(-3, 3, 10) + 7
    expected = LinearProbe(3).fit(acts, labels).logits(acts)
    found = LinearProbe(3).fit(stretched, labels).logits(stretched)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)


def test_a_constant_coordinate_says_nothing() -> None:
    acts, labels = clusters(40, 10, 3, spread=3)
    # Its spread is rounding, which must not be blown up to 1.
    constant = torch.full((40, 1), 1234.567) + torch.linspace(0, 3e-4, 40)[:, None]
    probe = LinearProbe(3).fit(torch.cat([acts, constant], dim=1), labels)
    elsewhere = torch.cat([acts, constant + 0.01], dim=1)
    expected = LinearProbe(3).fit(acts, labels).logits(acts)
    torch.testing.assert_close(probe.logits(elsewhere), expected, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_states_in_any_dtype(dtype: torch.dtype) -> None:
    acts, labels = clusters(40, 10, 3, spread=3)
    acts = acts.to(dtype)
    probe = LinearProbe(3).fit(acts, labels.int())
    assert probe.logits(acts).dtype == torch.float32
    expected = LinearProbe(3).fit(acts.float(), labels).logits(acts.float())
    torch.testing.assert_close(probe.logits(acts), expected)


def test_nothing_in_it_is_random() -> None:
    acts, labels = clusters(40, 10, 3, spread=3)
    torch.manual_seed(1)
    first = LinearProbe(3).fit(acts, labels)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    assert torch.equal(first.weight, LinearProbe(3).fit(acts, labels).weight)


@pytest.mark.parametrize("layered", [True, False])
def test_a_file_gives_the_same_probe(layered: bool, tmp_path: Path) -> None:
    acts, labels = clusters(40, 10, 3, spread=3)
    acts = torch.stack([acts, -acts], dim=1) if layered else acts
    probe = LinearProbe(3, l2=2.5, classes=["Köln", "Paris", "Rome"]).fit(acts, labels)
    loaded = LinearProbe.load(probe.save(tmp_path / "new" / "probe.safetensors"))
    assert torch.equal(loaded.logits(acts), probe.logits(acts))
    assert (loaded.l2, loaded.classes) == (2.5, ("Köln", "Paris", "Rome"))


def test_a_small_file_reads_almost_the_same(tmp_path: Path) -> None:
    acts, labels = clusters(60, 300, 3, spread=3)
    acts *= 1e-9
    probe = LinearProbe(3).fit(acts, labels)
    large, small = tmp_path / "large", tmp_path / "small"
    loaded = LinearProbe.load(probe.save(small, dtype=torch.float16))
    assert small.stat().st_size < 0.8 * probe.save(large).stat().st_size
    assert loaded.weight.dtype == torch.float32
    torch.testing.assert_close(loaded.logits(acts), probe.logits(acts), atol=1e-2, rtol=1e-2)


ACTS, LABELS = clusters(6, 4, 3, spread=1)
NAMES = np.array(["Oslo", "Rome", "Köln"])


@pytest.mark.parametrize(
    ("acts", "labels", "says"),
    [
        (ACTS[0], LABELS, r"\(4,\).*give \(n, d_model\)"),
        (ACTS[:0], LABELS[:0], "with at least one row"),
        (ACTS.long(), LABELS, "floating-point"),
        (ACTS, LABELS[:5], r"\(5,\) for 6 rows"),
        (ACTS, LABELS.float(), "give integers"),
        (ACTS.tolist(), LABELS[:5].tolist(), r"\(5,\) for 6 rows"),
        (ACTS.numpy() * np.nan, LABELS, "not-a-number"),
        (ACTS.numpy().astype(str), LABELS, "acts are <U32; give floating-point"),
        (ACTS.numpy(), LABELS.double().numpy(), "give integers"),
        (ACTS, ["a", "b", None] * 2, "labels hold None in row 2"),
        (ACTS, ["a", "b", float("nan")] * 2, "labels hold nan in row 2"),
        (ACTS, ["a", "b", pd.NA] * 2, "labels hold <NA> in row 2"),
        (ACTS, [["a"], ["b"], ["c"]] * 2, "labels hold a list in row 0"),
        (ACTS, ["a", "b"], r"\(2,\) for 6 rows"),
        (ACTS, NAMES[LABELS][:, None], r"labels have shape \(6, 1\); give one for each row"),
        (ACTS, 3, "labels are 3; give one for each row"),
        (ACTS / 0, LABELS, "largest float16 is 65504"),
        (ACTS, LABELS + 1, "the label 3 is none of the 3 classes, which are 0, 1, 2"),
        (ACTS, LABELS.clamp(max=1), r"no row has a label of 2; .*LinearProbe\(\)"),
    ],
)
def test_what_cannot_be_fitted(acts: Any, labels: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        LinearProbe(3).fit(acts, labels)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"n_classes": 1}, "2 classes"),
        ({"n_classes": 2, "l2": 0.0}, "more than 0"),
        ({"n_classes": 2, "classes": ["one"]}, "1 names for n_classes=2"),
    ],
)
def test_what_cannot_be_made(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        LinearProbe(**arguments)


def test_the_number_of_classes_is_learned_from_the_labels(tmp_path: Path) -> None:
    acts = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    for n_classes in (5, 3):
        labels = torch.arange(60) % n_classes
        probe = LinearProbe()
        fitted = probe.fit(acts, (torch.arange(60) % 4)).fit(acts, labels)
        assert fitted.n_classes == n_classes
        assert torch.equal(fitted.weight, LinearProbe(n_classes).fit(acts, labels).weight)
        fitted.save(tmp_path / "probe")
        assert LinearProbe.load(tmp_path / "probe").n_classes == n_classes
    assert LinearProbe(classes=["a", "b", "c"]).n_classes == 3
    gaps = LinearProbe().fit(acts, labels * 2)
    assert torch.equal(gaps.weight, fitted.weight)
    assert gaps.classes_.tolist() == [0, 2, 4]
    assert torch.equal(gaps.predict(acts), 2 * fitted.predict(acts))
    with pytest.raises(UsageError, match=r"labels have 1 classes, 0; give at least 2"):
        LinearProbe().fit(acts, labels * 0)


@pytest.mark.parametrize("layered", [True, False])
def test_arrays_and_names_give_what_tensors_and_numbers_give(layered: bool) -> None:
    acts, labels = clusters(40, 10, 3, spread=3)
    acts = torch.stack([acts, -acts], dim=1) if layered else acts
    plain = LinearProbe().fit(acts, labels)
    order = [1, 2, 0]  # Köln, Oslo, Rome
    X, y = acts.numpy(), NAMES[labels.numpy()]
    probe = LinearProbe().fit(X, y)
    assert probe.classes_.tolist() == ["Köln", "Oslo", "Rome"]
    assert (probe.predict(X) == NAMES[plain.predict(acts).numpy()]).all()
    logits = probe.logits(X)
    assert isinstance(logits, np.ndarray)
    np.testing.assert_allclose(logits[..., order], plain.logits(acts).numpy(), atol=1e-3, rtol=1e-3)
    given = probe.predict_proba(X)
    assert isinstance(given, np.ndarray)
    np.testing.assert_allclose(given.sum(-1), 1, rtol=1e-5)
    assert (probe.classes_[given.argmax(-1)] == probe.predict(X)).all()
    score = probe.score(X, y)
    assert not isinstance(score, Tensor)
    np.testing.assert_array_equal(score, plain.score(acts, labels).numpy())
    # A tensor of states and names beside it, and an array beside a tensor of numbers.
    assert (probe.predict(acts) == probe.predict(X)).all()
    assert isinstance(probe.score(acts, y), Tensor)
    assert isinstance(plain.predict(X), np.ndarray)
    assert isinstance(plain.predict(acts), Tensor)


def test_it_is_used_as_a_classifier_of_scikit_learn() -> None:
    """As scikit-learn's own code does it: by position, with arrays, lists and plain numbers."""
    X = np.random.default_rng(0).normal(size=(30, 4))[::-1]  # not contiguous, and in float64
    X.flags.writeable = False
    y = ["a" if row[0] > 0 else "b" for row in X]
    probe = LinearProbe(l2=0.1)
    assert not hasattr(probe, "classes_")
    assert probe.fit(X, y) is probe
    assert isinstance(probe.score(X, y), numbers.Number)
    assert np.mean(probe.predict(X) == y) == probe.score(X, y) > 0.9
    assert probe.predict_proba(X).shape == (30, len(probe.classes_))


@pytest.mark.parametrize(
    "names",
    [
        [("t1", 3), ("t2", 4)],
        pd.Series(["x", "y"]),
        pd.Series(["x", "y"], dtype="category"),
        np.array(["x", "y"], dtype=object),
        np.array([False, True]),
        [np.int32(7), 2],
        ["x", ("y",)],
    ],
    ids=str,
)
def test_labels_of_any_kind(names: Any) -> None:
    acts, labels = clusters(20, 4, 2, spread=0.1)
    values = list(names)
    y = [values[each] for each in labels.tolist()]
    probe = LinearProbe().fit(acts, y)
    assert {*probe.classes_.tolist()} == {*values}
    assert probe.score(acts, y) == 1
    assert probe.predict(acts).tolist() == y
    assert probe.score(acts, pd.Series(y)) == 1


def test_names_that_a_probe_was_given_are_in_their_order(tmp_path: Path) -> None:
    acts, labels = clusters(40, 10, 3, spread=3)
    by_number = LinearProbe(classes=NAMES.tolist()).fit(acts, labels)
    by_name = LinearProbe(classes=NAMES.tolist()).fit(acts, NAMES[labels.numpy()])
    assert torch.equal(by_number.weight, by_name.weight)
    assert by_number.classes_.tolist() == [0, 1, 2]
    assert by_name.classes_.tolist() == NAMES.tolist()
    for probe in (by_number, by_name):
        loaded = LinearProbe.load(probe.save(tmp_path / "probe"))
        assert loaded.classes_.tolist() == probe.classes_.tolist()
        assert (loaded.predict(acts) == probe.predict(acts)).all()
    with pytest.raises(UsageError, match="the label 'Bonn' is none of the 3 classes"):
        LinearProbe(classes=NAMES.tolist()).fit(acts, ["Bonn", *NAMES[labels.numpy()][1:]])
    with pytest.raises(UsageError, match="no row has a label of 'Köln'"):
        LinearProbe(classes=NAMES.tolist()).fit(acts, NAMES[labels.numpy() % 2])
    with pytest.raises(UsageError, match="labels have 3 classes, 'Köln', 'Oslo', 'Rome'; give 4"):
        LinearProbe(4).fit(acts, NAMES[labels.numpy()])


def test_a_file_of_an_earlier_version_has_numbers(tmp_path: Path) -> None:
    """Written before labels could be names."""
    probe = LinearProbe(3).fit(ACTS, LABELS)
    settings = {"n_classes": 3, "l2": 1.0, "classes": None}
    path = write_probe(tmp_path / "probe", "LinearProbe", probe.state_dict(), settings)
    assert torch.equal(LinearProbe.load(path).predict(ACTS), probe.predict(ACTS))
    write_probe(path, "LinearProbe", probe.state_dict(), {**settings, "labels": ["a"]})
    with pytest.raises(ResultError, match="damaged: its labels are"):
        LinearProbe.load(path)


def test_a_row_of_another_class_counts_as_wrong(tmp_path: Path) -> None:
    names = NAMES[LABELS.numpy()]
    probe = LinearProbe().fit(ACTS, names)
    assert probe.score(ACTS, names) == 1
    assert probe.score(ACTS, ["Bonn", *names[1:]]) == pytest.approx(5 / 6)
    with pytest.raises(
        UsageError, match=r"no label is a class .* they are 0, 1, 2, its classes 'K"
    ):
        probe.score(ACTS, LABELS)
    tuples = LinearProbe().fit(ACTS, [(each,) for each in LABELS.tolist()])
    with pytest.raises(UsageError, match=r"a file holds integers or strings"):
        tuples.save(tmp_path / "probe")


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="call fit"):
        LinearProbe(3).predict(ACTS)
    with pytest.raises(UsageError, match="call fit"):
        LinearProbe(3).save(tmp_path / "probe")
    probe = LinearProbe(3).fit(ACTS, LABELS)
    with pytest.raises(UsageError, match=r"\(6, 3\); .*fitted on states of shape \(n, 4\)"):
        probe.predict(ACTS[:, :3])
    with pytest.raises(UsageError, match=r"\(5,\) for 6 rows"):
        probe.score(ACTS, LABELS[:5])
