"""The engine against the plain way: the same numbers and tokens, however it is run."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NoReturn, get_args

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from conftest import loaded
from jaxtyping import TypeCheckError
from plain import PlainOutput, first_of, generated, patched, plain_outputs, states
from torch import Tensor, nn
from transformers import PreTrainedModel

from hopscope.engine.attention import ATTENTION_NAME
from hopscope.engine.cache import Prefix
from hopscope.engine.clean_run import clean_run
from hopscope.engine.edits import Cell, Knockout, Patch, PatchSite
from hopscope.engine.memory import free_memory
from hopscope.engine.plain import plain_sweep
from hopscope.engine.prefix_store import PrefixStore
from hopscope.engine.read_out import CellOutputs, ReadOut
from hopscope.engine.sweep import generate, sweep
from hopscope.errors import UsageError
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_model
from hopscope.models.tiny import SLIDING_WINDOW, TINY_FAMILIES
from hopscope.prompting.tokenized import TokenizedPrompt, by_prefix, by_shape
from hopscope.queries.prompts import Prompt
from hopscope.queries.two_hop_query import TwoHopQuery

QUERY = TwoHopQuery(
    id="1",
    e1_label="the Eiffel Tower",
    e2_label="France",
    e3_label="Paris",
    r1_template="The country where {} is located",
    r2_template="The capital of {}",
)
DEMONSTRATIONS = (
    "The capital of the country of the Colosseum is Rome.\n"
    "The author of the novel Hamlet was born in Stratford.\n"
)
PROMPTS: dict[str, Prompt | str] = {
    "zero-shot": Prompt.of(QUERY),
    "few-shot": Prompt.of(QUERY, demonstrations=DEMONSTRATIONS),
    "short": "The capital of France",
}
ANSWERS = (300, 41, 77)
N_TOKENS = 8
READ = ReadOut(ANSWERS, N_TOKENS)
EVERY_SITE: tuple[PatchSite, ...] = get_args(PatchSite)[:-1]
"""All but `z`, which is a head's."""
CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ],
)


@dataclass(frozen=True)
class Problem:
    """A prompt of one model, and its own states, from which vectors are taken.

    Attributes:
        states: the residual stream after each block, shape (layer, token, d_model).
    """

    model: LanguageModel
    prompt: TokenizedPrompt
    states: Tensor

    @classmethod
    def of(cls, model: LanguageModel, prompt: str = "zero-shot") -> Problem:
        tokenized = TokenizedPrompt.of(model, PROMPTS[prompt])
        return cls(model, tokenized, states(model.hf, tokenized.ids))

    @property
    def ids(self) -> tuple[int, ...]:
        return self.prompt.ids

    def back_patches(self, *names: str) -> list[Cell]:
        """All cells with source > target, at each of the positions."""
        positions = [self.prompt.position(name) for name in names]
        return [
            [Patch(target, position, self.states[source, position])]
            for position in positions
            for source in range(self.model.n_layers)
            for target in range(source)
        ]

    def every_kind(self) -> list[Cell]:
        """Cells of all sites, positions and numbers of edits, in no order."""
        n_layers, e1, t2 = self.model.n_layers, *map(self.prompt.position, ("e1", "t2"))
        take = self.states[2, e1]
        single: list[Cell] = [
            [Patch(layer, position, take, site)]
            for site in EVERY_SITE
            for layer, position in [(0, e1), (2, t2)]
        ]
        several: list[Cell] = [
            [Patch(3, t2, take), Patch(0, e1, self.states[3, t2])],
            [Patch(1, t2 - 2, take, "mlp_out"), Patch(1, t2 - 1, take, "attn_out")],
            [Patch(2, e1, take, site) for site in EVERY_SITE],
        ]
        last_of_all: list[Cell] = [[Patch(n_layers - 1, t2, self.states[0, t2])]]
        cells: list[Cell] = [*single, *several, *last_of_all, [], single[0], several[0], []]
        random.Random(0).shuffle(cells)
        return cells

    def plain(self, cells: Sequence[Cell], max_new_tokens: int = N_TOKENS) -> list[PlainOutput]:
        return plain_outputs(self.model.hf, self.ids, cells, max_new_tokens, self.model.end_tokens)


@cache
def solved(
    name: str, prompt: str, positions: tuple[str, ...]
) -> tuple[Problem, list[Cell], list[PlainOutput]]:
    """A problem, its cells (all kinds if no position is named), and what the plain way gives."""
    problem = Problem.of(loaded(name), prompt)
    cells = problem.back_patches(*positions) if positions else problem.every_kind()
    return problem, cells, problem.plain(cells)


def shortened(cell: PlainOutput, n: int) -> PlainOutput:
    """The cell with its first n tokens."""
    return replace(cell, tokens=cell.tokens[:n])


