"""Tests of grade(): verdicts on a model whose answers are known, subsets, and their summary."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import loaded
from known import (
    CONTEXT,
    CORRECT,
    FACTS,
    INCORRECT,
    RIGHT,
    known_model,
    known_queries,
    made_grading,
)
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

import hopscope as hs
from hopscope.errors import QueryError, ResultError, UsageError
from hopscope.experiments.two_hop import grading
from hopscope.experiments.two_hop.grading import Grading, grade, grade_until
from hopscope.models.language_model import LanguageModel
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import FORMS, TwoHopQuery
from hopscope.results import runs
from hopscope.results.packing import pack_run

FAMILIES = ("tiny-random-llama", "tiny-random-gemma3", "tiny-random-gpt2")


@pytest.fixture(scope="module")
def graded() -> Grading:
    return grade(known_model(), known_queries(), progress=False)


def passed(result: Grading) -> dict[str, set[str]]:
    """The forms that each query gets right."""
    table = result.verdicts()
    return {str(query): {form for form in FORMS if table.loc[query, form]} for query in table.index}


def generation(result: Grading, query: str, form: str = "two_hop") -> str:
    frame = result.frame
    found = frame[(frame["query"] == query) & (frame["form"] == form)]["generation"]
    assert len(found) == 1
    return str(found.iloc[0])


def ids(queries: QuerySet) -> list[str]:
    return [query.id for query in queries]


def small_queries() -> QuerySet:
    """Queries whose prompts differ in length."""
    places = ["Kyoto", "the Eiffel Tower", "the Colosseum", "Lyon", "Rio de Janeiro", "Bath"]
    queries = tuple(
        TwoHopQuery(
            id=str(number),
            e1_label=place,
            e2_label=f"Land{number}",
            e3_label=f"City{number}",
            r1_template="The country of {}",
            r2_template="The capital of {}",
        )
        for number, place in enumerate(places)
    )
    return QuerySet(queries, "small")


def test_verdicts_are_those_known(graded: Grading) -> None:
    assert passed(graded) == RIGHT


def test_the_frame_has_one_row_a_query_and_form(graded: Grading) -> None:
    assert list(graded.frame.columns) == ["query", "form", "prompt", "generation", "correct"]
    assert list(graded.frame["query"]) == [fact.id for fact in FACTS for _ in FORMS]
    assert list(graded.frame["form"]) == list(FORMS) * len(FACTS)
    assert graded.frame["correct"].dtype == bool
    first = graded.frame.iloc[0]
    assert first["prompt"] == "The capital of the country of Arbor is"


def test_generations_are_what_the_model_says(graded: Grading) -> None:
    assert generation(graded, "early-1") == "Alba . \n again . \n again . \n again"
    assert generation(graded, "early-2") == "Brig"  # end of text
    assert generation(graded, "late-1").startswith("Cland .")
    assert generation(graded, "late-1", "second_hop").startswith("Crag .")
    assert generation(graded, "late-1", "entity_shortcut").startswith("Metro .")
    assert generation(graded, "second-line").startswith("Wrongville \n Jarn .")


def test_max_new_tokens_bounds_the_generation() -> None:
    short = grade(known_model(), known_queries(), max_new_tokens=1, progress=False)
    assert generation(short, "early-1") == "Alba"
    assert "late-3" not in ids(short.incorrect())  # "Port" is not "Port Alva"


def test_substring_counts_what_word_does_not() -> None:
    loose = grade(known_model(), known_queries(), match="substring", progress=False)
    assert generation(loose, "longer").startswith("Lundby")
    assert passed(loose) == {**RIGHT, "longer": {"first_hop", "second_hop", "two_hop"}}
    assert loose.run["settings"]["match"] == "substring"


def test_few_shot_prompts_are_answered_in_one_line() -> None:
    few = grade(known_model(), known_queries().with_few_shot(2), progress=False)
    assert few.run["settings"]["one_line"] is True
    assert passed(few) == {**RIGHT, "second-line": {"first_hop"}}
    assert generation(few, "second-line") == "Wrongville \n"
    assert generation(few, "early-1") == "Alba . \n"


def test_prompts_are_told_without_their_demonstrations() -> None:
    few = grade(known_model(), known_queries().with_few_shot(2), progress=False)
    zero = grade(known_model(), known_queries(), progress=False)
    assert list(few.frame["prompt"]) == list(zero.frame["prompt"])


@pytest.mark.parametrize("one_line", [True, False])
@pytest.mark.parametrize("few_shot", [0, 2])
def test_one_line_can_be_chosen(one_line: bool, few_shot: int) -> None:
    queries = known_queries().filter(lambda query: query.id == "second-line")
    asked = queries.with_few_shot(few_shot)
    result = grade(known_model(), asked, one_line=one_line, progress=False)
    assert ("two_hop" in passed(result)["second-line"]) is not one_line


def test_what_is_said_after_the_line_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a token holds the line's end and more, so that decoding could not stop there."""
    monkeypatch.setattr("hopscope.experiments.two_hop.grading.stop_at_line_end", lambda _: None)
    queries = known_queries().filter(lambda query: query.id == "second-line")
    result = grade(known_model(), queries, one_line=True, progress=False)
    assert generation(result, "second-line").startswith("Wrongville \n Jarn")
    assert passed(result) == {"second-line": {"first_hop"}}


