"""Tests of project() on known states and beside raw hooks, and of what its result computes."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import loaded
from known import FACTS, N_LAYERS, PLACE, WIDTH, WORDS, known_model, known_queries
from plain import decoder_layers, first_of, writer
from torch import Tensor, nn
from transformers import PreTrainedModel

import hopscope as hs
from hopscope.engine.logit_lens import logit_lens
from hopscope.errors import QueryError, UsageError
from hopscope.experiments.two_hop.projection import SITES, TARGETS, Projection, project
from hopscope.models.language_model import LanguageModel
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import TwoHopQuery

COLUMNS = ["query", "position", "site", "target", "layer", "rank", "logprob"]
KEYS = ["query", "position", "site", "target", "layer"]


def chosen(*ids: str) -> QuerySet:
    return known_queries().filter(lambda query: query.id in ids)


def projected(queries: QuerySet, model: LanguageModel | None = None, **settings: Any) -> Projection:
    return project(model or known_model(), queries, progress=False, **settings)


def by_keys(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.set_index(KEYS).sort_index()


# What is read is what the rules of tests/known.py write: the answer in block 3, the bridge in
# block 5, by a token that has taken the bridge over: t1 (where the source stands) and t2 in
# block 2 if the bridge is named in block 1 (early), in block 4 if it is named in block 3 (late).

WRITES: dict[str, dict[int, tuple[str, float]]] = {
    "early-1": {3: ("Alba", 10.0), 5: ("Aland", 1.0)},
    "early-2": {3: ("Brig", 10 + 1 / 8), 5: ("Bland", 1 + 1 / 64)},
    "late-1": {5: ("Cland", 1 + 2 / 64)},
    "late-3": {5: ("Eland", 1 + 4 / 64)},
    "no-first": {},
    "no-second": {5: ("Iland", 1 + 8 / 64)},
}


def known_logits(query: str, site: str) -> list[dict[str, float]]:
    """The words that are not silent after each block, at t1 as at t2."""
    written = WRITES[query]
    if site == "attn_out":
        return [{} for _ in range(N_LAYERS)]
    if site == "mlp_out":
        return [dict([written[layer]] if layer in written else []) for layer in range(N_LAYERS)]
    return [
        {"Metro": 0.5, **dict(both for block, both in written.items() if block <= layer)}
        for layer in range(N_LAYERS)
    ]


def read(logits: Mapping[str, float], words: Sequence[str]) -> tuple[int, float]:
    """Rank and log-probability of the best of some words."""
    best = max(logits.get(word, 0.0) for word in words)
    total = sum(np.exp(logits.get(word, 0.0)) for word in WORDS)
    return sum(logits.get(word, 0.0) > best for word in WORDS), best - float(np.log(total))


def test_known_states_say_what_is_known() -> None:
    result = projected(chosen(*WRITES), positions=("t1", "t2", "e1"))
    names = {fact.id: (fact.bridge, fact.answer.split()[0]) for fact in FACTS}
    other = dict(zip(result.details["query"], result.details["other"], strict=True))
    said = dict(zip(result.details["query"], result.details["prediction"], strict=True))
    for query, written in WRITES.items():
        likeliest = max(written.values(), key=lambda both: both[1], default=("Metro", 0.5))
        assert said[query] == likeliest[0]
    assert len(result.frame) == len(WRITES) * 3 * 3 * 5 * N_LAYERS
    for row in result.frame.itertuples():
        words = {
            "e2": [names[row.query][0]],
            "e3": [names[row.query][1]],
            "prediction": [said[row.query]],
            "e2_other": [names[other[row.query]][0]],
            "e3_other": [names[other[row.query]][1]],
        }[row.target]
        rank, logprob = read(known_logits(row.query, row.site)[row.layer], words)
        assert row.rank == rank, row
        assert row.logprob == pytest.approx(logprob, abs=1e-4), row


class Murmur(nn.Module):
    """A final norm that adds a little of one word, so that silence is no tie."""

    def forward(self, hidden: Tensor) -> Tensor:
        added = torch.zeros(WIDTH)
        added[PLACE["says", "Metro"]] = 0.25
        return hidden + added


@cache
def readable_model() -> LanguageModel:
    """The known model, whose unembedding reads a bridge that is named or taken over, too.

    What it says stays the same: a bridge that is read so is fainter than an answer.
    """
    known = known_model()
    hf = copy.deepcopy(known.hf)
    hf.model.norm = Murmur()
    for fact in FACTS:
        for feature in ("names", "took"):
            hf.lm_head.weight[WORDS.index(fact.bridge), PLACE[feature, fact.id]] = 1.0
    return LanguageModel(hf, known.tokenizer, "readable")


NEVER = None
FIRST: dict[tuple[str, str, str, str], int | None] = {
    # The source names the bridge in block 1 or 3; t2 takes it over in the block behind that.
    **{("early-1", "t1", site, "e2"): 1 for site in ("mlp_out", "resid_post")},
    **{("late-1", "t1", site, "e2"): 3 for site in ("mlp_out", "resid_post")},
    ("early-1", "t2", "attn_out", "e2"): 2,
    ("late-1", "t2", "attn_out", "e2"): 4,
    ("early-1", "t2", "resid_post", "e2"): 2,
    ("late-1", "t2", "resid_post", "e2"): 4,
    # The answer is written by an MLP, in block 3, where the bridge is there; else the bridge is.
    ("early-1", "t2", "mlp_out", "e3"): 3,
    ("early-1", "t2", "mlp_out", "prediction"): 3,
    ("early-1", "t2", "resid_post", "prediction"): 3,
    ("late-1", "t2", "mlp_out", "e3"): NEVER,
    ("late-1", "t2", "mlp_out", "prediction"): 5,
    ("late-1", "t2", "resid_post", "prediction"): 4,
    ("early-1", "t2", "attn_out", "e3"): NEVER,
    ("early-1", "t2", "mlp_out", "e2_other"): NEVER,
    ("late-1", "t2", "resid_post", "e3_other"): NEVER,
}


def test_bridge_and_answer_are_resolved_in_the_known_blocks() -> None:
    result = projected(chosen("early-1", "late-1"), readable_model())
    found = result.resolved().set_index(["query", "position", "site", "target"])["first_layer"]
    for key, layer in FIRST.items():
        assert np.isnan(found[key]) if layer is NEVER else found[key] == layer, key
    for (query, position, site, target), layer in FIRST.items():
        first = result.first_layers(target, position, site)[query]
        assert np.isnan(first) if layer is NEVER else first == layer
    ranks = by_keys(result.frame)["rank"].loc["early-1", "t1", "resid_post", "e2"]
    assert ranks.tolist() == [1, 0, 0, 1, 1, 1]  # from block 3 on the answer is louder


def test_the_norm_is_applied_once() -> None:
    result = projected(chosen("early-1"), readable_model(), sites=("resid_post", "attn_out"))
    found = by_keys(result.frame)["logprob"].loc["early-1", "t2"]
    for site, layer, logits in (
        ("attn_out", 0, {"Metro": 0.25}),
        ("attn_out", 2, {"Metro": 0.25, "Aland": 1.0}),
        ("resid_post", 3, {"Metro": 0.75, "Aland": 1.0, "Alba": 10.0}),
        ("resid_post", 5, {"Metro": 0.75, "Aland": 3.0, "Alba": 10.0}),
    ):
        for target, word in (("e2", "Aland"), ("e3", "Alba")):
            assert found[site, target, layer] == pytest.approx(read(logits, [word])[1], abs=1e-4)


def test_few_shot_prompts_say_the_same() -> None:
    plain, few = (
        projected(queries, readable_model(), positions=("t2", "t1"))
        for queries in (chosen("early-1", "late-1"), chosen("early-1", "late-1").with_few_shot(2))
    )
    pd.testing.assert_frame_equal(few.frame, plain.frame)
    assert (few.details["t2"] > plain.details["t2"]).all()


FINAL_NORMS = ("model.norm", "transformer.ln_f", "gpt_neox.final_layer_norm")
FAMILIES = ("llama", "gemma2", "gemma3", "olmo2", "gpt2", "gpt-neox")
POSITIONS = ("t1", "t2", "e1")


def places() -> QuerySet:
    """Names with articles, aliases and capitals; bridges that share a first token."""
    labels = (
        ("the Eiffel Tower", "the French Republic", "Paris", ("city of Paris",)),
        ("Kyoto", "Japan", "Tokyo", ("the capital",)),
        ("Rio de Janeiro", "the French Republic", "Brasilia", ()),
        ("Bergen", "Norway", "Oslo", ()),
        ("Cayenne", "the French Antilles", "Fort-de-France", ()),
    )
    queries = tuple(
        TwoHopQuery(
            id=e1,
            e1_label=e1,
            e2_label=e2,
            e3_label=e3,
            e3_aliases=aliases,
            r1_template="The country where {} lies",
            r2_template="The capital of {}",
        )
        for e1, e2, e3, aliases in labels
    )
    return QuerySet(queries, "places")


def submodule(hf: PreTrainedModel, names: Sequence[str]) -> nn.Module:
    known = dict(hf.named_modules())
    return next(known[name] for name in names if name in known)


@torch.no_grad()
def plain_logits(hf: PreTrainedModel, ids: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
    """What each block's output says by raw hooks, (layer, token, word), and the model's own."""
    layers = decoder_layers(hf)
    found: dict[str, list[Tensor]] = {site: [] for site in SITES}
    with ExitStack() as stack:
        for number, block in enumerate(layers):
            read_out = {
                "resid_post": block,
                **{site: writer(hf, number, site) for site in ("attn_out", "mlp_out")},
            }
            for site, module in read_out.items():
                keep = found[site].append
                hook = module.register_forward_hook(lambda _, __, o, keep=keep: keep(first_of(o)))
                stack.callback(hook.remove)
        own = hf(input_ids=torch.tensor([list(ids)])).logits[0, -1]
    norm, head = submodule(hf, FINAL_NORMS), submodule(hf, ("lm_head", "embed_out"))
    logits = {site: head(norm(torch.cat(states))) for site, states in found.items()}
    cap = getattr(hf.config, "final_logit_softcapping", None)
    if cap is not None:
        logits = {site: cap * torch.tanh(each / cap) for site, each in logits.items()}
    return logits, own


class Plain:
    """The rows of one query, computed without hopscope."""

    def __init__(
        self, model: LanguageModel, text: str, query: TwoHopQuery, articles: bool = False
    ) -> None:
        self.tokenizer, self.query, self.articles = model.tokenizer, query, articles
        ids = self.ids(text)
        self.logits, self.own = plain_logits(model.hf, ids)
        source = text.rindex(query.e1_label) + len(query.e1_label)
        ends = {"e1": source, "t1": text.index(" is", source), "t2": len(text)}
        self.at = {name: len(self.ids(text[:end])) - 1 for name, end in ends.items()}

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def first_tokens(self, names: Sequence[str]) -> set[int]:
        """With and without a space, as it stands and in lower case; without an article."""
        plain = [name.removeprefix("the ").removeprefix("The ") for name in names]
        plain = list(names) if self.articles else plain
        cases = [each for name in plain for each in (name, name.lower())]
        spellings = [space + each for each in cases for space in ("", " ")]
        ids = {self.tokenizer(s, add_special_tokens=False)["input_ids"][0] for s in spellings}
        return {each for each in ids if self.tokenizer.decode([each]).strip()}

    def targets(self, other: TwoHopQuery | None) -> dict[str, set[int]]:
        query = self.query
        own = {name: self.first_tokens(query.names(name)) for name in ("e2", "e3")}  # type: ignore[arg-type]
        found = {**own, "prediction": {int(self.own.argmax())}}
        for name in () if other is None else ("e2", "e3"):
            tokens = self.first_tokens(other.names(name)) - own[name]  # type: ignore[union-attr,arg-type]
            found |= {f"{name}_other": tokens} if tokens else {}
        return found

    def rows(self, other: TwoHopQuery | None) -> list[dict[str, Any]]:
        found = []
        targets = self.targets(other)
        for site, position, (target, tokens) in itertools.product(
            SITES, POSITIONS, targets.items()
        ):
            for layer, states in enumerate(self.logits[site]):
                logits = states[self.at[position]]
                best = logits[sorted(tokens)].max()
                ranks = [int((logits > best + margin).sum()) for margin in (1e-4, -1e-4)]
                found.append(
                    {
                        "query": self.query.id,
                        "position": position,
                        "site": site,
                        "target": target,
                        "layer": layer,
                        "rank": range(ranks[0], ranks[1] + 1),
                        "logprob": float(best - torch.logsumexp(logits, -1)),
                    }
                )
        return found


@cache
def run_places(family: str, few_shot: int) -> tuple[QuerySet, Projection]:
    queries = replace(places()[:3] if few_shot else places(), few_shot=few_shot)
    queries = replace(queries, pool=places().queries)
    return queries, projected(queries, loaded(f"tiny-random-{family}"), positions=POSITIONS)


@pytest.mark.parametrize("few_shot", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_equals_raw_hooks(family: str, few_shot: int) -> None:
    model = loaded(f"tiny-random-{family}")
    queries, result = run_places(family, few_shot)
    others = dict(zip(result.details["query"], result.details["other"], strict=True))
    pool = {query.id: query for query in queries.pool}
    for prompt in queries.prompts():
        query, other = queries.by_id(prompt.query_id), pool[others[prompt.query_id]]
        assert not {*other.names("e2"), *other.names("e3")} & {*query.names("e2"), query.e3_label}
        shown = prompt.text[: prompt.few_shot].lower()
        assert bool(shown) == bool(few_shot)
        assert other.e2_label.lower() not in shown
        assert other.e3_label.lower() not in shown
    texts = {prompt.query_id: prompt.text for prompt in queries.prompts()}
    plains = [Plain(model, texts[query.id], query) for query in queries]
    rows = [
        row
        for query, plain in zip(queries, plains, strict=True)
        for row in plain.rows(pool[others[query.id]])
    ]
    expected = pd.DataFrame(rows)
    pd.testing.assert_frame_equal(result.frame[KEYS], expected[KEYS], check_dtype=False)
    np.testing.assert_allclose(result.frame["logprob"], expected["logprob"], rtol=0, atol=2e-4)
    for rank, ranks in zip(result.frame["rank"], expected["rank"], strict=True):
        assert rank in ranks
    for plain, details in zip(plains, result.details.itertuples(), strict=True):
        assert (details.t1, details.t2) == (plain.at["t1"], plain.at["t2"])
        assert details.prediction == model.decode([int(plain.own.argmax())])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_articles_can_stand_for_names(family: str) -> None:
    """Then "the" and " The" are first tokens of "the French Republic", as in the paper's code."""
    model, queries = loaded(f"tiny-random-{family}"), places()
    result = projected(queries, model, positions=POSITIONS, preset="hopping-too-late")
    assert result.run["settings"]["articles"] is True
    others = dict(zip(result.details["query"], result.details["other"], strict=True))
    rows = []
    for prompt in queries.prompts():
        query = queries.by_id(prompt.query_id)
        plain = Plain(model, prompt.text, query, articles=True)
        rows += plain.rows(queries.by_id(others[query.id]))
    expected = pd.DataFrame(rows)
    pd.testing.assert_frame_equal(result.frame[KEYS], expected[KEYS], check_dtype=False)
    np.testing.assert_allclose(result.frame["logprob"], expected["logprob"], rtol=0, atol=2e-4)
    usual = run_places(family, 0)[1].frame
    same = result.frame.merge(usual, on=KEYS)
    assert (same["rank_x"] < same["rank_y"]).any()


