"""JacobianLens: autograd's exact Jacobian, the exact map of linear models, and the model spared."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import loaded
from families import model_of
from hopscope.probes import JacobianLens, LogitLens
from torch import Tensor, nn

from hopscope.engine.hooks import rewriting_residual
from hopscope.engine.logit_lens import logit_lens
from hopscope.errors import ModelError, UsageError
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_model

D_MODEL, VOCABULARY, LAYERS = 6, 20, 3
TEXTS = ([3, 14, 15, 92, 65, 35, 89], [79, 32, 38, 46, 26])
"""Of different lengths, so that one is padded."""
SKIP = 2


class Mix(nn.Module):
    """A linear block: a linear map of each state, and of the mean of all states up to it."""

    def __init__(self, generator: torch.Generator, mixes: bool):
        super().__init__()
        shape = (2, D_MODEL, D_MODEL)
        self.maps = nn.Parameter(0.3 * torch.randn(shape, generator=generator))
        self.mixes = mixes

    def forward(self, states: Tensor) -> tuple[Tensor, None]:
        own, mixed = self.maps
        states = states + states @ own.T
        if self.mixes:
            counts = torch.arange(1, states.shape[1] + 1, device=states.device)[:, None]
            states = states + (states.cumsum(dim=1) / counts) @ mixed.T
        return states, None


class Linear(nn.Module):
    """A causal model whose blocks are linear."""

    def __init__(self, mixes: bool = False):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, D_MODEL)
        self.embedding.weight.data = torch.randn(VOCABULARY, D_MODEL, generator=generator)
        self.blocks = nn.ModuleList(Mix(generator, mixes) for _ in range(LAYERS))
        self.norm = nn.RMSNorm(D_MODEL)
        self.unembedding = nn.Linear(D_MODEL, VOCABULARY, bias=False)
        self.unembedding.weight.data = torch.randn(VOCABULARY, D_MODEL, generator=generator)
        self.eval()

    def forward(self, ids: Tensor) -> Tensor:
        states = self.states(ids)[-1]
        logits: Tensor = self.unembedding(self.norm(states))
        return logits

    def states(self, ids: Tensor) -> list[Tensor]:
        states, after = self.embedding(ids), []
        for block in self.blocks:
            states = block(states)[0]
            after.append(states)
        return after

    def lens(self, **arguments: Any) -> JacobianLens:
        sizes = {"n_layers": LAYERS, "d_model": D_MODEL, **arguments}
        return JacobianLens(self.norm, self.unembedding, **sizes)


IDS = torch.randint(VOCABULARY, (4, 7), generator=torch.Generator().manual_seed(1))


def exact_jacobian(model: LanguageModel, ids: Sequence[int], layer: int) -> Tensor:
    """The definition, by autograd's Jacobian of all final states by all states after a layer."""
    rows, given, final = torch.tensor([ids]), torch.empty(0), torch.empty(0)

    def keep(boundary: int, hidden: Tensor) -> Tensor | None:
        nonlocal given, final
        if boundary == layer + 1:
            given = hidden if replaced is None else replaced[None]
        if boundary == model.n_layers:
            final = given if layer + 1 == boundary else hidden
        return given if boundary == layer + 1 else None

    def continued(states: Tensor) -> Tensor:
        nonlocal replaced
        replaced = states
        with rewriting_residual(model, keep):
            model.run_blocks(rows)
        return final[0, SKIP:-1].sum(dim=0)

    replaced: Tensor | None = None
    with torch.no_grad():
        continued(None)  # type: ignore[arg-type]
    states = given[0].clone()
    found: Any = torch.autograd.functional.jacobian(continued, states)
    mean: Tensor = found[:, SKIP:-1].mean(dim=1)
    return mean


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "granite", "mixtral", "mamba2"])
def test_it_is_the_exact_jacobian(family: str) -> None:
    model = model_of(family)
    lens = JacobianLens(model.final_norm, model.unembedding, model.n_layers, model.d_model)
    assert lens.fit(model.run_blocks, model.blocks, TEXTS, skip=SKIP) is lens
    for layer in (0, model.n_layers - 2, model.n_layers - 1):
        exact = torch.stack([exact_jacobian(model, ids, layer) for ids in TEXTS]).mean(dim=0)
        torch.testing.assert_close(lens.jacobians[layer], exact, atol=1e-4, rtol=1e-3)
    moved = (lens.jacobians[0] - torch.eye(model.d_model)).norm()
    assert moved > 0.05 * model.d_model**0.5, "nothing is tested where the blocks do nothing"


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere"])
def test_the_last_layer_is_the_logit_lens(family: str) -> None:
    model = model_of(family)
    plain = logit_lens(model)
    lens = JacobianLens(
        *(model.final_norm, model.unembedding, model.n_layers, model.d_model),
        softcap=plain.softcap,
        scale=plain.scale,
    )
    states = torch.randn(5, model.n_layers, model.d_model)
    assert torch.equal(lens(states), plain(states))
    lens.fit(model.run_blocks, model.blocks, TEXTS, skip=SKIP)
    assert torch.equal(lens(states)[:, -1], plain(states[:, -1]))
    assert torch.equal(lens(states[:, -1], layer=-1), plain(states[:, -1]))
    assert not torch.allclose(lens(states)[:, 0], plain(states[:, 0]), atol=1e-3)