def test_subsets_are_those_known(graded: Grading) -> None:
    assert ids(graded.correct()) == CORRECT
    assert ids(graded.incorrect()) == INCORRECT


@pytest.mark.parametrize("right", range(32))
def test_a_subset_follows_from_five_verdicts(right: int) -> None:
    verdicts = {form: bool(right >> place & 1) for place, form in enumerate(FORMS)}
    query = replace(known_queries()[0], id="asked")
    result = made_grading({"asked": {form for form in FORMS if verdicts[form]}})
    queries = QuerySet((query,))
    shortcut = verdicts["entity_shortcut"] or verdicts["relation_shortcut"]
    correct = verdicts["first_hop"] and verdicts["two_hop"] and not shortcut
    hops = verdicts["first_hop"] and verdicts["second_hop"]
    incorrect = hops and not verdicts["two_hop"] and not shortcut
    assert ids(result.correct(queries)) == ["asked"] * correct
    assert ids(result.incorrect(queries)) == ["asked"] * incorrect


def test_subsets_keep_the_few_shot_settings() -> None:
    queries = known_queries().with_few_shot(2, seed=3)
    subset = grade(known_model(), queries, progress=False).incorrect()
    assert (subset.few_shot, subset.few_shot_seed, subset.pool) == (2, 3, queries.pool)


