"""Tests of compare_retrievers(): each prompt beside plain ones, a known model, tables by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import loaded, short_name
from drawn import lines
from first_document import FORM, first_model, first_questions
from multidoc import OTHER, QUESTION, by_brute_force, with_attention

import hopscope as hs
from hopscope.documents.haystack import haystack
from hopscope.documents.lay_out import lay_out
from hopscope.documents.question_set import Document, MultiDocQuestion, QuestionSet
from hopscope.documents.retrieval import Random
from hopscope.documents.templates import Template
from hopscope.errors import HopscopeError, QueryError, UsageError
from hopscope.experiments.documents import plots
from hopscope.experiments.documents.haystack import (
    ANY,
    BLOCK,
    GOLD,
    LOGPROB,
    Haystacks,
    compare_retrievers,
)
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import load_encoder_decoder, load_model
from hopscope.models.tiny import build_tiny
from hopscope.study.figures import draw_figures

FIGURES = Path(__file__).parents[3] / "figures"
N_TOKENS = 2
TOKENS = 40
FORM_SHORT = Template("Answer.\n", "{label} {title}: {text}\n", "Question: {question}\nAnswer:")
POOL = [
    Document("Kyoto", "The country of Japan."),
    Document("Lyon", "A city of France, with a Tower."),
    Document("Rome", "The capital of Italy."),
    Document("Imagine", "The performer is Lennon."),
    Document("Berlin", "The capital of Germany, the country."),
]
QUESTIONS = QuestionSet((QUESTION,), "made", pool=(QUESTION, OTHER))
FAMILIES = ("tiny-random-llama", "tiny-random-gpt2", "tiny-random-gemma2")
ORDERS = ("retrieved", "retrieved_reversed", "shuffle_0")


def by_place(question: str, passages: Sequence[Document]) -> list[float]:
    """Earlier passages are nearer; gold documents are not found."""
    return [math.nan if place >= len(POOL) else -place for place in range(len(passages))]


def compared(model: Any, questions: QuestionSet = QUESTIONS, **more: Any) -> Haystacks:
    options = {"retrievers": ["bm25", by_place], "template": FORM_SHORT, "tokens": TOKENS}
    options["orders"] = ORDERS
    options |= {"max_new_tokens": N_TOKENS, "progress": False, "corpus": hs.load_corpus(POOL)}
    return compare_retrievers(model, questions, **{**options, **more})


def made(model: LanguageModel, retriever: str) -> MultiDocQuestion:
    """The same haystack, made alone."""
    given: Any = {"bm25": "bm25", "by_place": by_place}[retriever]
    found = haystack(QUESTIONS, given, tokens=TOKENS, model=model, corpus=POOL, template=FORM_SHORT)
    return found[0]


def parts_of(question: MultiDocQuestion, order: Sequence[int], numbered: bool = True) -> list[str]:
    """The parts of a prompt of `FORM_SHORT`."""
    parts = ["Answer.\n"]
    for place, index in enumerate(order, start=1):
        document = question.documents[index]
        label = f" [{place}]" if numbered else ""
        parts.append(f"{label} {document.title}: {document.text}\n")
    return [*parts, f"Question: {question.question}\nAnswer:"]


def tokens_of(model: LanguageModel, parts: Sequence[str]) -> tuple[list[int], torch.Tensor]:
    """The tokens of a prompt, and the number of the part that each begins in."""
    row = model.tokenizer("".join(parts), return_offsets_mapping=True)
    ends = np.cumsum([len(part) for part in parts])
    return row["input_ids"], torch.tensor(
        [int((ends <= start).sum()) for start, _ in row["offset_mapping"]]
    )


def order_of(question: MultiDocQuestion, name: str) -> list[int]:
    forward = list(range(len(question.documents)))
    if name == "shuffle_0":
        return list(hs_arrange(question, name))
    return forward[::-1] if name == "retrieved_reversed" else forward


def hs_arrange(question: MultiDocQuestion, name: str) -> Sequence[int]:
    from hopscope.documents.orders import arrange

    return arrange(question, name, 0)


def role_places(result: Haystacks, row: Any, order: Sequence[int], role: str) -> list[int]:
    """The displayed places of the documents with a role."""
    frame = result.frame
    same = (frame[["retriever", "order", "cut"]] == [row.retriever, row.order, "none"]).all(axis=1)
    numbers = frame[same & (frame["role"] == role)]["document"]
    return [list(order).index(number) for number in numbers]


def expected_of(model: LanguageModel, result: Haystacks, row: Any) -> Any:
    """What a row of details must say: one plain masked pass a token."""
    if row.retriever == GOLD:
        question, order = QUESTION, list(QUESTION.gold)
    else:
        question = made(model, row.retriever)
        order = order_of(question, row.order)
    ids, part = tokens_of(model, parts_of(question, order, row.mask != BLOCK))
    n, last = len(ids), len(order) + 1
    seen = torch.ones(n, n, dtype=torch.bool).tril()
    positions = list(range(n))
    if row.mask == BLOCK:
        inside = (part > 0) & (part < last)
        seen &= (part[:, None] == part[None, :]) | ~inside[:, None]
        lengths = [int((part == number).sum()) for number in range(last + 1)]
        start = dict.fromkeys(range(1, last), lengths[0])
        start |= {0: 0, last: lengths[0] + max(lengths[1:last])}
        firsts = {number: int((part < number).sum()) for number in range(last + 1)}
        positions = [start[int(p)] + i - firsts[int(p)] for i, p in enumerate(part)]
    if row.cut != "none":
        (place,) = role_places(result, row, order, row.cut)
        seen[torch.outer(part == last, part == place + 1)] = False
    layout = lay_out(lambda text: (ids, [(0, 0)] * n), QUESTION, template=FORM_SHORT)
    layout = replace(layout, ids=tuple(ids), positions=tuple(positions))
    return by_brute_force(model, layout, [seen[None]] * model.n_layers, N_TOKENS)


@pytest.mark.parametrize("name", FAMILIES, ids=short_name)
def test_every_prompt_is_answered_as_a_plain_pass(name: str) -> None:
    model = loaded(name)
    result = compared(model)
    details = result.details
    assert not details.duplicated(["query", "retriever", "order", "mask", "cut"]).any()
    assert len(details) == 2 * (3 * 3 + 1) + 1
    answers = list(model.answer_tokens(("Paris",), after="Answer:", beside=["France"]))
    for row in details.itertuples():
        expected = expected_of(model, result, row)
        said = model.tokenizer.decode(expected.tokens, skip_special_tokens=True)
        assert row.generation == said.split("\n")[0].strip(), row
        assert row.answer_logprob == pytest.approx(
            float(expected.logprobs[answers].max()), abs=1e-4
        ), row
    assert details[LOGPROB].round(4).nunique() > 0.8 * len(details)


def test_attention_is_that_of_an_eager_model() -> None:
    model = loaded("tiny-random-llama")
    hf = with_attention("tiny-random-llama", "eager").hf
    result = compared(model, orders=["shuffle_0"])
    for retriever in ("bm25", "by_place"):
        question = made(model, retriever)
        order = order_of(question, "shuffle_0")
        ids, part = tokens_of(model, parts_of(question, order))
        n_prompt = len(ids)
        for _ in range(N_TOKENS):
            with torch.no_grad():
                ids.append(int(hf(torch.tensor([ids])).logits[0, -1].argmax()))
        with torch.no_grad():
            patterns = hf(torch.tensor([ids]), output_attentions=True).attentions
        told = result.frame.query("retriever == @retriever and mask == 'causal' and cut == 'none'")
        assert told["document"].tolist() == order
        weights = torch.stack(patterns)[:, 0, :, n_prompt : n_prompt + N_TOKENS].mean(dim=2)
        for slot, row in enumerate(told.itertuples()):
            columns = torch.nonzero(part == slot + 1)[:, 0]
            ic = float(weights[:, :, columns].sum(dim=-1).mean(dim=1).sum())
            assert row.ic == pytest.approx(ic, abs=1e-4)
            assert row.tokens == len(columns)


def test_what_is_blocked_gets_no_attention() -> None:
    frame = compared(loaded("tiny-random-llama")).frame
    for cut in ("hardest", "other"):
        rows = frame[frame["cut"] == cut]
        assert (rows[rows["role"] == cut]["ic"] == 0).all()
        assert (rows[rows["role"] != cut]["ic"] > 0).all()
    sums = frame.groupby(["retriever", "order", "mask", "cut"])["ic"].sum()
    assert (sums <= loaded("tiny-random-llama").n_layers + 1e-5).all()


def test_roles_ranks_and_hops() -> None:
    frame = compared(loaded("tiny-random-llama"), orders=["retrieved"]).frame
    rows = frame[(frame["retriever"] == "by_place") & (frame["mask"] == "causal")]
    rows = rows[rows["cut"] == "none"]
    distractors = rows[rows["rank"] > 0]
    assert distractors["rank"].tolist() == distractors["slot"].add(1).tolist() == [1, 2, 3]
    assert distractors["role"].iloc[0] == "hardest"
    assert set(distractors["role"]) == {"hardest", "other", "rest"}
    assert rows[rows["role"] == "gold"].sort_values("hop")["hop"].tolist() == [1, 2]
    assert rows["rank"].eq(0).equals(rows["hop"].gt(0))
    question = made(loaded("tiny-random-llama"), "by_place")
    lengths = [len(question.documents[each].text) for each in question.distractors]
    nearest = min(lengths[1:], key=lambda each: abs(each - lengths[0]))
    (other,) = distractors[distractors["role"] == "other"]["document"]
    assert len(question.documents[other].text) == nearest


def test_the_mask_that_knows_no_order_gives_the_same_in_every_order() -> None:
    model = loaded("tiny-random-llama")
    result = compared(model)
    from hopscope.engine.read_out import Version
    from hopscope.masks.named import document_block
    from hopscope.prompting.document_prompts import DocumentPrompts, FittedQuestion

    prompts = DocumentPrompts(model, QUESTIONS, FORM_SHORT, "none", N_TOKENS)
    for retriever in ("bm25", "by_place"):
        fitted = FittedQuestion(made(model, retriever), (), ())
        layouts = [prompts.layout(fitted, order).with_shared_positions() for order in ORDERS]
        answers = prompts.answer_tokens(layouts[0])
        versions = [Version(each, document_block()) for each in layouts]
        outputs = prompts.read(versions, answer_tokens=answers).outputs
        (row,) = result.details.query("retriever == @retriever and order == @ANY").itertuples()
        for index in range(len(ORDERS)):
            assert float(outputs.logprob[index]) == pytest.approx(row.answer_logprob, abs=1e-4)
            assert prompts.answer(outputs.tokens[index]) == row.generation


def test_all_retrievers_have_as_many_tokens_and_the_same_demonstrations() -> None:
    from hopscope.documents.corpus import corpus_of
    from hopscope.documents.world_docs import world_docs
    from hopscope.queries.load import load_queries

    hf, tokenizer = build_tiny("tiny-random-llama")
    hf.config.max_position_embeddings = 1024
    llama = load_model(hf, device="cpu", tokenizer=tokenizer)
    part = load_queries("world", few_shot=0)[::40]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hopscope.documents.world_docs.load_queries", lambda *_, **__: part)
        questions = world_docs("shared").sample(2, seed=1).with_few_shot(1)
    corpus = corpus_of(questions)
    retrievers = ("bm25", "dense", "ppr", "random")
    result = compare_retrievers(
        llama, questions, retrievers, ["retrieved"], tokens=48, corpus=corpus, progress=False
    )
    told = result.details[(result.details["cut"] == "none") & (result.details["mask"] == "causal")]
    for _, rows in told.groupby("query"):
        found = rows[rows["retriever"] != GOLD]
        assert found["distractor_tokens"].between(46, 50).all()
        outside = found["prompt_tokens"] - found["distractor_tokens"]
        (alone,) = rows[rows["retriever"] == GOLD]["prompt_tokens"]
        assert outside.between(alone - 3, alone + 3).all(), "the demonstrations are the same"
    assert set(told["retriever"]) == {"bm25", "dense", "ppr", "random", GOLD}
    assert result.run["settings"]["retrievers"]["ppr"].startswith("PageRank(base=BM25(k1=0.9")
    assert result.run["settings"]["corpus"]["sha256"] == corpus.fingerprint


SCORES = {"Crag end": 3.0, "Alba end": 2.0, "Dale end": 1.0, "Brig end": 0.0}


@cache
def known() -> Haystacks:
    """The model says the name in the first document that it sees; Alba is right, Brig the bridge.

    By score the documents are those of Crag, Alba, Dale and Brig.
    """

    def nearest(question: str, passages: Sequence[Document]) -> list[float]:
        return [SCORES[each.text] for each in passages]

    corpus = hs.load_corpus([Document("", text) for text in ("Crag end", "Dale end")])
    (asked,) = (each for each in first_questions() if each.answer == "Alba")
    return compare_retrievers(
        first_model(),
        QuestionSet((asked,)),
        nearest,
        ["retrieved", "retrieved_reversed", [1, 0, 2, 3]],
        tokens=6,
        corpus=corpus,
        template=FORM,
        progress=False,
    )


def test_a_model_that_is_known_is_misled_by_the_nearest_distractor() -> None:
    said = known().details.set_index(["order", "cut"])["generation"].to_dict()
    assert said == {
        ("retrieved", "none"): "Crag",
        ("retrieved", "hardest"): "Metro",
        ("retrieved", "other"): "Crag",
        ("retrieved_reversed", "none"): "Brig",
        ("retrieved_reversed", "hardest"): "Brig",
        ("retrieved_reversed", "other"): "Brig",
        ("1-0-2-3", "none"): "Alba",
        ("1-0-2-3", "hardest"): "Alba",
        ("1-0-2-3", "other"): "Alba",
        (ANY, "none"): "Metro",
        ("gold", "none"): "Brig",
    }
    right = known().accuracy().set_index("order")["accuracy"]
    assert right.to_dict() == {
        "retrieved": 0,
        "retrieved_reversed": 0,
        "1-0-2-3": 1,
        ANY: 0,
        "gold": 0,
    }
    changed = known().cuts("changed").set_index(["order", "cut"])["effect"]
    assert changed[changed > 0].to_dict() == {("retrieved", "hardest"): 1}


def test_the_attention_of_a_model_that_is_known() -> None:
    """A quarter to the end of each document in block 0; all to the first name in block 1."""
    frame = known().frame
    rows = frame[(frame["order"] == "retrieved") & (frame["cut"] == "none")]
    assert rows["ic"].tolist() == pytest.approx([1.25, 0.25, 0.25, 0.25], abs=1e-3)
    assert rows["role"].tolist() == ["hardest", "gold", "other", "gold"]
    assert rows["hop"].tolist() == [0, 2, 0, 1]
    taken = known().attention_taken().set_index("order")["difference"]
    assert taken["retrieved"] == pytest.approx(1.0, abs=1e-3)
    assert taken["retrieved_reversed"] == pytest.approx(0.0, abs=1e-3)


BAD: dict[str, tuple[dict[str, Any], type[HopscopeError], str]] = {
    "retriever": ({"retrievers": ["bm52"]}, UsageError, "unknown retriever 'bm52'"),
    "no retriever": ({"retrievers": []}, UsageError, "give a list of retrievers with any of bm25"),
    "two alike": (
        {"retrievers": [Random(), "random"]},
        UsageError,
        "two retrievers are called 'random'; give one of them another name=",
    ),
    "no order": ({"orders": []}, UsageError, "give a list of orders"),
    "order": ({"orders": ["sideways"]}, QueryError, "unknown order 'sideways'"),
    "tokens": ({"tokens": 0}, UsageError, "tokens must be 1 or more, not 0"),
    "corpus": ({"corpus": "nothing.jsonl"}, QueryError, "no corpus 'nothing.jsonl'"),
    "small corpus": (
        {"tokens": 900},
        QueryError,
        "question 'tower': the corpus has only 5 passages that can be distractors, not the 900 tok",
    ),
    "template": ({"template": "plane"}, UsageError, "unknown template 'plane'"),
    "label": ({"label": "roman"}, UsageError, "unknown label 'roman'"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_arguments_are_told(what: str, llama: LanguageModel) -> None:
    given, kind, message = BAD[what]
    with pytest.raises(kind, match=message):
        compared(llama, **given)


def test_a_haystack_that_does_not_fit_is_told(llama: LanguageModel) -> None:
    many = [Document(f"T{n}", f"The {n}th country of the capital.") for n in range(60)]
    with pytest.raises(QueryError, match=r"its haystack makes a prompt of .*; take fewer tokens="):
        compared(llama, tokens=300, corpus=hs.load_corpus(many))


def test_questions_without_an_answer_are_told(llama: LanguageModel) -> None:
    asked = QuestionSet((replace(QUESTION, answer="", aliases=()),))
    with pytest.raises(QueryError, match="has no answer with which to compare"):
        compared(llama, asked)


def test_an_encoder_decoder_is_asked_in_every_order_but_not_under_blocks() -> None:
    model = load_encoder_decoder("tiny-random-t5", device="cpu")
    details = compared(model).details
    assert set(details["mask"]) == {"prefix_bidirectional"}
    assert len(details) == 2 * 3 * 3 + 1
    assert details[LOGPROB].round(4).nunique() > 6


def details_row(query: str, retriever: str, order: str, cut: str, **more: Any) -> dict[str, Any]:
    told = {"mask": BLOCK if order == ANY else "causal", "prompt_tokens": 10, "names": '["x"]'}
    right = more.pop("right", False)
    scores = dict.fromkeys(("contained", "matched", "exact_match"), right)
    row = {"query": query, "retriever": retriever, "order": order, "cut": cut, **told, **scores}
    return {**row, "f1": float(right), "generation": "x" if right else "y", **more}


def by_hand() -> Haystacks:
    """Eight questions: random distractors are right in all, those of BM25 in the first two."""
    details, frame = [], []
    for n in range(8):
        query = f"q{n}"
        for name, logprob, right in (("bm25", -3.0 - n, n < 2), ("random", -1.0 - n, True)):
            whole = details_row(
                query, name, "shuffle_0", "none", right=right, answer_logprob=logprob
            )
            hardest = {**whole, "cut": "hardest", LOGPROB: logprob + 0.5 * n, "generation": "x"}
            other = {**whole, "cut": "other", LOGPROB: logprob - 0.1 * n}
            details += [whole, hardest, other]
            for rank, role, ic in ((0, "gold", 2.0), (1, "hardest", 1.0 + n), (2, "other", 0.5)):
                keys = {"query": query, "retriever": name, "order": "shuffle_0", "mask": "causal"}
                places = {"document": rank, "rank": rank, "hop": int(rank == 0), "slot": rank}
                frame.append({**keys, "cut": "none", **places, "tokens": 5, "role": role, "ic": ic})
        details.append(
            details_row(query, GOLD, "gold", "none", right=True, answer_logprob=-0.5 - n)
        )
    settings = {"orders": ["shuffle_0"], "tokens": 40, "template": "plain"}
    run = {"settings": settings, "model": {"name": "made"}, "queries": {"name": "made", "n": 8}}
    return Haystacks(pd.DataFrame(frame)[list(Haystacks.columns)], pd.DataFrame(details), run)


def test_tables_by_hand() -> None:
    result = by_hand()
    accuracy = result.accuracy().set_index("retriever")
    assert accuracy["accuracy"].to_dict() == {"bm25": 0.25, "random": 1.0, GOLD: 1.0}
    assert accuracy["n"].tolist() == [8, 8, 8]
    assert accuracy["tokens"].tolist() == [10, 10, 10]
    compare = result.compare().set_index("retriever")
    assert set(compare.index) == {"bm25", GOLD}
    assert compare.loc["bm25", "difference"] == -0.75
    assert compare.loc["bm25", "p"] == pytest.approx(2 * 0.5**6)
    assert (compare.loc["bm25", "better"], compare.loc["bm25", "worse"]) == (0, 6)
    assert compare.loc[GOLD, "difference"] == 0
    nats = result.compare(measure=LOGPROB).set_index("retriever")["difference"]
    assert nats.to_dict() == pytest.approx({"bm25": -2.0, GOLD: 0.5})
    against = result.compare("bm25", LOGPROB).set_index("retriever")["difference"]
    assert against.to_dict() == pytest.approx({"random": 2.0, GOLD: 2.5})
    with pytest.raises(UsageError, match="no retriever 'dense': the run has bm25, random"):
        result.compare("dense")
    ranks = result.attention_by_rank().query("retriever == 'bm25'").set_index("rank")["ic"]
    assert ranks.to_dict() == {0: 2.0, 1: 4.5, 2: 0.5}
    taken = result.attention_taken()
    assert taken["difference"].tolist() == [4.0, 4.0]
    cuts = result.cuts().query("retriever == 'bm25'").set_index("cut")["effect"]
    assert cuts.to_dict() == pytest.approx({"hardest": 1.75, "other": -0.35})
    changed = result.cuts("changed").query("retriever == 'bm25'").set_index("cut")["effect"]
    assert changed.to_dict() == {"hardest": 0.75, "other": 0.0}
    assert result.cut_gains()["difference"].tolist() == pytest.approx([2.1, 2.1])
    with pytest.raises(UsageError, match="unknown measure 'lost'"):
        result.cuts("lost")


def test_findings_by_hand() -> None:
    result = by_hand()
    first, nats, *taken = result.findings()
    assert first.startswith(
        "with the gold documents alone it answers 100 % (68–100), beside 40 tok"
    )
    assert "in the order shuffle_0 25 % (7–59) among those of bm25, 100 %" in first
    assert (
        "against random distractors, those of bm25 change the log-probability of the answer by "
        in nats
    )
    assert nats.endswith("-2.00 nats: lower than random distractors.")
    assert len(taken) == 2
    assert "attends to the nearest distractor of bm25 by +4.00 (" in taken[0]
    assert result.headline() is None  # the report's box has its five comparisons


def test_a_run_goes_on_and_loads(tmp_path: Path, llama: LanguageModel) -> None:
    both = replace(QUESTIONS, questions=(QUESTION, OTHER, replace(OTHER, id="third")))
    whole = compared(llama, both, out=tmp_path / "run", orders=["retrieved"])
    again = hs.load_result(tmp_path / "run")
    assert type(again) is Haystacks
    pd.testing.assert_frame_equal(again.frame, whole.frame)
    assert again.frame.dtypes.astype(str).to_dict() == dict(Haystacks.columns)
    assert again.n_queries == 3
    for index in (2, 1):
        compared(llama, both, out=tmp_path / "shards", orders=["retrieved"], shard=(index, 2))
    for path in (tmp_path / "run").glob("*.parquet"):
        assert path.read_bytes() == (tmp_path / "shards" / path.name).read_bytes()
    assert again.gold_places()["place"].between(0, 1).all()
    assert set(again.tables()) == set(whole.tables())


def test_masked_paths_from_the_nearest_distractor(llama: LanguageModel) -> None:
    found = haystack(QUESTIONS, by_place, size=3, corpus=POOL)
    result = hs.masked_paths(
        llama,
        found,
        ["question->distractor 1"],
        order="retrieved",
        layers=[1],
        template=FORM_SHORT,
        progress=False,
    )
    assert set(result.frame["control"]) == {"none", "distractor"}


def test_the_figure_of_a_result(tmp_path: Path) -> None:
    by_hand().save(tmp_path / "haystack.documents")
    drawn = [
        draw_figures(FIGURES, ["haystack"], tmp_path, tmp_path / place) for place in ("one", "two")
    ]
    for one, other in zip(*drawn, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
    table = pd.read_csv(drawn[0][2]).set_index(["panel", "retriever"])
    assert table.loc[("gain", "bm25"), "difference"] == -2.0
    assert table.loc[("f1", "bm25"), "accuracy"] == 0.25


def test_pictures_show_each_retriever_by_order() -> None:
    result = by_hand()
    ax = result.plot()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["shuffle 0"]
    assert ax.get_legend_handles_labels()[1] == ["gold alone", "bm25", "random"]
    ax = plots.rank_lines(result.attention_by_rank())
    assert lines(ax) == {"bm25": [4.5, 0.5], "random": [4.5, 0.5]}
    assert [label.get_text() for label in ax.get_xticklabels()] == ["gold", "1", "2"]
    ax = plots.cut_points(result.cuts())
    assert [label.get_text() for label in ax.get_xticklabels()] == ["bm25", "random"]
    assert all(len(table.columns) for table in result.tables().values())
