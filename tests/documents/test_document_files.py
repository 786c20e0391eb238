"""Files of questions in the forms of MuSiQue, HotpotQA and 2WikiMultihopQA."""

from __future__ import annotations

import json
import logging
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from multidoc import MUSIQUE

from hopscope.documents.formats import from_rows, read_rows
from hopscope.documents.load import load_questions
from hopscope.documents.orders import arrange
from hopscope.documents.question_set import Document
from hopscope.errors import QueryError
from hopscope.prompting.document_prompts import scores

Row = dict[str, Any]

MUSIQUE_ROW: Row = {
    "id": "2hop__1_2",
    "paragraphs": [
        {
            "idx": 0,
            "title": "Kyoto",
            "paragraph_text": "Kyoto is in Japan.",
            "is_supporting": False,
        },
        {"idx": 1, "title": "France", "paragraph_text": "Its capital is Paris."},
        {"idx": 2, "title": "Eiffel Tower", "paragraph_text": "It is in France."},
    ],
    "question": "What is the capital of the country of the Eiffel Tower?",
    "question_decomposition": [
        {"id": 1, "question": "Tower >> country", "answer": "France", "paragraph_support_idx": 2},
        {"id": 2, "question": "capital of #1", "answer": "Paris", "paragraph_support_idx": 1},
    ],
    "answer": "Paris",
    "answer_aliases": ["Paname"],
    "answerable": True,
}
HOTPOT_ROW: Row = {
    "_id": "5a8b",
    "question": "What is the capital of the country of the Eiffel Tower?",
    "answer": "Paris",
    "type": "bridge",
    "level": "hard",
    "context": [
        ["France", ["France is a country. ", " Its capital is Paris."]],
        ["Kyoto", ["Kyoto is in Japan."]],
        ["Eiffel Tower", ["A tower.", " It is in France."]],
    ],
    "supporting_facts": [["France", 1], ["Eiffel Tower", 1], ["France", 0]],
}
WIKI_ROW: Row = {
    "_id": "w1",
    "question": "Who is the mother of the director of Film?",
    "answer": "Anna",
    "type": "compositional",
    "context": [
        ["Director", ["The son of Anna."]],
        ["Film", ["By Director, the son of Anna, too."]],
        ["Other", ["Nothing."]],
    ],
    "supporting_facts": [["Director", 0], ["Film", 0]],
    "evidences": [["Film", "director", "Director"], ["Director", "mother", "Anna"]],
}


def changed(row: Row, **changes: Any) -> Row:
    return {**deepcopy(row), **changes}


def without(row: Row, *fields: str) -> Row:
    return {key: value for key, value in row.items() if key not in fields}


def titles(question: Any) -> list[str]:
    return [question.documents[each].title for each in question.gold]


def test_musique_by_hand() -> None:
    (question,) = load_questions([MUSIQUE_ROW])
    assert (question.id, question.question) == ("2hop__1_2", MUSIQUE_ROW["question"])
    assert question.documents == (
        Document("Kyoto", "Kyoto is in Japan."),
        Document("France", "Its capital is Paris."),
        Document("Eiffel Tower", "It is in France."),
    )
    hops = [(hop.question, hop.answer, hop.document) for hop in question.hops]
    assert hops == [("Tower >> country", "France", 2), ("capital of #1", "Paris", 1)]
    assert question.gold == (2, 1)
    assert question.names == ("Paris", "Paname")
    assert question.ordered
    assert question.extra == {}


def test_paragraphs_are_put_in_the_order_of_their_numbers() -> None:
    row = changed(MUSIQUE_ROW, paragraphs=MUSIQUE_ROW["paragraphs"][::-1])
    assert load_questions([row])[0] == load_questions([MUSIQUE_ROW])[0]
    gaps = deepcopy(MUSIQUE_ROW)
    for paragraph in gaps["paragraphs"]:
        paragraph["idx"] = 10 * paragraph["idx"] + 5
    for step in gaps["question_decomposition"]:
        step["paragraph_support_idx"] = 10 * step["paragraph_support_idx"] + 5
    assert load_questions([gaps])[0] == load_questions([MUSIQUE_ROW])[0]


