"""Tests of trace() on known effects and beside plain hooks, and of its tables."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import loaded
from known import N_LAYERS, known_model, known_queries
from plain import plain_output, site_states

import hopscope as hs
from hopscope.engine.edits import Cell, Patch
from hopscope.errors import QueryError, ResultError, UsageError
from hopscope.experiments.randomness import generator_for
from hopscope.experiments.two_hop.causal_tracing import Tracing, trace
from hopscope.prompting import query_prompts
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import TwoHopQuery

SITES = ("resid_post", "attn_out", "mlp_out")
KEYS = ["query", "position", "site", "layer"]
COLUMNS = [*KEYS, "probability", "indirect_effect"]
SHORT = ["early-1", "named", "usual"]
"""Queries that are answered and whose source is one token: all noise lies at t1."""

LOUD = 30.0
"""Noise that covers the features of the known model, which are 0 or 1."""


def chosen(ids: Sequence[str]) -> QuerySet:
    return known_queries().filter(lambda query: query.id in ids)


def traced(queries: QuerySet, **settings: Any) -> Tracing:
    return trace(known_model(), queries, progress=False, **settings)


@cache
def known(window: int) -> Tracing:
    """Three queries under noise that spoils all of them."""
    positions = ("e1", "t1", "t2")
    return traced(chosen(SHORT), positions=positions, noise=LOUD, draws=4, window=window)


def test_noise_at_the_source_spoils_the_answer() -> None:
    details = known(0).details
    assert (details["clean"] > 0.99).all()
    assert (details["noised"] < 0.2).all()


BRINGS_BACK: dict[tuple[str, str], set[int]] = {
    # Block 2 of the last token reads the bridge at t1, which names it after block 1.
    ("t1", "resid_post"): {0, 1},
    # The last token has the bridge from block 2's attention; block 3's MLP writes the answer.
    ("t2", "resid_post"): {2, 3, 4, 5},
    ("t2", "attn_out"): {2},
    ("t2", "mlp_out"): {3},
}
"""The layers whose clean state, put back, brings the answer back."""


def around(layers: set[int], window: int) -> set[int]:
    """The middles of the windows that hold one of the layers."""
    return {at for at in range(N_LAYERS) if any(abs(at - each) <= window for each in layers)}


@pytest.mark.parametrize("window", [0, 1, 2])
def test_the_answer_comes_back_from_the_known_places(window: int) -> None:
    result = known(window)
    details = result.details.set_index("query")
    for (position, site), layers in BRINGS_BACK.items():  # noqa: B007 (in the query)
        there = layers if site == "resid_post" else around(layers, window)
        for query in SHORT:
            rows = result.frame.query("query == @query and position == @position and site == @site")
            assert list(rows["layer"]) == list(range(N_LAYERS))
            clean, noised = details.loc[query, "clean"], details.loc[query, "noised"]
            expected = [clean if layer in there else noised for layer in range(N_LAYERS)]
            # What block 5 says of a bridge that is read late moves a probability a little.
            np.testing.assert_allclose(rows["probability"], expected, atol=0.02)
            effects = np.array(expected) - noised
            np.testing.assert_allclose(rows["indirect_effect"], effects, atol=0.02)


def test_few_shot_prompts_are_restored_in_the_same_places() -> None:
    result = traced(
        chosen(SHORT).with_few_shot(2), sites=["resid_post"], noise=LOUD, draws=2, window=0
    )
    clean = result.details.set_index("query")["clean"]
    for query, position in itertools.product(SHORT, ("t1", "t2")):
        rows = result.frame.query("query == @query and position == @position").set_index("layer")
        for layer in BRINGS_BACK[position, "resid_post"]:
            assert rows["probability"][layer] == pytest.approx(clean[query], abs=0.02)
    assert list(result.details["prompt"]) == [query.two_hop() for query in chosen(SHORT)]


def test_e1_is_the_end_of_the_source() -> None:
    frame = known(1).frame
    first, second = (
        frame[frame["position"] == name].drop(columns="position").reset_index(drop=True)
        for name in ("e1", "t1")
    )
    pd.testing.assert_frame_equal(first, second)


def test_every_token_of_the_source_is_noised() -> None:
    """Its first one alone would leave "Birch", which names the bridge, as it was."""
    result = traced(chosen(["early-2"]), sites=["resid_post"], noise=LOUD, draws=4)
    assert result.details["noised"].iloc[0] < 0.9


def test_a_whisper_spoils_nothing() -> None:
    result = traced(chosen(SHORT), noise=0.1)
    np.testing.assert_allclose(result.details["noised"], result.details["clean"], atol=5e-3)
    np.testing.assert_allclose(result.frame["indirect_effect"], 0, atol=5e-3)


def songs() -> QuerySet:
    """Questions whose source comes first, and is followed by the rest of the first hop."""
    sources = ("the Magic Flute", "Imagine", "Hamlet")
    return QuerySet(
        tuple(
            TwoHopQuery(
                id=source,
                e1_label=source,
                e2_label=f"Person {number}",
                e3_label=("Austria", "Yoko Ono", "Stratford")[number],
                e3_aliases=(("city", "Vienna"), (), ("Avon",))[number],
                r1_template="{}'s author",
                r2_template="The birthplace of {}",
            )
            for number, source in enumerate(sources)
        ),
        "songs",
    )


@dataclass(frozen=True)
class Case:
    """What is traced in one comparison."""

    family: str
    few_shot: int
    window: int
    positions: tuple[str, ...]
    noise: float = 3.0

    def queries(self) -> QuerySet:
        return replace(songs(), few_shot=self.few_shot)[:1]


CASES = (
    Case("tiny-random-llama", 0, 0, ("e1", "t2")),
    Case("tiny-random-llama", 2, 2, ("t1", "t2"), noise=1.5),
    Case("tiny-random-gemma2", 0, 1, ("e1", "t1", "t2")),
    Case("tiny-random-gemma2", 2, 1, ("t2",)),
    Case("tiny-random-gpt2", 0, 1, ("t1", "t2")),
    Case("tiny-random-mistral", 0, 1, ("t1", "e1")),
)
DRAWS, SEED = 2, 7


@cache
def run_case(case: Case) -> Tracing:
    return trace(
        loaded(case.family),
        case.queries(),
        case.positions,
        noise=case.noise,
        draws=DRAWS,
        window=case.window,
        seed=SEED,
        progress=False,
    )


class Plain:
    """Traces one query the plain way: one hooked forward per draw and cell."""

    def __init__(self, case: Case) -> None:
        model, self.query = loaded(case.family), case.queries()[0]
        self.hf, self.tokenizer = model.hf, model.tokenizer
        self.text = case.queries().prompts()[0].text
        self.start = self.text.rindex(self.query.e1_label)
        self.ids = self.tokens(self.text)
        answers = [self.tokens(f" {name}", special=False)[0] for name in self.query.names("e3")]
        self.answers = [each for each in answers if self.tokenizer.decode([each]).strip()]
        self.noised = [self.noise(case, draw) for draw in range(DRAWS)]

    def tokens(self, text: str, special: bool = True) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])

    def upto(self, end: int) -> int:
        """How many tokens stand before a character, the space before it not counted."""
        return len(self.tokens(self.text[:end].rstrip(" ")))

    def position(self, name: str) -> int:
        source = self.start + len(self.query.e1_label)
        cut = {"e1": source, "t1": self.text.rindex(" is"), "t2": len(self.text)}[name]
        return self.upto(cut) - 1

    def noise(self, case: Case, draw: int) -> list[Patch]:
        embedded = site_states(self.hf, self.ids, "resid_pre")[0]
        source = range(self.upto(self.start), self.position("e1") + 1)
        generator = generator_for(SEED, self.query.id, str(draw))
        drawn = torch.randn(len(source), embedded.shape[-1], generator=generator)
        asked = embedded
        if case.few_shot:
            question = self.text.rindex("\n") + 1
            asked = embedded[self.upto(question) :]
        changed = embedded[list(source)] + case.noise * asked.std() * drawn
        return [Patch(0, at, new, "resid_pre") for at, new in zip(source, changed, strict=True)]

    def probability(self, restored: Sequence[Patch]) -> float:
        """Of the likeliest answer, a mean over the draws."""
        cells: list[Cell] = [[*noise, *restored] for noise in self.noised]
        found = [plain_output(self.hf, self.ids, cell).logprob(self.answers) for cell in cells]
        return float(np.exp(found).mean())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_cell_equals_a_plain_hooked_forward(case: Case) -> None:
    result, plain = run_case(case), Plain(case)
    clean = np.exp(plain_output(plain.hf, plain.ids, []).logprob(plain.answers))
    noised = plain.probability([])
    found = result.details[["clean", "noised"]].iloc[0].to_list()
    assert found == pytest.approx([clean, noised], rel=1e-3)
    keys = []
    table = result.frame.set_index(KEYS[1:])
    for site, position in itertools.product(SITES, case.positions):
        at = plain.position(position)
        states = site_states(plain.hf, plain.ids, site)[:, at]
        for layer in range(len(states)):
            near = [n for n in range(len(states)) if abs(n - layer) <= case.window]
            chosen_layers = [layer] if site == "resid_post" else near
            patches = [Patch(n, at, states[n], site) for n in chosen_layers]  # type: ignore[arg-type]
            probability = plain.probability(patches)
            row = table.loc[(position, site, layer)]
            assert row["probability"] == pytest.approx(probability, rel=1e-3), (site, layer)
            effect = pytest.approx(probability - noised, rel=1e-3, abs=2e-3 * noised)
            assert row["indirect_effect"] == effect, (site, layer)
            keys.append((position, site, layer))
    assert keys == list(table.index)


def test_the_comparison_is_not_idle() -> None:
    for case in CASES:
        result = run_case(case)
        details = result.details.iloc[0]
        assert abs(np.log(details["clean"] / details["noised"])) > 0.02, case
        effects = result.frame["indirect_effect"].abs() / details["noised"]
        assert (effects > 0.01).mean() > 0.5, case


def test_noise_depends_on_the_seed_and_the_query_alone() -> None:
    settings: dict[str, Any] = {"sites": ["resid_post"], "noise": LOUD, "draws": 2}
    whole = traced(chosen(SHORT), **settings)
    turned = traced(replace(chosen(SHORT), queries=chosen(SHORT).queries[::-1]), **settings)
    for id in SHORT:
        alone = traced(chosen([id]), **settings)
        for result in (whole, turned):
            frame = result.frame[result.frame["query"] == id].reset_index(drop=True)
            pd.testing.assert_frame_equal(frame, alone.frame)
    other = traced(chosen(SHORT), seed=1, **settings)
    assert (other.details["noised"] != whole.details["noised"]).any()
    assert list(other.details["clean"]) == list(whole.details["clean"])


def noise_of(queries: QuerySet, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[Cell]:
    """The noise of each query and draw."""
    bases: list[Cell] = []
    sweep = query_prompts.sweep

    def recording(*given: Any, base: Cell = (), **more: Any) -> Any:
        if base:
            bases.append(base)
        return sweep(*given, base=base, **more)

    with monkeypatch.context() as patch:
        patch.setattr(query_prompts, "sweep", recording)
        traced(queries, sites=["mlp_out"], positions=["t2"], **settings)
    return bases


def test_noise_is_gaussian_of_the_asked_size(monkeypatch: pytest.MonkeyPatch) -> None:
    queries = chosen(["early-2"])
    embedded = site_states(
        known_model().hf, known_model().encode(queries[0].two_hop()).ids, "resid_pre"
    )
    for noise in (3.0, 6.0):
        bases = noise_of(queries, monkeypatch, noise=noise, draws=8)
        assert len(bases) == 8
        assert [[each.first for each in base] for base in bases] == [[6, 7]] * 8
        added = torch.stack(
            [each.vector - embedded[0, each.first] for base in bases for each in base]  # type: ignore[union-attr]
        )
        assert float(added.std()) == pytest.approx(noise * float(embedded[0].std()), rel=0.1)
        cosines = torch.corrcoef(added).fill_diagonal_(0)
        assert float(cosines.abs().max()) < 0.4, "drawn once for two tokens or draws"


def test_more_draws_begin_with_the_same_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = (noise_of(chosen(["usual"]), monkeypatch, draws=n) for n in (2, 5))
    assert (len(few), len(many)) == (2, 5)
    for one, other in zip(few, many, strict=False):
        assert torch.equal(one[0].vector, other[0].vector)  # type: ignore[union-attr]


def test_the_tables_have_a_row_for_each_place() -> None:
    result = known(2)
    assert list(result.frame.columns) == COLUMNS
    assert len(result.frame) == 3 * 3 * 3 * N_LAYERS
    assert not result.frame.duplicated(KEYS).any()
    assert result.frame.notna().all(axis=None)
    details = result.details
    assert list(details["query"]) == SHORT
    first = details.iloc[0]
    assert first["prompt"] == "The capital of the country of Arbor is"
    assert (first["bridge"], first["answer"]) == ("Aland", "Alba")
    noised = result.frame["query"].map(details.set_index("query")["noised"])
    effect = result.frame["probability"] - noised
    np.testing.assert_allclose(result.frame["indirect_effect"], effect, atol=1e-6)


def made(effects: dict[tuple[str, str, int], list[float]], clean: list[float]) -> Tracing:
    rows = [
        (f"q{number}", *key, 0.5 + effect, effect)
        for key, each in effects.items()
        for number, effect in enumerate(each)
    ]
    details = pd.DataFrame({"query": [f"q{n}" for n in range(len(clean))], "clean": clean})
    return Tracing(pd.DataFrame(rows, columns=COLUMNS), details.assign(noised=[0.1, 0.3, 0.2] * 2))


def test_the_summary_is_the_average_indirect_effect() -> None:
    effects = {
        ("t1", "resid_post", 0): [0.3, 0.6, 0.0],
        ("t1", "resid_post", 1): [0.1, 0.1, 0.1],
        ("t2", "resid_post", 0): [-0.2, 0.0, 0.5],
        ("t1", "mlp_out", 0): [0.0, 0.0, 0.9],
    }
    twice = {place: 2 * each for place, each in effects.items()}
    table = made(twice, [0.9, 0.5, 0.4] * 2).summary()
    assert list(table.columns) == ["position", "site", "layer", "n", "effect", "low", "high"]
    found = table.set_index(["position", "site", "layer"])
    assert list(found.index) == list(effects)
    assert found["n"].to_list() == [6, 6, 6, 6]
    assert found["effect"].to_list() == pytest.approx([0.3, 0.1, 0.1, 0.3])
    vary = found.drop(index=("t1", "resid_post", 1))
    assert ((vary["low"] <= vary["effect"]) & (vary["effect"] <= vary["high"])).all()
    assert found.loc[("t1", "resid_post", 1), ["low", "high"]].isna().all(), "all are equal"


def test_the_total_effect_is_what_the_noise_takes() -> None:
    table = made({("t1", "mlp_out", 0): [0.0] * 6}, [0.9, 0.5, 0.4] * 2).total_effect()
    assert list(table.columns) == ["what", "n", "mean", "low", "high"]
    assert list(table["what"]) == ["clean", "noised", "total_effect"]
    assert table["n"].to_list() == [6, 6, 6]
    assert table["mean"].to_list() == pytest.approx([0.6, 0.2, 0.4])
    assert ((table["low"] < table["mean"]) & (table["mean"] < table["high"])).all()


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"positions": ("t1", "t3")}, "unknown position 't3': choose one of e1, t1, t2"),
    ({"sites": ("z",)}, "unknown site 'z': choose one of resid_post, attn_out, mlp_out"),
    ({"sites": ()}, "give a list of sites"),
    ({"noise": 0}, "noise must be above 0, not 0"),
    ({"noise": -1.0}, "noise must be above 0"),
    ({"draws": 0}, "draws must be 1 or more, not 0"),
    ({"window": -1}, "window must be 0 or more, not -1"),
]


@pytest.mark.parametrize(("settings", "message"), MISTAKES, ids=str)
def test_a_mistake_is_told(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        traced(chosen(SHORT), out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(QueryError, match="empty query set"):
        traced(chosen([]))


def test_shards_come_together(tmp_path: Path) -> None:
    ids = [*SHORT, "early-2", "second-line"]
    settings: dict[str, Any] = {"sites": ["attn_out"], "draws": 1}
    whole = traced(chosen(ids), **settings)
    for shard in ((2, 2), (1, 2)):
        traced(chosen(ids), out=tmp_path / "run", shard=shard, **settings)
    together = hs.load_result(tmp_path / "run")
    assert isinstance(together, Tracing)
    pd.testing.assert_frame_equal(together.frame, whole.frame)
    pd.testing.assert_frame_equal(together.details, whole.details)
    assert together.run["settings"]["noise"] == 3.0
    with pytest.raises(ResultError, match="its settings window is 2, not 1"):
        traced(chosen(ids), out=tmp_path / "run", window=1, **settings)