def assert_equal(outputs: CellOutputs, expected: Sequence[PlainOutput], atol: float = 1e-4) -> None:
    assert outputs.tokens == tuple(cell.tokens for cell in expected)
    logprobs = torch.tensor([cell.logprob(ANSWERS) for cell in expected])
    torch.testing.assert_close(outputs.logprob, logprobs, atol=atol, rtol=0)
    for rank, cell in zip(outputs.rank.tolist(), expected, strict=True):
        assert rank in cell.ranks(ANSWERS)


def assert_different(expected: Sequence[PlainOutput]) -> None:
    """The cells are a test: no two have the same logits."""
    for a, b in itertools.combinations(expected, 2):
        assert (a.logits - b.logits).abs().max() > 0.01


@pytest.mark.parametrize("max_memory", [None, 300_000], ids=["whole", "chunks"])
@pytest.mark.parametrize("position", ["t1", "t2"])
def test_all_back_patches(tiny_model: LanguageModel, position: str, max_memory: int | None) -> None:
    problem, cells, expected = solved(tiny_model.name, "zero-shot", (position,))
    assert_different(expected)
    assert_equal(sweep(tiny_model, problem.ids, cells, READ, max_memory=max_memory), expected)


def test_back_patches_at_every_token(tiny_model: LanguageModel) -> None:
    """More rows than are read at once."""
    problem, cells = Problem.of(tiny_model), list[Cell]()
    for position in range(len(problem.ids)):
        for cell in problem.back_patches("t2")[::2]:
            cells.append([replace(patch, position=position) for patch in cell])
    outputs = sweep(tiny_model, problem.ids, cells, ReadOut(ANSWERS))
    assert_equal(outputs, problem.plain(cells, 0))


@pytest.mark.parametrize("kept", [False, True], ids=["whole prompt", "kept prefix"])
def test_a_few_shot_prompt(tiny_model: LanguageModel, kept: bool) -> None:
    problem, cells, expected = solved(tiny_model.name, "few-shot", ("e1", "t2"))
    clean = None
    if kept:
        n_shared = problem.prompt.n_shared
        assert 0 < n_shared < problem.prompt.position("e1")
        shared = PrefixStore(tiny_model).get(problem.ids[:n_shared])
        clean = clean_run(tiny_model, problem.ids, shared)
    assert_equal(sweep(tiny_model, problem.ids, cells, READ, clean=clean), expected)


def test_generation_grows_beyond_the_window(tiny_model: LanguageModel) -> None:
    problem, cells, expected = solved(tiny_model.name, "short", ("t2",))
    assert len(problem.ids) < SLIDING_WINDOW < len(problem.ids) + N_TOKENS
    assert_equal(sweep(tiny_model, problem.ids, cells, READ), expected)


@pytest.mark.parametrize("max_memory", [None, 1], ids=["whole", "one by one"])
def test_every_kind_of_cell_in_one_sweep(tiny_model: LanguageModel, max_memory: int | None) -> None:
    problem, cells, expected = solved(tiny_model.name, "zero-shot", ())
    n = N_TOKENS if max_memory is None else 3
    outputs = sweep(tiny_model, problem.ids, cells, ReadOut(ANSWERS, n), max_memory=max_memory)
    assert_equal(outputs, [shortened(cell, n) for cell in expected])


@pytest.mark.parametrize("site", EVERY_SITE)
def test_every_layer_of_a_site(tiny_model: LanguageModel, site: PatchSite) -> None:
    problem = Problem.of(tiny_model)
    at = problem.prompt.position("e1")
    vector = 2 * problem.states[1, at]
    cells: list[Cell] = [[Patch(layer, at, vector, site)] for layer in range(tiny_model.n_layers)]
    outputs = sweep(tiny_model, problem.ids, cells, ReadOut(ANSWERS, 2))
    assert_equal(outputs, problem.plain(cells, 2))


def test_plain_sweep(tiny_model: LanguageModel) -> None:
    problem, cells, expected = solved(tiny_model.name, "zero-shot", ())
    assert_equal(plain_sweep(tiny_model, problem.ids, cells, READ), expected)