def test_a_loaded_grading_needs_its_queries(graded: Grading, tmp_path: Path) -> None:
    loaded = hs.load_result(graded.save(tmp_path / "grading"))
    assert isinstance(loaded, Grading)
    assert passed(loaded) == RIGHT
    with pytest.raises(ResultError, match="pass the query set"):
        loaded.correct()
    assert ids(loaded.correct(known_queries())) == CORRECT
    assert ids(loaded.incorrect(known_queries())) == INCORRECT


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % score interval (Wilson 1927), written out."""
    z, p = 1.959963984540054, right / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return middle - half, middle + half


def test_summary_counts_forms_and_subsets(graded: Grading) -> None:
    summary = graded.summary()
    assert list(summary.columns) == ["what", "right", "n", "share", "low", "high"]
    right = dict(zip(summary["what"], summary["right"], strict=True))
    assert right == {
        "two_hop": 5,
        "first_hop": 11,
        "second_hop": 9,
        "entity_shortcut": 2,
        "relation_shortcut": 1,
        "both_hops": 8,
        "correct": 3,
        "incorrect": 3,
        "inconsistent": 3,
    }
    assert set(summary["n"]) == {12}


def test_summary_has_wilson_intervals(graded: Grading) -> None:
    summary = graded.summary()
    for right, share, low, high in zip(
        *(summary[name].tolist() for name in ("right", "share", "low", "high")), strict=True
    ):
        assert (share, low, high) == pytest.approx((right / 12, *wilson(right, 12)))


def test_wilson_at_the_ends() -> None:
    summary = made_grading({"one": set(FORMS), "two": set(FORMS)}).summary().set_index("what")
    assert (summary.loc["two_hop", "low"], summary.loc["two_hop", "high"]) == pytest.approx(
        (0.34238, 1.0), abs=1e-5
    )
    assert summary.loc["correct", "low"] == pytest.approx(0.0, abs=1e-12)
    assert summary.loc["correct", "high"] == pytest.approx(0.65762, abs=1e-5)


def test_plot_draws_the_summary(graded: Grading) -> None:
    ax = graded.plot()
    assert isinstance(ax, Axes)
    widths = [bar.get_width() for bar in ax.patches if isinstance(bar, Rectangle)]
    summary = graded.summary().set_index("what")["share"].drop("inconsistent")
    assert sorted(widths) == pytest.approx(sorted(summary))


def one_by_one(model: LanguageModel, queries: QuerySet) -> pd.DataFrame:
    frames = [grade(model, queries[i : i + 1], progress=False).frame for i in range(len(queries))]
    return pd.concat(frames, ignore_index=True)


@pytest.mark.parametrize(("family", "few_shot"), list(zip(FAMILIES, (2, 0, 2), strict=True)))
def test_batched_is_one_by_one(family: str, few_shot: int) -> None:
    model, queries = hs.load_model(family, device="cpu"), small_queries().with_few_shot(few_shot)
    queries = queries[:3]
    batched = grade(model, queries, progress=False).frame
    pd.testing.assert_frame_equal(batched, one_by_one(model, queries))
    chunked = grade(model, queries, max_memory=1, progress=False).frame
    pd.testing.assert_frame_equal(batched, chunked)


@pytest.mark.parametrize("family", FAMILIES)
def test_generations_equal_those_of_generate(family: str) -> None:
    model, queries = hs.load_model(family, device="cpu"), small_queries()[:3]
    frame = grade(model, queries, progress=False).frame
    for row in frame.itertuples():
        encoded = model.tokenizer(row.prompt, return_tensors="pt")
        hf: Any = model.hf
        with torch.no_grad():
            out = hf.generate(**encoded, max_new_tokens=10, do_sample=False)
        new = out[0, encoded["input_ids"].shape[1] :]
        assert row.generation == model.tokenizer.decode(new, skip_special_tokens=True)


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(QueryError, match="known is an empty query set"):
        grade(known_model(), known_queries().filter(lambda _: False), progress=False)


def test_an_unknown_match_is_told_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown match 'exact': choose one of word, substring"):
        grade(known_model(), known_queries(), match="exact", out=tmp_path / "run")  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_a_prompt_that_is_too_long_is_told() -> None:
    long = replace(known_queries()[0], e1_label="Upper " * CONTEXT + "Arbor")
    with pytest.raises(UsageError, match=rf"the prompt has \d+ tokens .* context .* {CONTEXT}"):
        grade(known_model(), QuerySet((long,)), progress=False)


def test_a_prompt_must_leave_room_for_the_answer() -> None:
    fits = replace(known_queries()[0], e1_label="Upper " * (CONTEXT - 17) + "Arbor")
    room = CONTEXT - len(known_model().encode(fits.two_hop()))
    grade(known_model(), QuerySet((fits,)), max_new_tokens=room, progress=False)
    with pytest.raises(UsageError, match=f"{room + 1} are to be generated"):
        grade(known_model(), QuerySet((fits,)), max_new_tokens=room + 1, progress=False)


def test_grading_goes_on_until_a_subset_has_enough(tmp_path: Path) -> None:
    model, queries = known_model(), known_queries()
    whole = grade(model, queries, progress=False)
    n = len(whole.incorrect())
    assert n >= 2
    found = grade_until(model, queries, {"incorrect": n}, 1, out=tmp_path / "run", progress=False)
    assert len(found.incorrect()) == n
    both = found.frame.merge(whole.frame, on=["query", "form"])
    assert (both["correct_x"] == both["correct_y"]).all()
    again = grade_until(model, queries, {"incorrect": n}, 1, out=tmp_path / "run", progress=False)
    pd.testing.assert_frame_equal(again.frame, found.frame)


def test_grading_stops_at_the_part_that_has_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grading, "PER_PART", 2)
    model, queries = known_model(), known_queries()
    few = grade_until(model, queries, {"correct": 1}, 1, progress=False)
    assert few.counts()["correct"] >= 1
    assert few.n_queries < len(queries)
    assert few.frame["query"].iloc[0] == queries.sample(1, 0)[0].id


def test_grading_ends_where_enough_can_hardly_be_found(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, queries = known_model(), known_queries()
    found = grade_until(model, queries, {"incorrect": 10_000}, 1, progress=False)
    assert found.n_queries == len(queries)
    assert f"all {len(queries)} queries are graded, with" in caplog.text
    monkeypatch.setattr(grading, "PER_PART", 2)
    found = grade_until(model, queries, {"incorrect": 10_000}, 1, progress=False)
    assert found.n_queries == 2
    assert "so that no more are graded" in caplog.text


def test_a_subset_that_is_out_of_reach_does_not_end_the_search_for_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grading, "PER_PART", 2)
    monkeypatch.setattr(grading, "chance_of_more", lambda _, __, more, ___: float(more < 100))
    model, queries = known_model(), known_queries()
    n = len(grade(model, queries, progress=False).incorrect())
    need = {"correct": 10_000, "incorrect": n}
    assert grade_until(model, queries, need, 1, progress=False).counts()["incorrect"] == n


def test_what_grading_until_cannot_do_is_refused() -> None:
    model, queries = known_model(), known_queries()
    with pytest.raises(UsageError, match="unknown subset 'wrong'"):
        grade_until(model, queries, {"wrong": 1}, progress=False)
    with pytest.raises(UsageError, match="no shards"):
        grade_until(model, queries, {"correct": 1}, shard=(1, 2), progress=False)
    with pytest.raises(UsageError, match="empty query set"):
        grade_until(model, queries.filter(lambda _: False), {"correct": 1}, progress=False)


def test_grading_goes_on_though_enough_are_as_good_as_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chance of a few more among thousands is 1 to the last digit, and yet they are needed."""
    monkeypatch.setattr(grading, "PER_PART", 2)
    monkeypatch.setattr(grading, "chance_of_more", lambda *_: 1.0)
    model, queries = known_model(), known_queries()
    n = len(grade(model, queries, progress=False).correct())
    assert grade_until(model, queries, {"correct": n}, 1, progress=False).counts()["correct"] == n


