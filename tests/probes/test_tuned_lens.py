"""TunedLens: the identity at first, undoes what is done to the last state, spares the model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hopscope.probes import LogitLens, TunedLens
from torch import Tensor, nn

from hopscope.errors import UsageError

D_MODEL, VOCABULARY, LAYERS = 8, 30, 3


def parts() -> tuple[nn.Module, nn.Module]:
    """The final norm and the unembedding of a model."""
    generator = torch.Generator().manual_seed(0)
    norm, unembedding = nn.LayerNorm(D_MODEL), nn.Linear(D_MODEL, VOCABULARY, bias=False)
    norm.weight.data = 1 + 0.2 * torch.randn(D_MODEL, generator=generator)
    unembedding.weight.data = torch.randn(VOCABULARY, D_MODEL, generator=generator)
    return norm, unembedding


def new_lens(**arguments: Any) -> TunedLens:
    return TunedLens(*parts(), **{"n_layers": LAYERS, "d_model": D_MODEL, **arguments})


def random_states(n: int = 96) -> Tensor:
    return torch.randn(n, LAYERS, D_MODEL, generator=torch.Generator().manual_seed(1))


def distorted(rank: int | None) -> Tensor:
    """States of which the first layers hold the last one, through affine maps."""
    generator = torch.Generator().manual_seed(2)
    last = 2 * torch.randn(256, D_MODEL, generator=generator)
    layers = []
    for _ in range(LAYERS - 1):
        left, right = torch.randn(2, D_MODEL, rank or D_MODEL, generator=generator)
        matrix = torch.eye(D_MODEL) + 0.3 * left @ right.T / (rank or D_MODEL) ** 0.5
        shift = torch.randn(D_MODEL, generator=generator)
        layers.append(torch.linalg.solve(matrix, (last - shift).T).T)
    return torch.stack([*layers, last], dim=1)


def divergence(lens: TunedLens, acts: Tensor) -> Tensor:
    """Nats from what the last layer says to what each says, shape (layer,)."""
    with torch.no_grad():
        target = lens.logit_lens(acts[:, -1:]).log_softmax(dim=-1)
        said = lens(acts).log_softmax(dim=-1)
        return (target.exp() * (target - said)).sum(dim=-1).mean(dim=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rank", [None, 2])
def test_untrained_it_is_the_logit_lens(dtype: torch.dtype, rank: int | None) -> None:
    norm, unembedding = (part.to(dtype) for part in parts())
    lens = TunedLens(norm, unembedding, LAYERS, D_MODEL, rank, softcap=5.0)
    states, tokens = random_states().to(dtype), torch.arange(96)[:, None] % VOCABULARY
    logit_lens = LogitLens(norm, unembedding, softcap=5.0)
    assert torch.equal(lens(states), logit_lens(states))
    assert torch.equal(lens.rank(states, tokens), logit_lens.rank(states, tokens))
    assert torch.equal(lens.logprob(states, tokens), logit_lens.logprob(states, tokens))
    assert torch.equal(lens.score(states, tokens[:, 0]), logit_lens.score(states, tokens[:, 0]))


@pytest.mark.parametrize("rank", [None, 1])
def test_it_undoes_an_affine_map(rank: int | None) -> None:
    acts = distorted(rank)
    lens = new_lens(rank=rank)
    before = divergence(lens, acts[200:])
    lens.fit(acts[:200], epochs=60, lr=0.03, weight_decay=0.0)
    after = divergence(lens, acts[200:])
    assert before[:-1].min() > 0.3
    assert (after[:-1] < 0.05 * before[:-1]).all()
    agreed = lens.score(acts[200:], lens(acts[200:, -1], layer=-1).argmax(dim=-1))
    assert agreed.min() > 0.8


def test_the_defaults_train() -> None:
    acts = distorted(None)
    before = divergence(new_lens(), acts)[:-1]
    assert (divergence(new_lens().fit(acts), acts)[:-1] < 0.3 * before).all()
    assert (divergence(new_lens(rank=2).fit(acts), acts)[:-1] < 0.7 * before).all()


def test_without_labels_the_last_layer_stays_as_it_is() -> None:
    acts = distorted(None)
    lens = new_lens().fit(acts, epochs=2)
    assert torch.equal(lens(acts[:, -1], layer=-1), lens.logit_lens(acts[:, -1]))
    assert not torch.allclose(lens(acts[:, 0], layer=0), lens.logit_lens(acts[:, 0]))


def test_with_labels_every_layer_learns_them() -> None:
    acts = random_states()
    labels = (acts[:, 1, 0] > 0).long() * 7
    lens = new_lens().fit(acts, labels, epochs=50, lr=0.03)
    score = lens.score(acts, labels)
    assert score.shape == (LAYERS,)
    assert score[1] > 0.95
    assert score[1] > score[2] > new_lens().score(acts, labels)[2]


def test_one_layer_is_a_slice_of_all() -> None:
    acts, tokens = random_states(), torch.arange(96) % VOCABULARY
    lens = new_lens().fit(acts, epochs=2)
    alone = lens(acts[:, 1], layer=1)
    torch.testing.assert_close(alone, lens(acts)[:, 1])
    torch.testing.assert_close(lens(acts[:, 1], layer=-2), alone)
    ranks = lens.rank(acts, tokens[:, None])
    assert torch.equal(lens.rank(acts[:, 1], tokens, layer=1), ranks[:, 1])
    torch.testing.assert_close(
        lens.logprob(acts, tokens[:, None])[:, 1], lens.logprob(acts[:, 1], tokens, layer=1)
    )
    assert ranks.tolist() == [
        [int((layer > layer[token]).sum()) for layer in row]
        for row, token in zip(lens(acts), tokens, strict=True)
    ]
    score = lens.score(acts[:, 1], tokens, layer=1, batch_size=7)
    assert score == lens.score(acts, tokens)[1]
    assert score == (ranks[:, 1] == 0).float().mean()


def test_the_model_is_not_trained() -> None:
    norm, unembedding = parts()
    before = copy.deepcopy([norm.state_dict(), unembedding.state_dict()])
    TunedLens(norm, unembedding, LAYERS, D_MODEL).fit(random_states(), epochs=2)
    for part, was in zip((norm, unembedding), before, strict=True):
        for name, parameter in part.named_parameters():
            assert torch.equal(parameter, was[name])
            assert parameter.grad is None
            assert parameter.requires_grad


def test_logits_are_held_for_one_batch_of_one_layer() -> None:
    norm, unembedding = parts()
    sizes: list[int] = []
    unembedding.register_forward_hook(lambda _, __, logits: sizes.append(logits.numel()))
    TunedLens(norm, unembedding, LAYERS, D_MODEL).fit(random_states(), epochs=1, batch_size=20)
    assert max(sizes) == 20 * VOCABULARY


@pytest.mark.parametrize("rank", [None, 2])
def test_the_seed_decides(rank: int | None) -> None:
    acts = random_states()

    modules = parts()

    def fitted(seed: int) -> Tensor:
        lens = TunedLens(*modules, LAYERS, D_MODEL, rank)
        return lens.fit(acts, epochs=1, seed=seed)(acts)

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = fitted(0)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, fitted(0))
    assert not torch.equal(first, fitted(1))


def test_fitting_again_starts_again() -> None:
    acts = random_states()
    lens = new_lens(rank=2).fit(acts, epochs=3)
    assert torch.equal(lens.fit(acts, epochs=1)(acts), new_lens(rank=2).fit(acts, epochs=1)(acts))


def test_weight_decay_pulls_to_the_identity() -> None:
    acts = distorted(None)
    free = new_lens().fit(acts, weight_decay=0.0).translate(acts) - acts
    held = new_lens().fit(acts, weight_decay=10.0).translate(acts) - acts
    assert held.norm() < 0.8 * free.norm()


def test_progress_is_told() -> None:
    told: list[tuple[int, int, float]] = []
    new_lens().fit(
        distorted(None), epochs=5, batch_size=100, progress=lambda *step: told.append(step)
    )
    assert [(done, steps) for done, steps, _ in told] == [(i, 15) for i in range(1, 16)]
    assert told[-1][2] < told[0][2]
    acts = distorted(None)
    new_lens().fit(acts, epochs=1, batch_size=256, progress=lambda *step: told.append(step))
    assert told[-1][2] == pytest.approx(divergence(new_lens(), acts)[:-1].mean().item(), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_and_states_in_half_precision(dtype: torch.dtype) -> None:
    norm, unembedding = (part.to(dtype) for part in parts())
    acts = distorted(None).to(dtype)
    lens = TunedLens(norm, unembedding, LAYERS, D_MODEL)
    with torch.no_grad():
        lens.fit(acts, epochs=25, lr=0.03)
    assert all(p.dtype == torch.float32 for p in lens.translators.parameters())
    assert lens(acts).dtype == dtype
    before = divergence(TunedLens(norm, unembedding, LAYERS, D_MODEL), acts)
    assert (divergence(lens, acts)[:-1] < 0.1 * before[:-1]).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_states_may_lie_elsewhere_than_the_model() -> None:
    norm, unembedding = (part.to("cuda", torch.bfloat16) for part in parts())
    acts, labels = distorted(None), torch.arange(256) % VOCABULARY
    for where in ("cpu", "cuda"):
        lens = TunedLens(norm, unembedding, LAYERS, D_MODEL).fit(acts.to(where), labels, epochs=2)
        assert lens(acts.to(where)).device.type == "cuda"
        assert lens.score(acts.to(where), labels).shape == (LAYERS,)


@pytest.mark.parametrize("rank", [None, 2])
def test_a_file_gives_the_same_lens(rank: int | None, tmp_path: Path) -> None:
    acts = random_states()
    lens = new_lens(rank=rank, softcap=4.0).fit(acts, epochs=2)
    path = lens.save(tmp_path / "lens.safetensors")
    assert torch.equal(TunedLens.load(path, *parts())(acts), lens(acts))
    values = LAYERS * (D_MODEL + (D_MODEL**2 if rank is None else 2 * rank * D_MODEL))
    assert path.stat().st_size < 4 * values + 2000
    small = lens.save(tmp_path / "small.safetensors", dtype=torch.float16)
    assert path.stat().st_size - small.stat().st_size == pytest.approx(2 * values, abs=16)
    half = TunedLens.load(small, *parts())
    assert all(p.dtype == torch.float32 for p in half.translators.parameters())
    torch.testing.assert_close(half(acts), lens(acts), atol=1e-2, rtol=1e-2)


STATES = random_states(4)


@pytest.mark.parametrize(
    ("acts", "labels", "says"),
    [
        (STATES[:, 0], None, r"\(4, 8\); .*\(\.\.\., layer, d_model\) = \(\.\.\., 3, 8\)"),
        (STATES[:, :2], None, r"\(\.\.\., 3, 8\)"),
        (STATES / 0, None, "infinite"),
        (STATES[:0], None, "with at least one row"),
        (STATES, torch.zeros(3).long(), r"\(3,\) for 4 rows"),
        (STATES, torch.zeros(4), "give integers"),
    ],
)
def test_what_cannot_be_fitted(acts: Tensor, labels: Tensor | None, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        new_lens().fit(acts, labels)


def test_one_layer_needs_labels() -> None:
    with pytest.raises(UsageError, match="give labels"):
        new_lens(n_layers=1).fit(STATES[:, :1])
    assert new_lens(n_layers=1).fit(STATES[:, :1], torch.arange(4)).n_layers == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"rank": 9}, "rank=9; give 1 to d_model=8"),
        ({"rank": 0}, "rank=0"),
        ({"n_layers": 0}, "n_layers=0"),
        ({"d_model": 16}, r"weights of shape \(8,\), and d_model=16"),
    ],
)
def test_what_cannot_be_made(arguments: dict[str, int], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        new_lens(**arguments)


def test_there_is_no_such_layer() -> None:
    with pytest.raises(UsageError, match="no layer 3; the lens has layers 0 to 2"):
        new_lens()(STATES[:, 0], layer=3)
    with pytest.raises(UsageError, match="for states of one layer pass layer="):
        new_lens()(STATES[:, 0])