def test_other_fields_are_kept_and_ids_and_aliases_may_be_missing() -> None:
    row = changed(without(MUSIQUE_ROW, "id", "answer_aliases", "answerable"), source="x")
    second = changed(row, answer_aliases=None)
    first, other = load_questions([row, second])
    assert (first.id, other.id) == ("0", "1")
    assert first.aliases == other.aliases == ()
    assert first.extra == {"source": "x"}


def test_questions_that_are_not_answerable_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    unanswerable = changed(MUSIQUE_ROW, id="no", answerable=False)
    unanswerable["question_decomposition"][0]["paragraph_support_idx"] = None
    with caplog.at_level(logging.WARNING):
        questions = load_questions([unanswerable, MUSIQUE_ROW])
    assert [each.id for each in questions] == ["2hop__1_2"]
    assert "1 unanswerable questions are left out" in caplog.text
    with pytest.raises(QueryError, match="contains no answerable question"):
        load_questions([unanswerable])


def step_at(support: Any) -> list[Row]:
    steps = deepcopy(MUSIQUE_ROW["question_decomposition"])
    steps[1]["paragraph_support_idx"] = support
    return steps  # type: ignore[no-any-return]


def paragraph(**changes: Any) -> list[Row]:
    paragraphs = deepcopy(MUSIQUE_ROW["paragraphs"])
    paragraphs[1] |= changes
    return paragraphs  # type: ignore[no-any-return]


BROKEN = [
    ({"question_decomposition": step_at(3)}, "paragraph_support_idx 3 is out of range: .* 0 to 2"),
    ({"question_decomposition": step_at(-1)}, "paragraph_support_idx -1 is out of range"),
    ({"question_decomposition": step_at(None)}, "paragraph_support_idx None is out of range"),
    ({"question_decomposition": []}, "no question_decomposition"),
    ({"question_decomposition": None}, "no question_decomposition"),
    ({"question_decomposition": [{"question": "a", "answer": "b"}]}, "damaged .*KeyError"),
    ({"question_decomposition": 7}, "damaged"),
    ({"question_decomposition": ["a"]}, "damaged"),
    ({"paragraphs": []}, "out of range"),
    ({"paragraphs": paragraph(paragraph_text=" ")}, r"document 1 \('France'\) is empty"),
    ({"paragraphs": paragraph(idx="one")}, "damaged"),
    ({"paragraphs": ["text"]}, "damaged"),
    ({"paragraphs": None}, "damaged"),
    ({"answer": " "}, "has an empty answer"),
    ({"question": ""}, "has an empty question"),
    ({"question": None}, "its question must be a text, not None"),
    ({"answer": True}, "answer is True; expected a text or a number"),
    ({"answer": ["Paris"]}, "answer is .'Paris'.; expected a text or a number"),
    ({"answerable": "maybe"}, "answerable is 'maybe'; expected true or false"),
    ({"answer_aliases": "Paname"}, "column answer_aliases: cannot read the aliases 'Paname'"),
]


@pytest.mark.parametrize(("changes", "message"), BROKEN)
def test_a_row_of_musique_that_makes_no_question_is_told_with_its_number(
    changes: Row, message: str
) -> None:
    with pytest.raises(QueryError, match=f"rows, row 2.*{message}"):
        load_questions([MUSIQUE_ROW, changed(MUSIQUE_ROW, id="b", **changes)])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (without(MUSIQUE_ROW, "question"), "missing field question of the MuSiQue form"),
        (
            without(MUSIQUE_ROW, "question_decomposition", "question"),
            "missing fields question_decomposition, question of the MuS",
        ),
        (without(HOTPOT_ROW, "supporting_facts"), "missing field supporting_facts of the Hotpot"),
        ({}, "found no fields"),
        ({"text": "x"}, "found text"),
    ],
)
def test_missing_fields_are_named(row: Row, message: str) -> None:
    with pytest.raises(QueryError, match=f"rows, row 1: {message}|rows, row 1: .*{message}"):
        load_questions([row])


