"""Tests of describe() on known states and beside plain hooks, and of what its result computes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import loaded
from known import CONTEXT, N_LAYERS, known_model, known_queries
from plain import patched, plain_output, states
from torch import Tensor
from transformers import GenerationConfig
from transformers import TemperatureLogitsWarper as Temperature
from transformers import TopKLogitsWarper as TopK
from transformers import TopPLogitsWarper as TopP

import hopscope as hs
from hopscope.engine.edits import Patch
from hopscope.errors import QueryError, UsageError
from hopscope.experiments.randomness import generator_for
from hopscope.experiments.two_hop.description import (
    PROMPTS,
    Description,
    describe,
)
from hopscope.models.language_model import LanguageModel
from hopscope.queries.answers import matches
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import TwoHopQuery

Cell = tuple[int, int]
ENTITIES, CONTROLS = ("e1", "e2", "e3"), ("e2_other", "e3_other")
COLUMNS = [
    *("query", "prompt", "position", "sample", "source_layer", "target_layer"),
    *("e1", "e2", "e3", "e2_other", "e3_other", "generation"),
]
OWN = {"own": "The country of"}
"""The placeholder is "of"; what comes before it knows no bridge."""
ALL_CELLS = set(itertools.product(range(N_LAYERS), repeat=2))


def chosen(*ids: str) -> QuerySet:
    return known_queries().filter(lambda query: query.id in ids)


def described(queries: QuerySet, **settings: Any) -> Description:
    given = {"prompts": OWN, "max_new_tokens": 2, "progress": False, **settings}
    return describe(known_model(), queries, **given)


def rows(result: Description, query: str, position: str, prompt: str = "own") -> pd.DataFrame:
    frame = result.frame
    here = (frame["query"] == query) & (frame["position"] == position)
    return frame[here & (frame["prompt"] == prompt)]


def naming(
    result: Description, entity: str, query: str, position: str, prompt: str = "own"
) -> set[Cell]:
    """The cells (source layer, target layer) whose text names an entity."""
    there = rows(result, query, position, prompt)
    there = there[there[entity].astype(bool)]
    return set(zip(there["source_layer"], there["target_layer"], strict=True))


# The state goes on from the block behind the target layer: what a later block of tests/known.py
# would have done is done there, if the block has not run yet. The answer is named if the state
# holds it, or a bridge that is taken over by block 2 and answered in block 3; the bridge, if it
# is taken over in block 4, or held, and comes too late for block 3.

NAMED: dict[tuple[str, str], dict[str, set[Cell]]] = {
    # The source's token names the bridge in block 1, takes it over in 2, answers it in 3.
    ("early-1", "t1"): {
        "e3": {(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)}
        | {(a, b) for a, b in ALL_CELLS if a >= 3},
        "e2": {(1, 2), (1, 3), (2, 3), (2, 4)},
    },
    # The last token has the bridge from block 2 on, the answer from 3 on; before that nothing.
    ("early-1", "t2"): {
        "e3": {(2, 0), (2, 1), (2, 2)} | {(a, b) for a, b in ALL_CELLS if a >= 3},
        "e2": {(2, 3), (2, 4)},
    },
    # The source's token names the bridge in block 3, takes it over in 4, says it in 5.
    ("late-1", "t1"): {
        "e3": {(3, 0), (3, 1)} | {(a, b) for a in (4, 5) for b in (0, 1, 2)},
        "e2": {(a, b) for a in (0, 1, 2) for b in (0, 1, 2)}
        | {(3, 2), (3, 3), (4, 3), (4, 4), (5, 3), (5, 4), (5, 5)},
    },
    ("late-1", "t2"): {
        "e3": {(a, b) for a in (4, 5) for b in (0, 1, 2)},
        "e2": {(4, 3), (4, 4), (5, 3), (5, 4), (5, 5)},
    },
}


@pytest.fixture(scope="module")
def known() -> Description:
    return described(chosen("early-1", "late-1"))


@pytest.mark.parametrize(("query", "position"), NAMED)
def test_states_are_described_in_the_known_cells(
    known: Description, query: str, position: str
) -> None:
    for entity in ("e2", "e3"):
        assert naming(known, entity, query, position) == NAMED[query, position][entity]
    for entity in ("e1", "e2_other", "e3_other"):
        assert naming(known, entity, query, position) == set()
    texts = rows(known, query, position).set_index(["source_layer", "target_layer"])["generation"]
    for cell, text in texts.items():
        names = {"early-1": ("Aland", "Alba"), "late-1": ("Cland", "Crag")}[query]
        there = [cell in NAMED[query, position][entity] for entity in ("e2", "e3")]
        assert str(text).split() == [names[there.index(True)] if any(there) else "Metro", "."]


def test_known_shares_and_first_layers(known: Description) -> None:
    for (query, position), named in NAMED.items():
        for entity, cells in named.items():
            assert known.first_layers(entity, position)[query] == min(a for a, _ in cells)
    table = known.described().set_index(["prompt", "position", "entity"])
    assert table.loc[("own", "t1", "e2"), "mean_first_layer"] == (1 + 0) / 2
    assert table.loc[("own", "t2", "e3"), "mean_first_layer"] == (2 + 4) / 2
    assert table.loc[("own", "t1", "e3"), "share"] == 1.0
    assert table.loc[("own", "t1", "e3_other"), "share"] == 0.0
    share = known.heatmap("e2", "t1")
    for a, b in ALL_CELLS:
        hits = [(a, b) in NAMED[query, "t1"]["e2"] for query in ("early-1", "late-1")]
        assert share.loc[b, a] == np.mean(hits)


def test_another_querys_bridge_in_the_prompt_is_a_chance_level() -> None:
    """t2 has nothing to say before block 2, and takes over what the target prompt names."""
    leaky = {"own": "The country of", "leaky": "Bland of"}
    result = described(chosen("early-1", "early-2"), prompts=leaky, positions=["t2"])
    early = {(a, b) for a, b in ALL_CELLS if a < 2}
    for query, bridge, answer in (
        ("early-1", "e2_other", "e3_other"),
        ("early-2", "e2", "e3"),  # its own bridge
    ):
        taken = naming(result, bridge, query, "t2", "leaky")
        answered = naming(result, answer, query, "t2", "leaky")
        assert taken & early == {(a, b) for a, b in early if b in (2, 3)}
        assert answered & early == {(a, b) for a, b in early if b in (0, 1)}
        for entity in ("e2", "e3", *CONTROLS):
            assert not naming(result, entity, query, "t2") & early
    above = result.above_chance().set_index(["prompt", "position", "entity"])["difference"]
    assert above["own", "t2", "e2"] == 1.0
    assert above["leaky", "t2", "e2"] == 0.5  # of early-1 both are named


def test_e1_is_the_end_of_the_source() -> None:
    result = described(chosen("early-2"), positions=["t1", "e1"])
    one, other = (rows(result, "early-2", position) for position in ("t1", "e1"))
    assert list(one["generation"]) == list(other["generation"])
    assert list(result.details["token"]) == ["Birch", "Birch"]


def test_few_shot_states_are_the_same(known: Description) -> None:
    few = described(chosen("early-1", "late-1").with_few_shot(2))
    pd.testing.assert_frame_equal(few.frame, known.frame)


def test_layers_can_be_chosen(known: Description) -> None:
    few = described(chosen("early-1", "late-1"), source_layers=[3, 1, 3], target_layers=[4, 0])
    cells = list(zip(few.frame["source_layer"], few.frame["target_layer"], strict=True))
    assert cells == [(3, 4), (3, 0), (1, 4), (1, 0)] * 4
    keys = ["query", "position", "source_layer", "target_layer"]
    both = few.frame.merge(known.frame, on=keys, suffixes=("", "_all"))
    assert len(both) == len(cells)
    assert list(both["generation"]) == list(both["generation_all"])


def test_substring_counts_what_word_does_not() -> None:
    for match in ("word", "substring"):
        result = described(chosen("longer"), match=match, source_layers=[4], target_layers=[0])
        assert set(result.frame["generation"]) == {"Lundby ."}
        assert set(result.frame["e3"]) == {match == "substring"}


def test_the_frame_has_the_columns_of_the_design(known: Description) -> None:
    frame = known.frame
    assert list(frame.columns) == COLUMNS
    for name in ("query", "prompt", "position", "generation"):
        assert pd.api.types.is_string_dtype(frame[name]), name
    for name in ("sample", "source_layer", "target_layer"):
        assert pd.api.types.is_integer_dtype(frame[name]), name
    for name in ENTITIES:
        assert frame[name].dtype == bool, name
    for name in CONTROLS:
        assert set(frame[name]) <= {True, False}, name
    assert set(frame["sample"]) == {0}
    assert list(frame.index) == list(range(len(frame)))
    keys = ["query", "position", "source_layer", "target_layer"]
    found = list(frame[keys].itertuples(index=False, name=None))
    layers = range(N_LAYERS), range(N_LAYERS)
    assert found == list(itertools.product(("early-1", "late-1"), ("t1", "t2"), *layers))
    assert repr(known) == "Description(known, known, 2 queries, 144 rows)"


def test_details_have_one_row_a_query_and_position(known: Description) -> None:
    assert list(known.details["position"]) == ["t1", "t2"] * 2
    assert known.details.iloc[2].to_dict() == {
        "query": "late-1",
        "position": "t1",
        "question": "The capital of the country of Cedar is",
        "token": "Cedar",
        "source": "Cedar",
        "bridge": "Cland",
        "answer": "Crag",
        "other": "early-1",
    }
    assert known.run["settings"]["prompts"] == OWN


def test_the_prompts_of_the_papers() -> None:
    result = describe(
        loaded("tiny-random-llama"),
        places()[:1],
        prompts=["identity", "description"],
        source_layers=[1],
        target_layers=[0],
        max_new_tokens=1,
        progress=False,
    )
    assert list(result.frame["prompt"]) == ["identity"] * 2 + ["description"] * 2
    assert result.run["settings"]["prompts"] == {
        name: PROMPTS[name] for name in ("identity", "description")
    }
    assert PROMPTS["description"].endswith(", x")


SOURCES, TARGETS, N_TOKENS = (3, 0), (0, 3), 2
BORDER = 1e-5
POSITIONS = ("t1", "t2")
TWO_PROMPTS = {"short": "Kyoto: city, x", "long": "The capital of Italy is Rome, that of Japan: ?"}


def places() -> QuerySet:
    sources = ["Kyoto", "the Eiffel Tower", "Rio de Janeiro", "Berlin"]
    queries = tuple(
        TwoHopQuery(
            id=source,
            e1_label=source,
            e2_label=("a", "to", "London", "France")[number],
            e2_aliases=(("in", "er", "of", "the")[number],),
            e3_label=("Tokyo", "Paris", "Brasilia", "Bonn")[number],
            r1_template="The country where {} lies",
            r2_template="The capital of {}",
        )
        for number, source in enumerate(sources)
    )
    return QuerySet(queries, "places")


def describe_places(model: LanguageModel, queries: QuerySet, **settings: Any) -> Description:
    given = {"source_layers": SOURCES, "target_layers": TARGETS, "max_new_tokens": N_TOKENS}
    return describe(
        model,
        queries,
        POSITIONS,
        TWO_PROMPTS,
        match="substring",
        progress=False,
        **given,
        **settings,
    )


class Plain:
    """The states of each query and position, taken and described without hopscope's engine."""

    def __init__(self, model: LanguageModel, queries: QuerySet) -> None:
        self.model, self.hf, self.tokenizer = model, model.hf, model.tokenizer
        self.states: dict[tuple[str, str], Tensor] = {}
        for query, prompt in zip(queries, queries.prompts(), strict=True):
            found = states(self.hf, self.ids(prompt.text))
            source = prompt.text.rindex(query.e1_label) + len(query.e1_label)
            ends = {"t1": prompt.text.index(" is", source), "t2": len(prompt.text)}
            for position, end in ends.items():
                at = len(self.ids(prompt.text[:end])) - 1
                self.states[query.id, position] = found[:, at]

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def greedy(self, text: str, patch: Patch) -> str:
        found = plain_output(self.hf, self.ids(text), [patch], N_TOKENS, self.model.end_tokens)
        return self.decoded(found.tokens)

    @torch.no_grad()
    def drawn(
        self, text: str, patch: Patch, draws: Sequence[float], warpers: Sequence[Any] = ()
    ) -> str | None:
        """Tokens drawn one by one, each from a hooked forward over all that came before.

        None if a number lies so near to the border of two tokens that rounding decides.
        """
        ids, tokens = self.ids(text), list[int]()
        for draw in draws:
            with patched(self.hf, [patch], len(ids)):
                logits = self.hf(input_ids=torch.tensor([[*ids, *tokens]])).logits[0, -1]
            for warper in warpers:
                logits = warper(None, logits[None])[0]
            sums = torch.softmax(logits, -1).cumsum(-1)
            token = int((sums <= draw).sum())
            if float((sums - draw).abs().min()) < BORDER:
                return None
            if token in self.model.end_tokens:
                break
            tokens.append(token)
        return self.decoded(tokens)

    def decoded(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def patch(self, query: str, position: str, text: str, a: int, b: int) -> Patch:
        return Patch(b, len(self.ids(text)) - 1, self.states[query, position][a])


@cache
def run_places(family: str, few_shot: int, samples: int) -> tuple[QuerySet, Description]:
    queries = places()[:2].with_few_shot(few_shot)
    return queries, describe_places(loaded(f"tiny-random-{family}"), queries, samples=samples)


CASES = [("llama", 0), ("mistral", 1), ("gemma3", 0), ("gpt2", 1)]


@pytest.mark.parametrize(("family", "few_shot"), CASES)
def test_every_text_equals_a_plain_hooked_generate(family: str, few_shot: int) -> None:
    queries, result = run_places(family, few_shot, 0)
    plain, found = Plain(loaded(f"tiny-random-{family}"), queries), []
    others = dict(zip(result.details["query"], result.details["other"], strict=True))
    pool = {query.id: query for query in queries.pool}
    for (name, text), query, position, a, b in itertools.product(
        TWO_PROMPTS.items(), queries, POSITIONS, SOURCES, TARGETS
    ):
        said = plain.greedy(text, plain.patch(query.id, position, text, a, b))
        other = pool[others[query.id]]
        names = [query.names(entity) for entity in ("e1", "e2", "e3")]  # type: ignore[arg-type]
        names += [other.names("e2"), other.names("e3")]
        verdicts = [matches(said, each, "substring") for each in names]
        found.append((query.id, name, position, 0, a, b, *verdicts, said))
    expected = pd.DataFrame(found, columns=COLUMNS)
    pd.testing.assert_frame_equal(result.frame, expected, check_dtype=False)


@pytest.mark.parametrize("few_shot", [0, 1])
def test_the_other_query_comes_from_the_pool_and_is_not_told(few_shot: int) -> None:
    found = set()
    for seed in range(6):
        queries = places()[:2].with_few_shot(few_shot, seed)
        result = describe_places(loaded("tiny-random-llama"), queries, seed=seed)
        pool = {query.id: query for query in queries.pool}
        for row in result.details.itertuples():
            query, other = queries.by_id(row.query), pool[row.other]
            assert other.id != query.id
            for entity in ("e2", "e3"):
                assert not set(other.names(entity)) & {*query.names("e2"), *query.names("e3")}
            prompt = next(each for each in queries.prompts() if each.query_id == query.id)
            shown = prompt.text[: prompt.few_shot].lower()
            assert bool(shown) == bool(few_shot)
            assert other.e2_label.lower() not in shown
            assert other.e3_label.lower() not in shown
            found.add(other.id)
    assert found >= {"Rio de Janeiro", "Berlin"}  # which are not asked


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_samples_are_drawn_from_the_models_distribution(family: str) -> None:
    """Inverse transform sampling with numbers that the seed, prompt, query and position decide."""
    queries, result = run_places(family, 0, 2)
    plain, texts = Plain(loaded(f"tiny-random-{family}"), queries), list[str | None]()
    keys = ["query", "prompt", "position", "sample", "source_layer", "target_layer"]
    expected = []
    for (name, text), query, position in itertools.product(TWO_PROMPTS.items(), queries, POSITIONS):
        cells = list(itertools.product((0, 1), SOURCES, TARGETS))
        generator = generator_for(0, name, query.id, position)
        draws = torch.rand(len(cells), N_TOKENS, generator=generator)
        for (sample, a, b), numbers in zip(cells, draws.tolist(), strict=True):
            expected.append((query.id, name, position, sample, a, b))
            texts.append(plain.drawn(text, plain.patch(query.id, position, text, a, b), numbers))
    assert list(result.frame[keys].itertuples(index=False, name=None)) == expected
    clear = [text is not None for text in texts]
    assert np.mean(clear) > 0.8
    assert list(result.frame["generation"][clear]) == [text for text in texts if text is not None]
    assert len(set(texts)) > len(texts) // 2


@pytest.mark.parametrize(
    ("told", "warpers"),
    [
        ({"temperature": 0.6, "top_p": 0.9}, [Temperature(0.6), TopK(50), TopP(0.9)]),
        ({"top_k": 3}, [TopK(3)]),
        ({"temperature": 1.5, "top_k": 0, "top_p": 0.5}, [Temperature(1.5), TopP(0.5)]),
        ({}, [TopK(50)]),
    ],
)
def test_samples_are_drawn_as_the_checkpoint_says(
    told: dict[str, float], warpers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers draws by itself: in its order, and of 50 tokens where nothing is said."""
    model, queries = loaded("tiny-random-llama"), places()[:2]
    monkeypatch.setattr(model.hf, "generation_config", GenerationConfig(**told))
    result = describe_places(model, queries, samples=2, sampling="checkpoint")
    sampling = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, **told}
    assert result.run["settings"]["sampling"] == sampling
    plain, texts = Plain(model, queries), list[str | None]()
    for (name, text), query, position in itertools.product(TWO_PROMPTS.items(), queries, POSITIONS):
        cells = list(itertools.product((0, 1), SOURCES, TARGETS))
        generator = generator_for(0, name, query.id, position)
        draws = torch.rand(len(cells), N_TOKENS, generator=generator)
        for (_, a, b), numbers in zip(cells, draws.tolist(), strict=True):
            patch = plain.patch(query.id, position, text, a, b)
            texts.append(plain.drawn(text, patch, numbers, warpers))
    clear = [text is not None for text in texts]
    assert np.mean(clear) > 0.8
    assert list(result.frame["generation"][clear]) == [text for text in texts if text is not None]
    other = describe_places(model, queries, samples=2).frame
    assert (other["generation"] != result.frame["generation"]).any()


SAID = {
    ": Aland is a": "e2",
    "x: Alba, the": "e3",
    ": Alba. It": "e3",
    ": Alba: a": "e3",
    "alba: what": "e3",
    "Alba: what, : Aland, ": "e2",
    ": Aland, : Arbor. ": "e1",
    ": Alban": None,
    ": Alba": None,
    "Alba is Aland": None,
    ":Alba, ": None,
}
"""What a text is a description of, by the rule of the paper's code, where e1 is Arbor."""


def test_delimited_names_count_for_one_entity(monkeypatch: pytest.MonkeyPatch) -> None:
    queries = chosen("early-1", "early-2")
    settings: dict[str, Any] = {"positions": ["t2"], "match": "substring", "max_new_tokens": 1}
    layers = {"source_layers": [0], "target_layers": [0]}
    for text, entity in SAID.items():
        monkeypatch.setattr(type(known_model()), "decode", lambda *_, said=text: said)
        result = described(queries, naming="delimited", **settings, **layers)
        row = result.frame.iloc[0]
        assert {each: bool(row[each]) for each in ENTITIES} == {e: e == entity for e in ENTITIES}
        other = result.frame.iloc[1]  # whose control early-1 is, but for e1
        theirs = {": Aland, : Arbor. ": "e2"}.get(text, entity)
        assert {each: bool(other[f"{each}_other"]) for each in ("e2", "e3")} == {
            each: each == theirs for each in ("e2", "e3")
        }
        assert not any(other[each] for each in ENTITIES)
    loose = described(queries, **settings, **layers)  # of the last text, by substring alone
    assert loose.frame["e3"].tolist() == [True, False]


def test_delimited_names_are_no_words() -> None:
    with pytest.raises(UsageError, match="is a rule of substrings: give match='substring'"):
        described(chosen("early-1"), naming="delimited")


def test_the_papers_setting() -> None:
    result = describe(
        loaded("tiny-random-llama"),
        places()[:1].with_few_shot(1),
        preset="hopping-too-late",
        source_layers=[1],
        target_layers=[0],
        progress=False,
    )
    settings = result.run["settings"]
    assert settings["prompts"] == {"sentences": PROMPTS["sentences"]}
    assert PROMPTS["sentences"].startswith("Syria: Syria is a country in the Middle East, Leonardo")
    assert (settings["samples"], settings["naming"]) == (3, "delimited")
    assert settings["sampling"]["top_k"] == 50
    assert set(result.frame["sample"]) == {0, 1, 2}
    assert result.run["queries"]["few_shot"] == 0


def test_the_comparison_is_not_idle() -> None:
    frames = [run_places(family, few_shot, 0)[1].frame for family, few_shot in CASES]
    for (family, _), frame in zip(CASES, frames, strict=True):
        assert frame["generation"].nunique() > 10, family
    together = pd.concat(frames)
    for entity in ("e2", "e2_other"):
        assert 0 < together[entity].astype(bool).mean() < 0.9, entity


def test_the_same_seed_draws_the_same_texts() -> None:
    model, queries = loaded("tiny-random-llama"), places()[:2]
    first = run_places("llama", 0, 2)[1].frame
    again, other = (describe_places(model, queries, samples=2, seed=seed).frame for seed in (0, 1))
    pd.testing.assert_frame_equal(again, first)
    assert (other["generation"] != first["generation"]).mean() > 0.5
    samples = [first[first["sample"] == sample]["generation"].tolist() for sample in (0, 1)]
    assert samples[0] != samples[1]


def test_texts_do_not_depend_on_which_queries_share_a_part() -> None:
    queries, keys = chosen("early-1", "late-1", "no-first"), COLUMNS[:6]
    settings: dict[str, Any] = {"samples": 2, "source_layers": [0, 5], "target_layers": [3]}
    whole, turned, last = (
        described(asked, max_memory=memory, **settings).frame[[*keys, "generation"]]
        for asked, memory in (
            (queries, None),
            (QuerySet(queries.queries[::-1], "turned"), 1),
            (queries[2:], 300_000),
        )
    )
    assert whole["generation"].nunique() > len(whole) // 4
    assert len(turned) == len(whole) == 3 * len(last)
    for other in (turned, last):
        both = other.merge(whole, on=keys, suffixes=("", "_whole"))
        assert len(both) == len(other)
        assert list(both["generation"]) == list(both["generation_whole"])


def test_greedy_texts_do_not_depend_on_the_seed(known: Description) -> None:
    other = described(chosen("early-1", "late-1"), seed=5)
    assert list(other.frame["generation"]) == list(known.frame["generation"])


def test_a_run_goes_on_and_is_read(tmp_path: Path) -> None:
    queries, out = chosen("early-1", "late-1", "early-2"), tmp_path / "run"
    settings: dict[str, Any] = {"source_layers": [1, 4], "target_layers": [0], "samples": 2}
    whole = described(queries, **settings)
    for shard in ((2, 2), (1, 2)):
        result = described(queries, out=out, shard=shard, **settings)
    pd.testing.assert_frame_equal(result.frame, whole.frame)
    parts = sorted(out.glob("frame-*.parquet"))
    assert len(parts) == 2
    parts[0].unlink()
    again = described(queries, out=out, **settings)
    pd.testing.assert_frame_equal(again.frame, whole.frame)
    pd.testing.assert_frame_equal(again.details, whole.details)
    read = hs.load_result(out)
    assert isinstance(read, Description)
    pd.testing.assert_frame_equal(read.described(), whole.described())


def test_a_query_without_a_donor_has_no_chance_level(tmp_path: Path) -> None:
    alone = QuerySet((chosen("early-1")[0],), "alone")
    result = described(alone, source_layers=[3], target_layers=[0])
    assert result.frame[list(CONTROLS)].isna().all(axis=None)
    assert result.frame["e3"].all()
    assert result.details["other"].isna().all()
    read = hs.load_result(result.save(tmp_path / "run"))
    assert isinstance(read, Description)
    for each in (result, read):
        assert set(each.described()["entity"]) == {"e1", "e2", "e3"}
        assert each.above_chance().empty
        assert each.shares()[["e3", "other"]].to_numpy().tolist() == [[1.0, 0.0]] * 2


def made() -> Description:
    """Two prompts, three queries; `c` has no other query, and one prompt only."""
    named: dict[tuple[str, str, str], dict[Cell, str]] = {
        ("a", "x", "t1"): {(0, 0): "", (0, 1): "e1", (1, 0): "e2 e3", (1, 1): "e2 e2_other"},
        ("b", "x", "t1"): {(0, 0): "e2", (0, 1): "", (1, 0): "", (1, 1): "e2_other"},
        ("c", "x", "t1"): {(0, 0): "", (0, 1): "e3", (1, 0): "", (1, 1): ""},
        ("a", "x", "t2"): {(0, 0): "", (0, 1): "", (1, 0): "", (1, 1): ""},
        ("a", "y", "t1"): {(0, 0): "e3_other", (0, 1): "e3", (1, 0): "", (1, 1): ""},
    }
    found = []
    for (query, prompt, position), cells in named.items():
        for (a, b), names in cells.items():
            verdicts = [entity in names.split() for entity in (*ENTITIES, *CONTROLS)]
            if query == "c":
                verdicts = [*verdicts[:3], None, None]  # type: ignore[list-item]
            found.append((query, prompt, position, 0, a, b, *verdicts, names))
    frame = pd.DataFrame(found, columns=COLUMNS)
    return Description(frame, pd.DataFrame({"query": ["a", "b", "c"]}), {"kind": "description"})


def test_described_by_hand() -> None:
    table = made().described()
    keys = ["prompt", "position", "entity"]
    assert list(table.columns) == [*keys, "n", "share", "low", "high", "mean_first_layer"]
    found = table.set_index(keys)
    expected = {
        ("x", "t1", "e1"): (3, 1 / 3, 0.0),
        ("x", "t1", "e2"): (3, 2 / 3, 0.5),
        ("x", "t1", "e3"): (3, 2 / 3, 0.5),
        ("x", "t1", "e2_other"): (2, 1.0, 1.0),
        ("x", "t1", "e3_other"): (2, 0.0, None),
        ("y", "t1", "e3"): (1, 1.0, 0.0),
        ("y", "t1", "e2"): (1, 0.0, None),
        ("x", "t2", "e2"): (1, 0.0, None),
    }
    for key, (n, share, first) in expected.items():
        row = found.loc[key]
        assert (row["n"], row["share"]) == (n, pytest.approx(share)), key
        mean = row["mean_first_layer"]
        assert np.isnan(mean) if first is None else mean == first, key
    assert len(found) == 3 * 5
    several = found[found["n"] > 1]
    assert ((several["low"] <= several["share"]) & (several["share"] <= several["high"])).all()


def test_above_chance_pairs_each_query_with_its_control() -> None:
    table = made().above_chance()
    keys = ["prompt", "position", "entity"]
    assert list(table.columns) == [*keys, "n", "difference", "low", "high"]
    found = table.set_index(keys)
    assert found[["n", "difference"]].apply(tuple, axis=1).to_dict() == {
        ("x", "t1", "e2"): (2, 0.0),  # a: both, b: both; c has no other
        ("x", "t2", "e2"): (1, 0.0),
        ("y", "t1", "e2"): (1, 0.0),
        ("x", "t1", "e3"): (2, 0.5),  # a: own alone, b: none
        ("x", "t2", "e3"): (1, 0.0),
        ("y", "t1", "e3"): (1, 0.0),  # a: both
    }


def test_shares_by_hand() -> None:
    table = made().shares()
    assert list(table.columns) == ["prompt", "position", "e1", "e2", "e3", "other"]
    found = table.set_index(["prompt", "position"])
    assert found.loc[("x", "t1")].tolist() == pytest.approx([1 / 12, 3 / 12, 2 / 12, 7 / 12])
    assert found.loc[("x", "t2")].tolist() == [0, 0, 0, 1]
    assert found.loc[("y", "t1")].tolist() == [0, 0, 1 / 4, 3 / 4]


def test_first_layers_by_hand() -> None:
    result = made()
    bridges = result.first_layers("e2")
    assert list(bridges.index) == ["a", "b", "c"]
    assert bridges[["a", "b"]].tolist() == [1, 0]
    assert np.isnan(bridges["c"])
    assert result.first_layers("e3", "t1", "y").to_dict() == {"a": 0}
    assert result.first_layers("e2_other").to_dict() == {"a": 1, "b": 1}
    assert result.first_layers("e2", "t2").isna().all()


def test_the_heatmap_is_the_share_of_each_cell() -> None:
    share = made().heatmap("e2", "t1", "x")
    assert (share.index.name, share.columns.name) == ("target_layer", "source_layer")
    assert (share.loc[0, 0], share.loc[1, 0]) == (pytest.approx(1 / 3), 0.0)
    assert (share.loc[0, 1], share.loc[1, 1]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    pd.testing.assert_frame_equal(made().heatmap(), share)
    assert made().heatmap("e2_other").loc[1, 1] == 1.0  # of the two queries that have another
    assert made().heatmap("e3", prompt="y").loc[1, 0] == 1.0


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"positions": ("t1", "t3")}, "unknown position 't3': choose one of t1, t2, e1"),
    ({"prompts": ["descriptions"]}, "unknown prompt 'descriptions': choose one of description, id"),
    ({"prompts": {}}, "give at least one target prompt, each with some text"),
    ({"prompts": {"own": "Alba is", "none": " "}}, "give at least one target prompt, each"),
    ({"prompts": {"long": "Upper " * CONTEXT}}, rf"the prompt has {CONTEXT} tokens"),
    ({"source_layers": [6]}, "layers are numbers from 0 to 5; got 6"),
    ({"source_layers": []}, "layers are numbers from 0 to 5; got none"),
    ({"target_layers": [2, -1]}, "layers are numbers from 0 to 5; got -1"),
    ({"samples": -1}, r"samples must be 0 or more, not -1"),
    ({"match": "exact"}, "unknown match 'exact'"),
    ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more, not 0"),
]


@pytest.mark.parametrize(("settings", "message"), MISTAKES, ids=lambda each: str(each)[:40])
def test_a_mistake_is_told(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        described(chosen("early-1"), out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(QueryError, match=r"empty query set.*graded\.summary"):
        described(chosen())


def test_an_unknown_entity_position_or_prompt_is_told() -> None:
    result = made()
    for ask in (result.heatmap, result.first_layers):
        with pytest.raises(UsageError, match=r"entity 'e4': .* e1, e2, e3"):
            ask("e4")
        with pytest.raises(UsageError, match="no position 'e1': the run has t1, t2"):
            ask("e2", "e1")
        with pytest.raises(UsageError, match="no prompt 'z': the run has x, y"):
            ask("e2", "t1", "z")