def test_of_a_linear_model_it_is_the_exact_map() -> None:
    model = Linear()
    lens = model.lens().fit(model, model.blocks, IDS, skip=1)
    with torch.no_grad():
        states = torch.stack(model.states(IDS), dim=2)  # (text, token, layer, d_model)
        expected = model(IDS)[:, :, None].expand(*states.shape[:-1], -1)
        torch.testing.assert_close(lens(states), expected, atol=1e-4, rtol=1e-4)
        tokens = expected.argmax(dim=-1)
    assert (lens.rank(states, tokens) == 0).all()
    flat, labels = states.flatten(0, 1), tokens[:, :, 0].flatten()
    assert torch.equal(lens.score(flat, labels), torch.ones(LAYERS))
    assert torch.equal(lens.score(flat[:, 0], labels, layer=0), torch.ones(()))


def test_it_sums_over_the_tokens_that_come_next() -> None:
    """Of one linear block after the first: A for the token itself, and B / n from it on."""
    model = Linear(mixes=True)
    lens = model.lens().fit(model, model.blocks, IDS, skip=SKIP)
    own, mixed = model.blocks[-1].maps.detach()  # type: ignore[misc]
    places = range(SKIP, IDS.shape[1] - 1)
    shares = [sum(1 / (later + 1) for later in places if later >= own) for own in places]
    moved = torch.eye(D_MODEL) + own
    expected = moved + sum(shares) / len(shares) * mixed @ moved
    torch.testing.assert_close(lens.jacobians[-2], expected, atol=1e-5, rtol=1e-4)


def test_neither_batches_nor_padding_change_it() -> None:
    model = Linear(mixes=True)
    texts = [IDS[0], IDS[1][:5], IDS[2][:6].tolist()]
    one, other = (
        model.lens().fit(model, model.blocks, texts, skip=1, batch_size=size) for size in (1, 3)
    )
    for each, same in zip(one.jacobians, other.jacobians, strict=True):
        torch.testing.assert_close(each, same, atol=1e-6, rtol=1e-5)
    cut = model.lens().fit(model, model.blocks, [IDS[0]], skip=1, max_tokens=5)
    short = model.lens().fit(model, model.blocks, [IDS[0][:5]], skip=1)
    assert all(map(torch.equal, cut.jacobians, short.jacobians))


def test_texts_can_share_the_outputs() -> None:
    """Each output is then averaged over those texts alone whose turn it was."""
    model = Linear(mixes=True)
    texts, seen = [IDS[0], IDS[1][:4], IDS[2][:5]], []
    lens = model.lens().fit(
        *(model, model.blocks, texts),
        skip=1,
        batch_size=2,
        outputs_per_text=4,
        progress=lambda done, of: seen.append((done, of)),
    )
    alone = [model.lens().fit(model, model.blocks, [text], skip=1).jacobians[0] for text in texts]
    first, second, third = alone  # rows 0-3, rows 4, 5, 0, 1, and rows 2-5
    expected = torch.cat([(first + second)[:2], (first + third)[2:4], (second + third)[4:]]) / 2
    torch.testing.assert_close(lens.jacobians[0], expected, atol=1e-6, rtol=1e-5)
    assert seen == [(done, 8) for done in range(1, 9)]


@pytest.mark.parametrize("wanted", [False, True], ids=["frozen", "trained"])
def test_the_model_stays_as_it_is(wanted: bool) -> None:
    model = copy.deepcopy(Linear()).requires_grad_(wanted)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with torch.no_grad():
        lens = model.lens().fit(model, model.blocks, IDS, skip=1)
        assert not torch.is_grad_enabled()
    assert all(each.grad is None and each.requires_grad is wanted for each in model.parameters())
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(each.requires_grad for each in lens.jacobians)