def test_rows_that_are_no_objects_are_refused() -> None:
    with pytest.raises(QueryError, match="row 2 must be an object with fields, not 'a text'"):
        from_rows([MUSIQUE_ROW, "a text"], "rows")  # type: ignore[list-item]
    with pytest.raises(QueryError, match="rows contains no questions"):
        load_questions([])


@pytest.mark.parametrize("number", range(60))
@pytest.mark.skipif(not MUSIQUE.is_file(), reason="the shared data are not beside this checkout")
def test_real_rows_of_musique_agree_with_their_file(number: int) -> None:
    row = read_rows(MUSIQUE)[number]
    question = load_questions(MUSIQUE)[number]
    assert (question.id, question.answer) == (row["id"], row["answer"])
    assert len(question.documents) == 20
    assert 2 <= len(question.gold) <= 4
    assert question.ordered
    for step, hop in zip(row["question_decomposition"], question.hops, strict=True):
        (gold,) = (p for p in row["paragraphs"] if p["idx"] == step["paragraph_support_idx"])
        document = question.documents[hop.document]
        assert (document.title, document.text) == (gold["title"], gold["paragraph_text"])
        assert (hop.question, hop.answer) == (step["question"], step["answer"])
    assert question.hops[-1].answer == row["answer"]
    supporting = {p["idx"] for p in row["paragraphs"] if p["is_supporting"]}
    assert set(question.gold) == supporting


def test_hotpot_by_hand() -> None:
    (question,) = load_questions([HOTPOT_ROW])
    assert question.id == "5a8b"
    assert question.documents == (
        Document("France", "France is a country. Its capital is Paris."),
        Document("Kyoto", "Kyoto is in Japan."),
        Document("Eiffel Tower", "A tower. It is in France."),
    )
    assert titles(question) == ["Eiffel Tower", "France"], "the one with the answer is the last"
    assert [hop.answer for hop in question.hops] == ["", "Paris"]
    assert question.ordered
    assert question.extra == {"type": "bridge", "level": "hard"}


def test_the_form_of_the_hub_is_the_same() -> None:
    hub = changed(
        without(HOTPOT_ROW, "_id"),
        id="5a8b",
        context={
            "title": [title for title, _ in HOTPOT_ROW["context"]],
            "sentences": [sentences for _, sentences in HOTPOT_ROW["context"]],
        },
        supporting_facts={
            "title": [title for title, _ in HOTPOT_ROW["supporting_facts"]],
            "sent_id": [number for _, number in HOTPOT_ROW["supporting_facts"]],
        },
    )
    assert load_questions([hub])[0] == load_questions([HOTPOT_ROW])[0]


def test_sentences_may_be_one_text() -> None:
    row = changed(HOTPOT_ROW, context=[[t, " ".join(s)] for t, s in HOTPOT_ROW["context"]])
    assert load_questions([row])[0].documents[1] == Document("Kyoto", "Kyoto is in Japan.")


def test_a_bridge_whose_answer_both_or_none_of_the_documents_hold_has_no_order(
    caplog: pytest.LogCaptureFixture,
) -> None:
    both = deepcopy(HOTPOT_ROW)
    both["context"][2][1].append("Paris, too.")
    neither = changed(HOTPOT_ROW, _id="n", answer="Lyon")
    with caplog.at_level(logging.WARNING):
        questions = load_questions([both, neither])
    assert [each.ordered for each in questions] == [False, False]
    assert [titles(each) for each in questions] == [["France", "Eiffel Tower"]] * 2
    assert "the order of the hops is unknown for 2 questions" in caplog.text


@pytest.mark.parametrize("kind", ["comparison", "bridge_comparison"])
@pytest.mark.parametrize("row", [HOTPOT_ROW, WIKI_ROW], ids=["hotpot", "2wiki"])
def test_comparisons_have_no_order(row: Row, kind: str) -> None:
    (question,) = load_questions([changed(row, type=kind)])
    assert not question.ordered
    facts = list(dict.fromkeys(title for title, _ in row["supporting_facts"]))
    assert titles(question) == facts