def test_a_grading_with_enough_needs_no_place_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grading, "PER_PART", 2)
    given: Any = {"out": tmp_path / "run", "progress": False}
    model, queries = known_model(), known_queries()
    found = grade_until(model, queries, {"correct": 1}, 1, **given)
    monkeypatch.setattr("hopscope.results.runs.check_place", None)
    pd.testing.assert_frame_equal(
        grade_until(model, queries, {"correct": 1}, 1, **given).frame, found.frame
    )


def test_a_packed_grading_with_enough_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grading, "PER_PART", 2)
    model, queries = known_model(), known_queries()
    run: Any = {"out": tmp_path / "run", "progress": False}
    found = grade_until(model, queries, {"correct": 1}, 1, **run)
    assert len(found.frame) < len(grade(model, queries, progress=False).frame)
    pack_run(tmp_path / "run", tmp_path / "packed")
    again = grade_until(model, queries, {"correct": 1}, 1, **{**run, "out": tmp_path / "packed"})
    pd.testing.assert_frame_equal(again.frame, found.frame)


def test_a_part_that_another_process_wrote_meanwhile_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grading, "PER_PART", 2)
    model, queries = known_model(), known_queries()
    whole = tmp_path / "whole"
    grade(model, queries, progress=False, out=whole)
    ended = runs._end

    def raced(folder: Path, *given: Any) -> None:
        ended(folder, *given)
        for path in whole.glob("*-*.parquet"):
            if not (folder / path.name).exists():
                shutil.copy(path, folder / path.name)

    alone = grade_until(model, queries, {"correct": 1}, 1, progress=False)
    monkeypatch.setattr(runs, "_end", raced)
    found = grade_until(model, queries, {"correct": 1}, 1, progress=False, out=tmp_path / "run")
    pd.testing.assert_frame_equal(found.frame, alone.frame)