def test_in_bfloat16_it_is_that_of_float32_to_rounding() -> None:
    one = loaded("tiny-random-llama")
    other = load_model("tiny-random-llama", device="cpu", dtype="bfloat16")
    exact, rounded = (
        JacobianLens(model.final_norm, model.unembedding, model.n_layers, model.d_model)
        .fit(model.run_blocks, model.blocks, TEXTS, skip=SKIP)
        .jacobians[0]
        for model in (one, other)
    )
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert torch.cosine_similarity(rounded.flatten(), exact.flatten(), dim=0) > 0.99


def test_a_file_gives_the_same_lens(tmp_path: Path) -> None:
    model = Linear(mixes=True)
    lens = model.lens(softcap=4.0, scale=0.5).fit(model, model.blocks, IDS, skip=1)
    states = torch.stack(model.states(IDS), dim=2).detach()
    path = lens.save(tmp_path / "lens.safetensors")
    again = JacobianLens.load(path, model.norm, model.unembedding)
    assert torch.equal(again(states), lens(states))
    assert not torch.equal(again(states), model.lens(softcap=4.0, scale=0.5)(states))
    half = JacobianLens.load(
        lens.save(tmp_path / "half.safetensors", dtype=torch.float16), model.norm, model.unembedding
    )
    assert half.jacobians[0].dtype == torch.float32
    torch.testing.assert_close(half(states), lens(states), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_unfitted_it_is_the_logit_lens(dtype: torch.dtype) -> None:
    model = Linear().to(dtype)
    states = torch.randn(5, LAYERS, D_MODEL).to(dtype)
    assert torch.equal(model.lens()(states), LogitLens(model.norm, model.unembedding)(states))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_it_is_the_same() -> None:
    model = Linear(mixes=True)
    here = model.lens().fit(model, model.blocks, IDS, skip=1)
    model.to("cuda")
    there = model.lens().fit(model, model.blocks, IDS, skip=1)
    for one, other in zip(here.jacobians, there.jacobians, strict=True):
        assert other.is_cuda
        torch.testing.assert_close(one, other.cpu(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"ids": []}, "there are 0 texts, and skip=1; give one or more"),
        ({"skip": 6}, r"the shortest of 7 tokens, and skip=6; .* skip \+ 2 = 8 tokens"),
        ({"max_tokens": 2}, "the shortest of 2 tokens"),
        ({"skip": -1}, "skip=-1"),
        ({"outputs_per_text": 1}, "outputs_per_text=1 for 4 texts; .* cover all 6 outputs"),
        ({"outputs_per_text": 7}, "give at most 6"),
        ({"batch_size": 0}, "batch_size=0; give at least one"),
        ({"blocks": ()}, "there are 0 blocks"),
    ],
)
def test_what_cannot_be_fitted(arguments: dict[str, Any], says: str) -> None:
    model = Linear()
    given = {"run": model, "blocks": model.blocks, "ids": IDS, "skip": 1, **arguments}
    with pytest.raises(UsageError, match=says):
        model.lens().fit(**given)


def test_a_model_that_does_not_fit() -> None:
    model = Linear()
    with pytest.raises(UsageError, match=r"2 blocks ran .* give the 3 blocks .* \(4, 7, 6\)"):
        model.lens().fit(model, model.blocks[:2], IDS, skip=1)
    with pytest.raises(UsageError, match="0 blocks ran"):
        model.lens().fit(lambda ids: None, model.blocks, IDS, skip=1)
    with pytest.raises(UsageError, match=r"not in training mode \(model\.eval\(\)\)"):
        model.lens().fit(model, model.train().blocks, IDS, skip=1)
    model.eval().blocks[1].maps.data[0, 0, 0] = torch.inf  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="not-a-number entries; load the model in float32"):
        model.lens().fit(model, model.blocks, IDS, skip=1)
    with pytest.raises(UsageError, match="n_layers=0"):
        model.lens(n_layers=0)
    with pytest.raises(UsageError, match=r"weights of shape \(6,\), and d_model=5"):
        model.lens(d_model=5)


def test_blocks_without_gradients_are_refused() -> None:
    model = Linear()
    plain = Mix.forward
    model.blocks[-1].forward = torch.no_grad()(lambda h: plain(model.blocks[-1], h))  # type: ignore[arg-type,assignment]
    with pytest.raises(ModelError, match="give no gradients; load the model without quantization"):
        model.lens().fit(model, model.blocks, IDS, skip=1)