def test_a_family_without_replaceable_attention(
    tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, cells, expected = solved(tiny_model.name, "few-shot", ("e1", "t2"))
    monkeypatch.setitem(tiny_model.probed, "why plain", "a test says so")
    monkeypatch.setattr("hopscope.engine.attention.forward_streams", refuse)
    monkeypatch.setattr("hopscope.engine.sweep.forward_streams", refuse)
    shared = PrefixStore(tiny_model).get(problem.ids[: problem.prompt.n_shared])
    clean = clean_run(tiny_model, problem.ids, shared)
    assert_equal(sweep(tiny_model, problem.ids, cells, READ, clean=clean), expected)
    assert_equal(generate(tiny_model, [problem.ids], READ, shared=shared), problem.plain([[]]))


def refuse(*_: object, **__: object) -> NoReturn:
    raise AssertionError("the engine ran")


def test_negative_positions_count_from_the_end(llama: LanguageModel) -> None:
    problem = Problem.of(llama)
    vector = problem.states[3, -1]
    outputs = sweep(llama, problem.ids, [[Patch(0, -4, vector)]], READ)
    n_tokens = len(problem.ids)
    assert_equal(outputs, problem.plain([[Patch(0, n_tokens - 4, vector)]]))
    assert outputs.tokens != sweep(llama, problem.ids, [[]], READ).tokens


def test_a_patch_at_the_first_token(tiny_model: LanguageModel) -> None:
    problem = Problem.of(tiny_model)
    cells: list[Cell] = [[Patch(layer, 0, problem.states[2, -1])] for layer in (0, 3)]
    assert_equal(sweep(tiny_model, problem.ids, cells, READ), problem.plain(cells))


def test_a_prompt_of_one_token(tiny_model: LanguageModel) -> None:
    problem = Problem.of(tiny_model)
    ids = problem.ids[-1:]
    cells: list[Cell] = [[], [Patch(1, 0, problem.states[3, -1])]]
    expected = plain_outputs(tiny_model.hf, ids, cells, N_TOKENS, tiny_model.end_tokens)
    assert_equal(sweep(tiny_model, ids, cells, READ), expected)
    assert_equal(plain_sweep(tiny_model, ids, cells, READ), expected)


def test_no_cell(llama: LanguageModel) -> None:
    outputs = sweep(llama, Problem.of(llama).ids, [], ReadOut(ANSWERS, 3, top_k=2))
    assert outputs.tokens == ()
    assert outputs.rank.shape == (0,)
    assert outputs.top_tokens.shape == (0, 2)


def test_vectors_of_another_dtype_are_cast(llama: LanguageModel) -> None:
    problem = Problem.of(llama)
    vectors = [problem.states[3, -1].to(dtype) for dtype in (torch.float32, torch.float64)]
    cells: list[Cell] = [[Patch(0, -1, vector)] for vector in vectors]
    outputs = sweep(llama, problem.ids, cells, READ)
    assert outputs.tokens[0] == outputs.tokens[1]
    assert_equal(outputs, problem.plain(cells))


def knockouts(problem: Problem) -> list[Cell]:
    """Windows of one to all layers, at the last token and before it, in all heads and in some."""
    e1, t1, t2 = map(problem.prompt.position, ("e1", "t1", "t2"))
    n_layers, before = problem.model.n_layers, range(t2)
    windows = [range(max(0, at - 1), min(n_layers, at + 2)) for at in range(n_layers)]
    cells: list[Cell] = [[Knockout(window, [t2], [t1])] for window in windows]
    cells += [[Knockout(window, [t2], [e1 - 2, e1], heads=[1, 2])] for window in windows[1:]]
    cells += [
        [],
        [Knockout([2], [t2], before)],
        [Knockout([0, 3], range(e1 - 1, t2 + 1), range(e1 - 2, t2), heads=[0, 3])],
        [Knockout([1], [t2], [t1]), Patch(0, t2, problem.states[3, e1])],
        [Knockout([1], [e1], before), Knockout([1, 2], [t2], [e1], heads=[3])],
    ]
    random.Random(1).shuffle(cells)
    return cells


def assert_mostly_different(expected: Sequence[PlainOutput]) -> None:
    assert len({round(cell.logprob(ANSWERS), 4) for cell in expected}) > len(expected) // 2


def test_knockouts(tiny_model: LanguageModel) -> None:
    problem = Problem.of(tiny_model)
    cells = knockouts(problem)
    few = ReadOut(ANSWERS, 2)
    expected = problem.plain(cells, 2)
    assert_mostly_different(expected)
    for max_memory in (None, 300_000):
        assert_equal(sweep(tiny_model, problem.ids, cells, few, max_memory=max_memory), expected)
    assert_equal(plain_sweep(tiny_model, problem.ids, cells, few), expected)


def test_knockouts_in_a_few_shot_prompt(tiny_model: LanguageModel) -> None:
    problem = Problem.of(tiny_model, "few-shot")
    cells = knockouts(problem)
    expected = problem.plain(cells, 0)
    assert_mostly_different(expected)
    shared = PrefixStore(tiny_model).get(problem.ids[: problem.prompt.n_shared])
    clean = clean_run(tiny_model, problem.ids, shared)
    assert_equal(sweep(tiny_model, problem.ids, cells, ReadOut(ANSWERS), clean=clean), expected)


def head_patches(problem: Problem) -> list[Cell]:
    model, e1, t2 = problem.model, *map(problem.prompt.position, ("e1", "t2"))
    vector = torch.linspace(-1, 1, model.head_dim)
    cells: list[Cell] = [
        [Patch(layer, position, vector, "z", head)]
        for layer in range(model.n_layers)
        for position, head in [(e1, layer), (t2, 3 - layer)]
    ]
    both: Cell = [Patch(2, t2, vector, "z", 0), Patch(2, t2, -vector, "z", 3)]
    return [*cells, both, [Patch(1, e1, problem.states[2, t2]), *both], []]


def test_patches_of_heads(tiny_model: LanguageModel) -> None:
    problem = Problem.of(tiny_model)
    cells = head_patches(problem)
    expected = problem.plain(cells, 2)
    assert_mostly_different(expected)
    assert_equal(sweep(tiny_model, problem.ids, cells, ReadOut(ANSWERS, 2)), expected)
    assert_equal(plain_sweep(tiny_model, problem.ids, cells, ReadOut(ANSWERS, 2)), expected)


def test_edits_of_all_cells(tiny_model: LanguageModel) -> None:
    """As in causal tracing: what the source's tokens say is spoilt, and one state restored."""
    problem = Problem.of(tiny_model)
    e1, t2 = map(problem.prompt.position, ("e1", "t2"))
    noise = torch.linspace(-2, 2, tiny_model.d_model)
    base: Cell = [
        *(Patch(0, place, noise * (place - e1 + 4), "resid_pre") for place in (e1 - 1, e1)),
        Patch(2, t2, noise, "mlp_out"),
        Knockout([1], [t2], [e1]),
    ]
    cells: list[Cell] = [
        [Patch(layer, place, problem.states[layer, place])]
        for place in (e1, t2)
        for layer in range(tiny_model.n_layers)
    ]
    cells += [[], [Patch(0, e1, -noise, "resid_pre")], [Knockout([2], [t2], [0, e1], [1])]]
    expected = problem.plain([[*base, *cell] for cell in cells], 3)
    clean = clean_run(tiny_model, problem.ids, Prefix())
    few = ReadOut(ANSWERS, 3)
    for given in (None, clean):
        assert_equal(sweep(tiny_model, problem.ids, cells, few, base=base, clean=given), expected)
    clean_logits = problem.plain([[]], 0)[0].logits
    assert (clean_logits - expected[-3].logits).abs().max() > 0.01


@pytest.mark.parametrize("shares", [True, False])
def test_of_two_patches_in_one_place_the_later_counts(
    llama: LanguageModel, shares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem.of(llama)
    monkeypatch.setitem(llama.probed, "why plain", None if shares else "a test says so")
    first, second = (Patch(1, -1, problem.states[layer, 3]) for layer in (2, 3))
    outputs = sweep(llama, problem.ids, [[first, second], [second, first], [second], [first]], READ)
    assert outputs.logprob[:2].tolist() == pytest.approx(outputs.logprob[2:].tolist(), abs=1e-5)
    assert abs(outputs.logprob[0] - outputs.logprob[1]) > 0.01


@pytest.mark.parametrize("prompt", ["zero-shot", "few-shot"])
@pytest.mark.parametrize("shares", [True, False])
def test_states_of_the_clean_run(
    tiny_model: LanguageModel, prompt: str, shares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem.of(tiny_model, prompt)
    monkeypatch.setitem(tiny_model.probed, "why plain", None if shares else "a test says so")
    shared = PrefixStore(tiny_model).get(problem.ids[: problem.prompt.n_shared])
    clean = clean_run(tiny_model, problem.ids, shared)
    assert clean.first == (problem.prompt.n_shared if shares else 0)
    for position in range(clean.first, len(problem.ids)):
        expected = problem.states[:, position]
        torch.testing.assert_close(clean.state(position), expected, atol=1e-4, rtol=1e-4)


def test_states_of_the_shared_prefix_are_not_kept(llama: LanguageModel) -> None:
    problem = Problem.of(llama)
    clean = clean_run(llama, problem.ids, PrefixStore(llama).get(problem.ids[:5]))
    assert clean.state(5).shape == (llama.n_layers, llama.d_model)
    with pytest.raises(UsageError, match=r"token 4 lies in the few-shot part .*5 tokens"):
        clean.state(4)


def test_a_kept_clean_run_is_not_run_again(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, cells, expected = solved(llama.name, "zero-shot", ("t2",))
    clean = clean_run(llama, problem.ids, Prefix())
    monkeypatch.setattr("hopscope.engine.sweep.extend", refuse)
    assert_equal(sweep(llama, problem.ids, cells, READ, clean=clean), expected)


@torch.no_grad()
def drawn(problem: Problem, cell: Cell, draws: Sequence[float]) -> tuple[int, ...]:
    """Tokens drawn one by one, each from a hooked forward over all that came before."""
    ids, tokens = list(problem.ids), list[int]()
    for draw in draws:
        row = torch.tensor([[*ids, *tokens]])
        with patched(problem.model.hf, cell, len(ids)):
            logits = problem.model.hf(input_ids=row).logits[0, -1]
        sums = torch.softmax(logits, -1).cumsum(-1)
        token = int((sums <= draw).sum())
        if token in problem.model.end_tokens:
            break
        tokens.append(token)
    return tuple(tokens)


@pytest.mark.parametrize("max_memory", [None, 300_000], ids=["whole", "chunks"])
def test_drawn_tokens(tiny_model: LanguageModel, max_memory: int | None) -> None:
    problem = Problem.of(tiny_model)
    cells = problem.back_patches("t1")
    cells += [[], []]
    draws = torch.rand(len(cells), 4, generator=torch.Generator().manual_seed(1))
    what = ReadOut(max_new_tokens=4, draws=draws)
    expected = tuple(drawn(problem, c, d.tolist()) for c, d in zip(cells, draws, strict=True))
    assert len(set(expected)) > len(cells) // 2
    assert sweep(tiny_model, problem.ids, cells, what, max_memory=max_memory).tokens == expected
    assert plain_sweep(tiny_model, problem.ids, cells, what).tokens == expected


def test_drawn_tokens_of_unedited_prompts(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, short = Problem.of(llama), Problem.of(llama, "short")
    draws = torch.rand(2, 4, generator=torch.Generator().manual_seed(1))
    expected = (drawn(problem, [], draws[0].tolist()), drawn(short, [], draws[1].tolist()))
    what = ReadOut(max_new_tokens=4, draws=draws)
    assert generate(llama, [problem.ids, short.ids], what).tokens == expected
    monkeypatch.setitem(llama.probed, "why plain", "a test says so")
    assert generate(llama, [problem.ids, short.ids], what).tokens == expected


def test_draws_must_fit_the_cells(llama: LanguageModel) -> None:
    what = ReadOut(max_new_tokens=3, draws=torch.rand(2, 4))
    with pytest.raises(UsageError, match=r"\(2, 4\) do not fit 1 cells of 3 new tokens.*\(1, 3\)"):
        sweep(llama, Problem.of(llama).ids, [[]], what)


def test_tracked_tokens(tiny_model: LanguageModel) -> None:
    problem, cells, expected = solved(tiny_model.name, "zero-shot", ("t2",))
    what = ReadOut(track=(77, 3, 300))
    by_hand = torch.stack([torch.log_softmax(cell.logits, -1)[[77, 3, 300]] for cell in expected])
    for run in (sweep, plain_sweep):
        found = run(tiny_model, problem.ids, cells, what).tracked
        torch.testing.assert_close(found, by_hand, atol=1e-4, rtol=0)


def stops_after(tokens: Sequence[int]) -> Callable[[tuple[int, ...]], bool]:
    return lambda said: said == tuple(tokens)


both_ways = pytest.mark.parametrize("run", [sweep, plain_sweep])


@both_ways
@pytest.mark.parametrize("length", [1, 4, N_TOKENS])
def test_a_cell_stops_when_told_and_the_others_go_on(
    llama: LanguageModel, length: int, run: Callable[..., CellOutputs]
) -> None:
    problem, cells, expected = solved(llama.name, "zero-shot", ("t2",))
    stop = stops_after(expected[2].tokens[:length])
    outputs = run(llama, problem.ids, cells, ReadOut(ANSWERS, N_TOKENS, stop))
    assert outputs.tokens == tuple(cell.stopped(stop) for cell in expected)
    assert {len(tokens) for tokens in outputs.tokens} == {length, N_TOKENS}


def test_stopping_at_any_time(tiny_model: LanguageModel) -> None:
    """Cells leave after different numbers of tokens, and the rows that stay are regathered."""
    problem, cells, expected = solved(tiny_model.name, "zero-shot", ())

    def stop(said: tuple[int, ...]) -> bool:
        return (3 * sum(said) + len(said)) % 5 == 0

    outputs = sweep(tiny_model, problem.ids, cells, ReadOut(ANSWERS, N_TOKENS, stop))
    assert outputs.tokens == tuple(cell.stopped(stop) for cell in expected)
    assert len({len(tokens) for tokens in outputs.tokens}) > 1


def test_stop_is_asked_once_for_the_same_tokens(llama: LanguageModel) -> None:
    problem, cells, expected = solved(llama.name, "zero-shot", ("t2",))
    asked: list[tuple[int, ...]] = []

    def stop(said: tuple[int, ...]) -> bool:
        asked.append(said)
        return False

    sweep(llama, problem.ids, [*cells, *cells], ReadOut(ANSWERS, N_TOKENS, stop))
    said = {cell.tokens[:n] for cell in expected for n in range(1, N_TOKENS + 1)}
    assert sorted(asked) == sorted(said)


@both_ways
@pytest.mark.parametrize("step", [0, 1, 5])
def test_an_end_token_ends_a_cell(
    llama: LanguageModel,
    step: int,
    run: Callable[..., CellOutputs],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem, cells, before = solved(llama.name, "zero-shot", ("t2",))
    monkeypatch.setattr(type(llama), "end_tokens", frozenset({before[2].tokens[step]}))
    expected = problem.plain(cells)
    assert len(expected[2].tokens) <= step
    assert_equal(run(llama, problem.ids, cells, READ), expected)


def test_several_end_tokens(tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, cells, before = solved(tiny_model.name, "zero-shot", ("t2",))
    said = sorted({token for cell in before for token in cell.tokens})
    ends = max(map(frozenset, itertools.combinations(said, 2)), key=lambda e: n_lengths(before, e))
    assert n_lengths(before, ends) > 2
    monkeypatch.setattr(type(tiny_model), "end_tokens", ends)
    assert_equal(sweep(tiny_model, problem.ids, cells, READ), problem.plain(cells))


def n_lengths(cells: Sequence[PlainOutput], ends: frozenset[int]) -> int:
    """How many lengths there are when these tokens end a cell."""
    return len({len(cell.stopped(lambda said: said[-1] in ends)) for cell in cells})


@both_ways
def test_the_likeliest_tokens(tiny_model: LanguageModel, run: Callable[..., CellOutputs]) -> None:
    problem, cells, expected = solved(tiny_model.name, "zero-shot", ())
    outputs = run(tiny_model, problem.ids, cells, ReadOut(top_k=3))
    logprobs = torch.stack([torch.log_softmax(cell.logits, -1) for cell in expected])
    values, tokens = logprobs.topk(3)
    torch.testing.assert_close(outputs.top_logprobs, values, atol=1e-4, rtol=0)
    assert torch.equal(outputs.top_tokens, tokens)
    assert (outputs.rank == -1).all()
    assert outputs.logprob.isnan().all()
    assert set(outputs.tokens) == {()}


@both_ways
def test_the_next_token_alone(tiny_model: LanguageModel, run: Callable[..., CellOutputs]) -> None:
    problem, cells, _ = solved(tiny_model.name, "zero-shot", ())
    assert_equal(run(tiny_model, problem.ids, cells, ReadOut(ANSWERS)), problem.plain(cells, 0))


def test_the_rank_counts_what_is_likelier(llama: LanguageModel) -> None:
    problem = Problem.of(llama)
    order = problem.plain([[]], 0)[0].logits.argsort(descending=True).tolist()
    for rank, answers in [(0, order[:1]), (7, order[7:8]), (3, [order[9], order[3], order[5]])]:
        assert sweep(llama, problem.ids, [[]], ReadOut(tuple(answers))).rank.tolist() == [rank]


@pytest.mark.parametrize("answers", [(), ANSWERS], ids=["alone", "with the answer"])
def test_another_entity_is_read_beside_the_answer(
    llama: LanguageModel, answers: tuple[int, ...]
) -> None:
    problem = Problem.of(llama)
    logits = problem.plain([[]], 0)[0].logits
    chosen = logits.argsort(descending=True)[[4, 6]].tolist()
    outputs = sweep(llama, problem.ids, [[]], ReadOut(answers, also_rank=tuple(chosen)))
    assert outputs.also_rank.tolist() == [4]
    expected = torch.log_softmax(logits, -1)[chosen[0]]
    torch.testing.assert_close(outputs.also_logprob[0], expected, atol=1e-4, rtol=0)
    assert (outputs.rank.tolist() == [-1]) == (not answers)


def test_old_names_of_what_is_ranked_beside_the_answer_go_on_working(
    llama: LanguageModel,
) -> None:
    old, new = ReadOut((5,), beside=(7, 8)), ReadOut((5,), also_rank=(7, 8))
    assert old == new
    assert old.beside == replace(old, max_new_tokens=2).also_rank == (7, 8)
    outputs = sweep(llama, Problem.of(llama).ids, [[]], old)
    assert outputs.beside_rank is outputs.also_rank
    assert outputs.beside_logprob is outputs.also_logprob
    assert replace(new, beside=(9,)).also_rank == (9,)  # type: ignore[call-arg]


def test_shapes_and_types_are_checked_in_tests(llama: LanguageModel) -> None:
    rank, wrong = torch.zeros(2, dtype=torch.long), torch.zeros(3)
    with pytest.raises((TypeCheckError, BeartypeCallHintViolation)):
        CellOutputs(rank, wrong, (), *[torch.zeros(0, 0)] * 3, rank, torch.zeros(2), rank >= 0)


ENDINGS = (
    "The country of Kyoto is",
    "The author of Hamlet was born in",
    "The currency of Japan is",
)


@cache
def unedited(name: str, demonstrations: str) -> tuple[list[TokenizedPrompt], list[PlainOutput]]:
    """Prompts of several lengths, and what one padded batch of transformers gives for them."""
    model = loaded(name)
    texts = [ENDINGS[i % 3] + " the" * (i % 2) for i in range(7)] + ["Kyoto"]
    prompts = [
        TokenizedPrompt.of(
            model, Prompt(demonstrations + text, "", "two_hop", few_shot=len(demonstrations))
        )
        for text in texts
    ]
    padded, mask = left_padded([prompt.ids for prompt in prompts])
    said = generated(model.hf, padded, mask, N_TOKENS, model.end_tokens)
    logits = [plain_outputs(model.hf, prompt.ids, [[]])[0].logits for prompt in prompts]
    return prompts, [PlainOutput(*both) for both in zip(logits, said, strict=True)]


BATCHES: dict[str, Callable[[Sequence[TokenizedPrompt]], list[list[int]]]] = {
    "equal lengths": by_shape,
    "padded": lambda prompts: by_prefix(prompts, most=5),
}


@pytest.mark.parametrize(
    ("batches", "max_memory"), [("equal lengths", None), ("padded", None), ("padded", 200_000)]
)
@pytest.mark.parametrize("demonstrations", ["", DEMONSTRATIONS], ids=["zero-shot", "few-shot"])
def test_prompts_without_edits(
    tiny_model: LanguageModel, demonstrations: str, batches: str, max_memory: int | None
) -> None:
    prompts, expected = unedited(tiny_model.name, demonstrations)
    groups, store = BATCHES[batches](prompts), PrefixStore(tiny_model)
    assert sorted(i for group in groups for i in group) == list(range(len(prompts)))
    assert 1 < len(groups) < len(prompts)
    for group in groups:
        rows = [prompts[i].ids for i in group]
        shared = store.get(rows[0][: prompts[group[0]].n_shared])
        outputs = generate(tiny_model, rows, READ, shared=shared, max_memory=max_memory)
        assert_equal(outputs, [expected[i] for i in group])


def left_padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in prompts])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
    return ids, mask


@contextmanager
def memory_for(
    model: LanguageModel, rows: int, error: type[Exception] | Exception
) -> Iterator[None]:
    """Raise an error wherever more rows than that leave the model."""

    def hook(_: nn.Module, __: Any, hidden: Tensor) -> None:
        if hidden.shape[0] > rows:
            raise error

    handle = model.final_norm.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")],
    ids=["device", "host"],
)
@pytest.mark.parametrize("rows", [1, 4])
def test_the_chunk_is_halved_when_memory_runs_out(
    llama: LanguageModel, rows: int, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    problem, cells, expected = solved(llama.name, "zero-shot", ("t1", "t2"))
    with memory_for(llama, rows, error), caplog.at_level(logging.WARNING):
        outputs = sweep(llama, problem.ids, cells, READ)
    assert_equal(outputs, expected)
    assert "out of memory with 12 rows; going on with 6" in caplog.text
    assert_equal(sweep(llama, problem.ids, cells, READ), expected)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError("a bug"), KeyError])
def test_what_cannot_be_mended_by_halving_is_raised(
    llama: LanguageModel, error: type[Exception] | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    problem, cells, _ = solved(llama.name, "zero-shot", ("t1", "t2"))
    clean = clean_run(llama, problem.ids, Prefix())
    kind = error if isinstance(error, type) else type(error)
    with memory_for(llama, 0, error), pytest.raises(kind):
        sweep(llama, problem.ids, cells, READ, clean=clean)
    assert bool(caplog.records) == (kind is torch.OutOfMemoryError)


def row_counts(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]
) -> list[list[int]]:
    """How many rows each block runs, for each pass of the engine."""
    passes: list[list[int]] = []
    with monkeypatch.context() as patch:
        for index, layer in enumerate(model.layers):
            original = layer.forward

            def forward(
                *args: Any, index: int = index, original: Any = original, **kwargs: Any
            ) -> Any:
                output = original(*args, **kwargs)
                if index == 0:
                    passes.append([])
                passes[-1].append(first_of(output).shape[0])
                return output

            patch.setattr(layer, "forward", forward)
        run()
    return passes


def test_cells_are_one_row_until_they_differ(
    tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, cells, expected = solved(tiny_model.name, "zero-shot", ("t1", "t2"))
    clean = clean_run(tiny_model, problem.ids, Prefix())
    run = lambda: sweep(tiny_model, problem.ids, cells, READ, clean=clean)  # noqa: E731
    split = [patch.layer + 1 for (patch,) in cells]
    wanted = []
    for step in range(N_TOKENS):
        alive = [
            (c.tokens, s) for c, s in zip(expected, split, strict=True) if len(c.tokens) >= step
        ]
        histories = [
            {tokens[:step] for tokens, s in alive if s > layer}
            for layer in range(tiny_model.n_layers)
        ]
        own = [sum(s <= layer for _, s in alive) for layer in range(tiny_model.n_layers)]
        wanted.append([len(h) + o for h, o in zip(histories, own, strict=True)])
    assert row_counts(tiny_model, monkeypatch, run) == wanted


@pytest.mark.parametrize(("max_memory", "passes"), [(1, 12), (None, 1)])
def test_memory_bounds_the_rows(
    llama: LanguageModel, max_memory: int | None, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, cells, _ = solved(llama.name, "zero-shot", ("t1", "t2"))
    clean, what = clean_run(llama, problem.ids, Prefix()), ReadOut(ANSWERS)
    run = lambda: sweep(llama, problem.ids, cells, what, clean=clean, max_memory=max_memory)  # noqa: E731
    assert len(row_counts(llama, monkeypatch, run)) == passes


def test_free_memory_of_a_cpu() -> None:
    assert free_memory(torch.device("cpu")) == 2**30


def hooks(hf: nn.Module) -> list[object]:
    return [
        hook
        for module in hf.modules()
        for kind in (module._forward_pre_hooks, module._forward_hooks, module._backward_hooks)
        for hook in kind.values()
    ]


@contextmanager
def left_as_it_was(model: LanguageModel, ids: Sequence[int]) -> Iterator[None]:
    """The model has no hook, its attention and its logits."""

    def logits(hf: PreTrainedModel) -> Tensor:
        with torch.no_grad():
            found: Tensor = hf(input_ids=torch.tensor([list(ids)])).logits
        return found

    attention = model.config._attn_implementation
    before = logits(model.hf)
    assert attention != ATTENTION_NAME
    assert not hooks(model.hf)
    yield
    assert model.config._attn_implementation == attention
    assert not hooks(model.hf)
    assert torch.equal(logits(model.hf), before)


def interrupt(_: tuple[int, ...]) -> bool:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", TINY_FAMILIES)
@both_ways
def test_the_model_is_left_as_it_was(name: str, run: Callable[..., CellOutputs]) -> None:
    problem = Problem.of(load_model(name, device="cpu"))
    with left_as_it_was(problem.model, problem.ids):
        run(problem.model, problem.ids, problem.every_kind(), READ)


@pytest.mark.parametrize("name", TINY_FAMILIES)
@both_ways
def test_the_model_is_left_as_it_was_after_an_error(
    name: str, run: Callable[..., CellOutputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem.of(load_model(name, device="cpu"))
    model, cells = problem.model, problem.every_kind()
    with left_as_it_was(model, problem.ids):
        with pytest.raises(KeyboardInterrupt):
            run(model, problem.ids, cells, ReadOut(ANSWERS, N_TOKENS, interrupt))
        with monkeypatch.context() as patch:
            patch.setattr(model.mlp(2), "forward", refuse)
            with pytest.raises(AssertionError, match="engine ran"):
                run(model, problem.ids, cells, READ)


def test_vectors_and_the_kept_prefix_are_not_changed(llama: LanguageModel) -> None:
    problem = Problem.of(llama)
    clean = clean_run(llama, problem.ids, Prefix())
    tensors = [t for pair in clean.prefix.layers for t in pair] + [clean.resid_post, problem.states]
    before = [tensor.clone() for tensor in tensors]
    sweep(llama, problem.ids, problem.every_kind(), READ, clean=clean)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        (Patch(4, 0, torch.zeros(48)), "no layer 4.*0 to 3"),
        (Patch(-1, 0, torch.zeros(48)), "no layer -1"),
        (Patch(0, 99, torch.zeros(48)), "no position 99.*tokens"),
        (Patch(0, -99, torch.zeros(48)), "no position -99"),
        (Patch(0, 0, torch.zeros(47)), "length 47.*d_model 48"),
    ],
)
def test_a_patch_that_does_not_fit_is_refused(
    llama: LanguageModel, patch: Patch, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        sweep(llama, Problem.of(llama).ids, [[], [patch]], READ)


def agreement(a: Sequence[tuple[int, ...]], b: Sequence[tuple[int, ...]]) -> float:
    return sum(x == y for x, y in zip(a, b, strict=True)) / len(a)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("name", TINY_FAMILIES)
def test_bfloat16(name: str, device: str) -> None:
    problem = Problem.of(load_model(name, device=device, dtype="bfloat16"))
    cells = problem.back_patches("t1", "t2")
    outputs, expected = sweep(problem.model, problem.ids, cells, READ), problem.plain(cells)
    assert outputs.logprob.isfinite().all()
    assert (outputs.rank >= 0).all()
    first = [cell.tokens[:1] for cell in expected]
    assert agreement([tokens[:1] for tokens in outputs.tokens], first) >= 0.8
    logprobs = torch.tensor([cell.logprob(ANSWERS) for cell in expected])
    assert (outputs.logprob - logprobs).abs().median() < 0.1


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("prompt", ["zero-shot", "few-shot"])
@pytest.mark.parametrize("name", TINY_FAMILIES)
def test_on_a_gpu(name: str, prompt: str, device: str) -> None:
    problem = Problem.of(load_model(name, device=device, dtype="float32"), prompt)
    cells = [*problem.back_patches("t1", "t2"), *problem.every_kind()]
    expected = problem.plain(cells)
    for max_memory in (None, 300_000):
        outputs = sweep(problem.model, problem.ids, cells, READ, max_memory=max_memory)
        assert_equal(outputs, [replace(cell, logits=cell.logits.cpu()) for cell in expected])