def test_inconsistent_queries_may_have_shortcuts() -> None:
    hops = {"first_hop", "second_hop"}
    right = {
        "plain": hops,
        "entity": {*hops, "entity_shortcut"},
        "relation": {*hops, "relation_shortcut"},
        "composed": {*hops, "two_hop"},
        "one hop": {"second_hop"},
    }
    graded = made_grading(right)
    queries = QuerySet(tuple(replace(known_queries()[0], id=name) for name in right), "made")
    assert ids(graded.inconsistent(queries)) == ["plain", "entity", "relation"]
    assert ids(graded.incorrect(queries)) == ["plain"]
    counts = {"graded": 5, "correct": 1, "incorrect": 1, "inconsistent": 3, "both": 2}
    assert graded.counts() == counts
    assert ids(graded.subset("both", queries)) == ["plain", "composed"]
    with pytest.raises(UsageError, match=r"unknown subset 'inconsistant': .*mean inconsistent"):
        graded.subset("inconsistant", queries)


def cut_shortcut(query: TwoHopQuery) -> str:
    """The relation shortcut of the paper's code, whose templates have no capitals."""
    first = query.r1_template[0].lower() + query.r1_template[1:]
    return query.r2_template.format(first.format(""))[:-4]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cut_relation_shortcut_is_asked(family: str) -> None:
    """Prompts are the paper's, texts those of transformers; other forms are as ever."""
    where = [
        replace(each, id=f"{each.id} where", r1_template="The country where {} is located")
        for each in small_queries()
    ]
    queries = QuerySet((*small_queries(), *where), "both")
    model = loaded(family)
    cut, whole = (
        grade(model, queries, relation_shortcut=each, max_new_tokens=3, progress=False)  # type: ignore[arg-type]
        for each in ("cut", "whole")
    )
    assert cut.run["settings"]["relation_shortcut"] == "cut"
    shortcut = cut.frame["form"] == "relation_shortcut"
    keys = ["query", "form", "prompt", "generation", "correct"]
    pd.testing.assert_frame_equal(cut.frame[~shortcut][keys], whole.frame[~shortcut][keys])
    prompts = cut.frame[shortcut].set_index("query")["prompt"]
    assert list(prompts.index) == [query.id for query in queries]
    assert prompts["0"] == "The capital of the country"
    assert prompts["0 where"] == "The capital of the country where  is loc"
    for query in queries:
        assert prompts[query.id] == cut_shortcut(query)
        inputs = model.tokenizer(prompts[query.id], return_tensors="pt")
        with torch.no_grad():
            said = model.hf.generate(**inputs, do_sample=False, max_new_tokens=3)
        new = said[0, inputs["input_ids"].shape[1] :]
        expected = model.tokenizer.decode(new, skip_special_tokens=True)
        assert generation(cut, query.id, "relation_shortcut") == expected


def test_the_papers_setting() -> None:
    few = known_queries().with_few_shot(2, 3)
    asked = grade(known_model(), few, preset="hopping-too-late", progress=False)
    alone = grade(
        known_model(),
        known_queries(),
        match="substring",
        one_line=False,
        relation_shortcut="cut",
        progress=False,
    )
    pd.testing.assert_frame_equal(asked.frame, alone.frame)
    assert asked.run["settings"] == alone.run["settings"]
    assert asked.run["queries"]["few_shot"] == 0
    words = grade(known_model(), few, preset="hopping-too-late", match="word", progress=False)
    assert words.run["settings"] == {**asked.run["settings"], "match": "word"}