def test_a_single_gold_document_has_an_order_even_in_a_comparison() -> None:
    row = changed(HOTPOT_ROW, supporting_facts=[["Kyoto", 0]], type="comparison")
    (question,) = load_questions([row])
    assert question.ordered
    assert titles(question) == ["Kyoto"]


def test_the_chain_of_2wiki_is_that_of_its_evidences() -> None:
    (question,) = load_questions([WIKI_ROW])
    assert question.ordered
    assert titles(question) == ["Film", "Director"]
    assert question.hops[-1].answer == "Anna"


def test_evidences_that_do_not_name_all_gold_documents_leave_the_order_open() -> None:
    row = changed(WIKI_ROW, evidences=[["Film", "director", "Director"]])
    assert not load_questions([row])[0].ordered, "both documents hold the answer"
    other = deepcopy(row)
    other["context"][1][1] = ["By Director."]
    assert titles(load_questions([other])[0]) == ["Film", "Director"]


def test_evidences_may_name_other_subjects_and_four_documents() -> None:
    names = ["A", "B", "C", "D"]
    row = changed(
        WIKI_ROW,
        context=[[name, [f"{name}."]] for name in names],
        supporting_facts=[["D", 0], ["A", 0], ["C", 0], ["B", 0]],
        evidences=[[name, "r", "x"] for name in ("Z", "B", "D", "B", "A", "C")],
    )
    assert titles(load_questions([row])[0]) == ["B", "D", "A", "C"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"supporting_facts": [["Nowhere", 0]]}, "names 'Nowhere', which is not among"),
        ({"supporting_facts": []}, "is empty, so that a gold title is not among the documents"),
        ({"supporting_facts": None}, "damaged"),
        ({"context": []}, "which is not among"),
        ({"context": [["France", ["a"]], ["Eiffel Tower", []]]}, "'Eiffel Tower'. is empty"),
        ({"context": [["France"]]}, "damaged"),
        ({"context": {"title": ["France"], "sentences": []}}, "damaged"),
        ({"answer": ""}, "empty answer"),
    ],
)
def test_a_row_of_hotpot_that_makes_no_question_is_told_with_its_number(
    changes: Row, message: str
) -> None:
    with pytest.raises(QueryError, match=f"rows, row 1.*{message}"):
        load_questions([changed(HOTPOT_ROW, **changes)])


@pytest.mark.parametrize(
    ("row", "changes"),
    [(HOTPOT_ROW, {"context": {"title": ["France"]}}), (WIKI_ROW, {"evidences": [[]]})],
    ids=["no sentences", "an empty evidence"],
)
def test_damage_deep_inside_a_row_is_told_with_its_number(row: Row, changes: Row) -> None:
    with pytest.raises(QueryError, match="rows, row 1"):
        load_questions([changed(row, **changes)])


ROWS = [MUSIQUE_ROW, changed(MUSIQUE_ROW, id="no", answerable=False)]