@pytest.mark.parametrize("few_shot", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_residual_stream_gives_the_models_own_logits(family: str, few_shot: int) -> None:
    model = loaded(f"tiny-random-{family}")
    queries, result = run_places(family, few_shot)
    last = by_keys(result.frame).xs(model.n_layers - 1, level="layer")
    for prompt in queries.prompts():
        own = model.hf(torch.tensor([model.encode(prompt.text).ids])).logits[0, -1]
        found = last.loc[prompt.query_id, "t2", "resid_post", "prediction"]
        assert found["rank"] == 0
        expected = float(torch.log_softmax(own, -1).max())
        assert found["logprob"] == pytest.approx(expected, abs=1e-4)


def test_the_comparison_is_not_idle() -> None:
    for family in FAMILIES:
        frame = run_places(family, 0)[1].frame
        assert frame["rank"].nunique() > 50, family
        spread = frame.groupby(["query", "position", "layer", "target"])["logprob"].std()
        assert (spread > 0.05).mean() > 0.8, family
    for few_shot in (0, 1):
        for family in FAMILIES:
            assert set(run_places(family, few_shot)[1].frame["target"]) == set(TARGETS)


def test_another_querys_name_is_no_chance_level_where_it_is_the_own() -> None:
    model = loaded("tiny-random-llama")
    tower, kyoto, rio, _, cayenne = places()
    # Another bridge of which the first token is that of the own one.
    result = projected(QuerySet((tower, cayenne), "same token"), model)
    assert list(result.details["other"]) == [cayenne.id, tower.id]
    assert set(result.frame["target"]) == {"e2", "e3", "prediction", "e3_other"}
    # The same bridge: no chance level at all, unless another query has one.
    result = projected(QuerySet((tower, rio), "same bridge"), model)
    assert result.details["other"].isna().all()
    assert set(result.frame["target"]) == {"e2", "e3", "prediction"}
    result = projected(QuerySet((tower, rio), "same bridge", pool=(tower, kyoto, rio)), model)
    assert list(result.details["other"]) == [kyoto.id] * 2
    assert set(result.frame["target"]) == set(TARGETS)


def test_the_lens_is_the_models_own_norm_and_unembedding() -> None:
    for family in ("gemma2", "gpt2"):
        model = loaded(f"tiny-random-{family}")
        lens = logit_lens(model)
        assert (lens.norm, lens.unembedding) == (model.final_norm, model.unembedding)
        assert lens.softcap == (6.0 if family == "gemma2" else None)


def test_the_frame_has_the_columns_of_the_design() -> None:
    result = projected(chosen("early-1", "late-2"))
    frame = result.frame
    assert list(frame.columns) == COLUMNS
    for name in ("query", "position", "site", "target"):
        assert pd.api.types.is_string_dtype(frame[name]), name
    for name in ("layer", "rank"):
        assert pd.api.types.is_integer_dtype(frame[name]), name
    assert pd.api.types.is_float_dtype(frame["logprob"])
    assert not frame.isna().to_numpy().any()
    assert list(frame.index) == list(range(len(frame)))
    both = ("early-1", "late-2"), ("t1", "t2")
    known = set(itertools.product(*both, SITES, TARGETS, range(N_LAYERS)))
    found = list(frame[KEYS].itertuples(index=False, name=None))
    assert len(found) == len(known)
    assert set(found) == known
    assert repr(result) == f"Projection(known, known, 2 queries, {len(frame)} rows)"


def test_details_have_one_row_a_query() -> None:
    details = projected(chosen("late-1", "late-2")).details
    assert list(details["query"]) == ["late-1", "late-2"]
    first = details.iloc[0].to_dict()
    assert first == {
        "query": "late-1",
        "prompt": "The capital of the country of Cedar is",
        "bridge": "Cland",
        "answer": "Crag",
        "bridge_tokens": "'Cland'",
        "answer_tokens": "'Crag'",
        "prediction": "Cland",
        "other": "late-2",
        "t1": 6,
        "t2": 7,
    }
    assert list(details["t2"]) == [7, 8]


@pytest.mark.parametrize(("positions", "sites"), [(["e1"], ["mlp_out"]), (["t2"], ["attn_out"])])
def test_positions_and_sites_can_be_chosen(positions: list[str], sites: list[str]) -> None:
    queries = chosen("early-1", "late-2")
    few = projected(queries, readable_model(), positions=positions, sites=sites).frame
    every = projected(queries, readable_model(), positions=POSITIONS).frame
    same = every[every["position"].isin(positions) & every["site"].isin(sites)]
    pd.testing.assert_frame_equal(few, same.reset_index(drop=True))


def test_a_query_without_a_donor_has_no_chance_level(tmp_path: Path) -> None:
    queries = QuerySet((chosen("early-1")[0],), "alone")
    result = projected(queries)
    assert set(result.frame["target"]) == {"e2", "e3", "prediction"}
    assert result.details["other"].isna().all()
    read_again = hs.load_result(result.save(tmp_path / "run"))
    pd.testing.assert_frame_equal(read_again.frame, result.frame)


def test_chance_levels_follow_the_seed() -> None:
    queries = chosen(*WRITES)
    first, again, other = (projected(queries, sites=["mlp_out"], seed=seed) for seed in (0, 0, 3))
    pd.testing.assert_frame_equal(first.frame, again.frame)
    own = ~first.frame["target"].str.endswith("_other")
    pd.testing.assert_frame_equal(first.frame[own], other.frame[own])
    assert list(first.details["other"]) != list(other.details["other"])


def test_a_run_goes_on_and_is_read(tmp_path: Path) -> None:
    queries, out = places_like(18), tmp_path / "run"
    settings: dict[str, Any] = {"model": loaded("tiny-random-llama"), "positions": ["t2"]}
    whole = projected(queries, **settings)
    for shard in ((2, 2), (1, 2)):
        result = projected(queries, out=out, shard=shard, **settings)
    pd.testing.assert_frame_equal(result.frame, whole.frame)
    parts = sorted(out.glob("frame-*.parquet"))
    assert len(parts) == 2
    parts[0].unlink()
    again = projected(queries, out=out, **settings)
    pd.testing.assert_frame_equal(again.frame, whole.frame)
    pd.testing.assert_frame_equal(again.details, whole.details)
    read_again = hs.load_result(out)
    assert isinstance(read_again, Projection)
    pd.testing.assert_frame_equal(read_again.resolved(), whole.resolved())


def places_like(n: int) -> QuerySet:
    """Queries of several lengths, in no order of length."""
    queries = tuple(
        replace(places()[index % 3], id=f"q{index:02}", e3_label=f"City {index}", e3_aliases=())
        for index in range(n)
    )
    return QuerySet(queries, "like places")


RANKS: dict[tuple[str, str, str, str], Sequence[int]] = {  # at the layers 0 to 3
    ("a", "t2", "mlp_out", "e3"): (7, 0, 3, 0),
    ("b", "t2", "mlp_out", "e3"): (9, 9, 2, 1),
    ("c", "t2", "mlp_out", "e3"): (9, 9, 9, 0),
    ("a", "t2", "attn_out", "e2"): (0, 1, 1, 1),
    ("b", "t2", "attn_out", "e2"): (5, 5, 5, 5),
    ("a", "t1", "mlp_out", "e3"): (2, 5, 5, 5),
}


def made() -> Projection:
    rows = [
        (*key, layer, rank, -1.0 - rank - layer)
        for key, ranks in RANKS.items()
        for layer, rank in enumerate(ranks)
    ]
    details = pd.DataFrame({"query": ["a", "b", "c"]})
    return Projection(pd.DataFrame(rows, columns=COLUMNS), details, {"kind": "projection"})


def first_layers(result: Projection, rank: int) -> dict[tuple[str, ...], float | None]:
    table = result.resolved(rank)
    assert list(table.columns) == ["query", "position", "site", "target", "first_layer"]
    return {
        tuple(row[:4]): None if np.isnan(row[4]) else row[4]
        for row in table.itertuples(index=False, name=None)
    }


def test_resolved_is_the_first_layer_of_a_low_rank() -> None:
    assert list(first_layers(made(), 0).values()) == [1, None, 3, 0, None, None]
    assert list(first_layers(made(), 2).values()) == [1, 2, 3, 0, None, 0]
    assert list(first_layers(made(), 0)) == list(RANKS)


def test_summary_by_hand() -> None:
    table = made().summary()
    names = ["position", "site", "target", "n", "share", "low", "high", "mean_first_layer"]
    assert list(table.columns) == [*names, "mean_layer"]
    found = table.set_index(["position", "site", "target"])
    answers, bridges = found.loc[("t2", "mlp_out", "e3")], found.loc[("t2", "attn_out", "e2")]
    assert (answers["n"], answers["mean_first_layer"]) == (3, 2.0)
    assert answers["share"] == pytest.approx(2 / 3)
    assert answers["low"] <= 2 / 3 <= answers["high"]
    assert answers["mean_layer"] == pytest.approx((1 + 3 + 3) / 3)  # of a at 1 and 3, of c at 3
    assert bridges["mean_layer"] == 0.0
    assert (bridges["n"], bridges["share"], bridges["mean_first_layer"]) == (2, 0.5, 0.0)
    never = found.loc[("t1", "mlp_out", "e3")]
    assert (never["n"], never["share"]) == (1, 0.0)
    assert np.isnan(never["mean_first_layer"])
    assert np.isnan(never["mean_layer"])
    looser = made().summary(rank=2).set_index(["position", "site", "target"])
    assert looser.loc[("t2", "mlp_out", "e3"), "share"] == 1.0
    assert looser.loc[("t2", "mlp_out", "e3"), "mean_first_layer"] == 2.0


def test_by_layer_by_hand() -> None:
    table = made().by_layer(rank=1)
    keys = ["position", "site", "target", "layer"]
    assert list(table.columns) == [*keys, "n", "share", "low", "high", "logprob"]
    found = table.set_index(keys).sort_index().loc[("t2", "mlp_out", "e3")]
    assert list(found["n"]) == [3, 3, 3, 3]
    assert list(found["share"]) == pytest.approx([0, 1 / 3, 0, 1])
    ranks = np.array([RANKS[query, "t2", "mlp_out", "e3"] for query in "abc"])
    assert list(found["logprob"]) == pytest.approx(list(-1 - ranks.mean(0) - np.arange(4)))
    strictly = made().by_layer().set_index(keys).sort_index().loc[("t2", "mlp_out", "e3")]
    assert list(strictly["share"]) == pytest.approx([0, 1 / 3, 0, 2 / 3])


def test_first_layers_by_hand() -> None:
    result = made()
    found = result.first_layers("e3")
    assert list(found.index) == ["a", "b", "c"]
    assert found[["a", "c"]].tolist() == [1, 3]
    assert np.isnan(found["b"])
    assert result.first_layers("e3", rank=2).tolist() == [1, 2, 3]
    assert result.first_layers("e2", site="attn_out")["a"] == 0
    assert result.first_layers("e3", position="t1", rank=2).to_dict() == {"a": 0}


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"positions": ("t1", "t3")}, "unknown position 't3': choose one of t1, t2, e1"),
    ({"positions": ()}, "give a list of positions"),
    ({"sites": ("mlp_out", "z")}, "unknown site 'z': choose one of attn_out, mlp_out, resid_post"),
]


@pytest.mark.parametrize(("settings", "message"), MISTAKES, ids=str)
def test_a_mistake_is_told(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        projected(chosen("early-1"), out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(QueryError, match=r"empty query set.*graded\.summary"):
        projected(chosen())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("e1",), "no target 'e1': the run has e3, e2"),
        (("e3", "e1"), "no position 'e1': the run has t2, t1"),
        (("e3", "t2", "resid_post"), "no site 'resid_post': the run has mlp_out"),
    ],
)
def test_an_unknown_target_position_or_site_is_told(asked: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        made().first_layers(*asked)