def written(path: Path, rows: list[Row]) -> Path:
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n\n" for row in rows), "utf-8")
    else:
        content = {"data": rows} if "data" in path.stem else rows
        path.write_text(json.dumps(content), "utf-8")
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "data.json", "a.parquet"])
@pytest.mark.parametrize("row", [MUSIQUE_ROW, HOTPOT_ROW, WIKI_ROW], ids=["mus", "hot", "wiki"])
def test_every_kind_of_file_gives_the_same_questions(tmp_path: Path, name: str, row: Row) -> None:
    if name.endswith("parquet") and row is not MUSIQUE_ROW:
        pairs = {"context": ("title", "sentences"), "supporting_facts": ("title", "sent_id")}
        lists = {
            field: dict(zip(names, map(list, zip(*row[field], strict=True)), strict=True))
            for field, names in pairs.items()
        }
        rows = [changed(row, **lists)]
    else:
        rows = [row]
    assert load_questions(written(tmp_path / name, rows))[0] == load_questions([row])[0]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_what_is_not_answerable_is_left_out_of_every_kind_of_file(
    tmp_path: Path, name: str
) -> None:
    assert [each.id for each in load_questions(written(tmp_path / name, ROWS))] == ["2hop__1_2"]


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\u2029"])
def test_only_line_feeds_divide_the_rows_of_jsonl(tmp_path: Path, mark: str) -> None:
    row = changed(MUSIQUE_ROW, paragraphs=paragraph(paragraph_text=f"Its capital{mark}is Paris."))
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", "utf-8")
    assert load_questions(path)[0].documents[1].text == f"Its capital{mark}is Paris."


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"id": 1', "cannot be read as jsonl"),
        ("a.jsonl", b"\xff\xfe", "cannot be read as jsonl"),
        ("a.json", b"[", "cannot be read as json"),
        ("a.json", b'{"rows": []}', "cannot be read as json"),
        ("a.json", b"7", "cannot be read as json"),
        ("a.json", b"[]", "a contains no questions"),
        ("a.jsonl", b"\n", "a contains no questions"),
        ("a.jsonl", b"7\n", "a, row 1 must be an object with fields, not 7"),
        ("a.parquet", b"PAR1", "cannot be read as parquet"),
        ("a.csv", b"id\n", "expected a file that ends in .jsonl, .json, .parquet"),
        ("a", b"", "expected a file that ends in"),
    ],
)
def test_a_damaged_file_is_told_by_its_name(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(QueryError, match=message):
        load_questions(path)


@pytest.mark.parametrize(
    ("stated", "kept"),
    [
        *((each, True) for each in (True, "True", "true", 1, None, float("nan"), np.True_)),
        *((each, False) for each in (False, "False", " false", 0, np.False_)),
    ],
)
def test_answerable_may_be_written_as_text(stated: object, kept: bool) -> None:
    first = changed(MUSIQUE_ROW, id="first")
    questions = load_questions([first, changed(MUSIQUE_ROW, answerable=stated)])
    assert len(questions) == 1 + kept


def test_answers_and_aliases_may_be_numbers() -> None:
    row = changed(MUSIQUE_ROW, answer=1984, answer_aliases=[84, "MCMLXXXIV", None, 2.5])
    row["question_decomposition"][1]["answer"] = 1984
    (question,) = load_questions([row])
    assert question.answer == question.hops[1].answer == "1984"
    assert question.names == ("1984", "84", "MCMLXXXIV", "2.5")
    found = scores("in 1984", question.names)
    assert found["contained"]
    assert found["matched"]
    assert found["f1"] == pytest.approx(2 / 3)
    hotpot = changed(HOTPOT_ROW, answer=7)
    hotpot["context"][0][1].append("It has 7 gates.")
    hotpot["context"][2][1].append("It has 17 floors and 700 steps.")
    (question,) = load_questions([hotpot])
    assert (titles(question), question.ordered) == (["Eiffel Tower", "France"], True)


BRIDGE = (
    # the answer, what the first and the second gold document say, the order of the hops
    ("USA", "He was born in the USA.", "His school is in Jerusalem.", (1, 0)),
    ("USA", "His school is in Jerusalem.", "He was born in the USA.", (0, 1)),
    ("Niger", "It lies in Nigeria.", "Niger is a country.", (0, 1)),
    ("10", "It has 10,000 men.", "It has 10 men.", (0, 1)),
    ("São Paulo", "Not there.", "She lives in Sao Paulo.", (0, 1)),
    ("US", "He told us so.", "A school in the US.", (0, 1)),
    ("Niger", "Niger and Nigeria.", "The Niger.", None),
    ("no", "There is no tower.", "Another.", None),
    ("Yes", "Another.", "Yes is a band.", None),
)


@pytest.mark.parametrize(("answer", "first", "second", "order"), BRIDGE)
def test_the_last_hop_names_the_answer_as_words(
    answer: str, first: str, second: str, order: tuple[int, int] | None
) -> None:
    row = changed(
        HOTPOT_ROW,
        answer=answer,
        context=[["First", [first]], ["Second", [second]]],
        supporting_facts=[["First", 0], ["Second", 0]],
    )
    (question,) = load_questions([row])
    assert question.ordered == (order is not None)
    assert question.gold == (order or (0, 1))


def test_a_question_with_a_gold_title_of_two_documents_is_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    row = deepcopy(HOTPOT_ROW)
    row["context"].insert(0, ["France", ["Another France."]])
    row["_id"] = row["id"] = "ambiguous"
    (question,) = load_questions([row, HOTPOT_ROW])
    assert question.id != "ambiguous"
    assert "1 questions are left out" in caplog.text
    with pytest.raises(QueryError, match="no answerable question"):
        load_questions([row])
    row = deepcopy(HOTPOT_ROW)
    row["context"] += [["Kyoto", ["Another Kyoto."]]]
    assert len(load_questions([row])[0].documents) == 4, "that is no gold document"


def test_a_file_may_begin_with_a_byte_order_mark_and_hold_line_separators(tmp_path: Path) -> None:
    row = changed(MUSIQUE_ROW, question="Who\u2028is\x85it\u2029?")
    for name, text in {
        "a.jsonl": json.dumps(row, ensure_ascii=False) + "\r\n\r\n",
        "a.json": json.dumps([row], ensure_ascii=False),
    }.items():
        (tmp_path / name).write_text(text, "utf-8-sig")
        (question,) = load_questions(tmp_path / name)
        assert question.question == row["question"]


def test_two_fields_of_one_name_are_refused(tmp_path: Path) -> None:
    text = json.dumps(MUSIQUE_ROW).replace('"answer": "Paris"', '"answer": "x", "answer": "y"', 1)
    for name in ("a.jsonl", "a.json"):
        (tmp_path / name).write_text(text if name == "a.jsonl" else f"[{text}]")
        with pytest.raises(QueryError, match=f"{name} cannot be read as .*'answer'"):
            load_questions(tmp_path / name)


TEST_ROWS = {
    "MuSiQue": without(
        MUSIQUE_ROW, "answer", "answer_aliases", "answerable", "question_decomposition"
    ),
    "MuSiQue with hops": without(MUSIQUE_ROW, "answer", "answer_aliases"),
    "MuSiQue with nulls": changed(
        MUSIQUE_ROW, answer=None, answer_aliases=None, question_decomposition=None
    ),
    "HotpotQA": without(HOTPOT_ROW, "answer", "supporting_facts", "type"),
    "HotpotQA with gold documents": without(HOTPOT_ROW, "answer"),
}


@pytest.mark.parametrize("kind", TEST_ROWS)
def test_a_test_part_without_answers_can_be_ordered(kind: str) -> None:
    (question,) = load_questions([TEST_ROWS[kind]])
    assert (question.answer, question.names) == ("", ())
    assert arrange(question, "original") == (0, 1, 2)
    assert sorted(arrange(question, "shuffle_1")) == [0, 1, 2]
    assert arrange(question, [2, 0]) == (2, 0)
    known = kind in ("MuSiQue with hops",)
    assert question.ordered == known
    if known:
        assert question.gold == (2, 1)
    else:
        with pytest.raises(QueryError, match="the order of its hops is not known"):
            arrange(question, "forward")
    if "gold" not in kind and not known:
        assert question.gold == question.distractors == (), "which is which is unknown"


def test_rows_of_one_id_with_different_paragraphs_are_told_apart(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As in the full set of MuSiQue: an answerable question and one that is not."""
    first = without(MUSIQUE_ROW, "answer", "answerable", "question_decomposition")
    other = changed(first, paragraphs=first["paragraphs"][:2])
    questions = load_questions([first, other, changed(other, id="x")])
    assert [each.id for each in questions] == ["2hop__1_2", "2hop__1_2 (2)", "x"]
    assert "1 ids are those of several questions" in caplog.text
    with pytest.raises(QueryError, match="two questions have the id '2hop__1_2'"):
        load_questions([first, first])
    pair = [MUSIQUE_ROW, changed(other, answerable="False")]
    assert [each.id for each in load_questions(pair)] == ["2hop__1_2"]
