"""Questions over documents, and sets of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidoc import OTHER, QUESTION, question_of

from hopscope.documents.load import load_questions
from hopscope.documents.question_set import (
    DEMONSTRATION_DISTRACTORS,
    Document,
    Hop,
    MultiDocQuestion,
    QuestionSet,
)
from hopscope.errors import QueryError


def numbered(count: int, prefix: str = "q") -> tuple[MultiDocQuestion, ...]:
    """Questions that share no name, with two gold documents and three others."""
    return tuple(
        MultiDocQuestion(
            f"{prefix}{index}",
            f"Which of {index}?",
            f"{prefix} answer {index}",
            tuple(Document(f"{prefix} title {index}.{n}", f"Text {index}.{n}") for n in range(5)),
            (
                Hop("", f"{prefix} bridge {index}", 3),
                Hop("", f"{prefix} answer {index}", 1),
            ),
        )
        for index in range(count)
    )


def test_gold_documents_stand_in_the_order_of_the_hops_and_each_once() -> None:
    assert QUESTION.gold == (3, 1)
    assert QUESTION.distractors == (0, 2)
    assert question_of(6, [4, 1, 4, 0]).gold == (4, 1, 0)
    assert question_of(6, [4, 1, 4, 0]).distractors == (2, 3, 5)


def test_names_are_the_answer_and_its_aliases() -> None:
    assert replace(QUESTION, aliases=["Paname"]).names == ("Paris", "Paname")
    assert replace(QUESTION, aliases=["Paname"]).aliases == ("Paname",)


def test_titles_and_answers_are_mentioned_but_no_empty_name() -> None:
    unnamed = replace(QUESTION, hops=(Hop("", "", 3), Hop("", "Paris", 1)))
    assert QUESTION.mentioned == {"Kyoto", "France", "Rome", "the Tower", "Paris"}
    assert unnamed.mentioned == QUESTION.mentioned
    assert "" not in replace(unnamed, documents=(Document("", "a"),) * 4).mentioned


def test_an_answer_may_be_unknown_and_with_it_the_hops() -> None:
    unknown = replace(QUESTION, id="unknown", answer=" ", hops=())
    assert (unknown.answer, unknown.gold, unknown.distractors) == ("", (), ())
    assert not unknown.ordered
    assert replace(QUESTION, answer="").gold == QUESTION.gold
    shown = QuestionSet((QUESTION, unknown), few_shot=1)
    with pytest.raises(QueryError, match="only 0 others"):
        shown.demonstrations(replace(QUESTION, id="other"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": "  "}, "'tower' has an empty question"),
        ({"hops": ()}, "has no hop"),
        ({"hops": (Hop("", "", 4),)}, "hop 1 names document 4, .* documents 0 to 3"),
        ({"hops": (Hop("", "", 0), Hop("", "", -1))}, "hop 2 names document -1"),
        ({"documents": ()}, "hop 1 names document 3"),
        ({"documents": (Document("A", "x"), Document("B", " \n")) * 2}, r"document 1 \('B'\) is"),
    ],
)
def test_what_makes_no_question_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        replace(QUESTION, **changes)  # type: ignore[arg-type]


def test_dropping_distractors_numbers_the_hops_anew() -> None:
    shorter = QUESTION.without([0])
    assert [document.title for document in shorter.documents] == ["France", "Rome", "the Tower"]
    assert [hop.document for hop in shorter.hops] == [2, 0]
    assert QUESTION.without([0, 2]).gold == (1, 0)
    assert QUESTION.without([]) == QUESTION


def test_gold_documents_cannot_be_dropped() -> None:
    with pytest.raises(QueryError, match="gold documents cannot be dropped"):
        QUESTION.without([0, 1])


@given(st.integers(2, 8), st.data())
def test_hops_name_the_same_documents_after_dropping(n: int, data: st.DataObject) -> None:
    gold = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=3))
    question = question_of(n, gold)
    dropped = data.draw(st.lists(st.sampled_from([*question.distractors, n + 5]), unique=True))
    shorter = question.without(dropped)
    for before, after in zip(question.hops, shorter.hops, strict=True):
        assert shorter.documents[after.document] == question.documents[before.document]
    kept = [each for i, each in enumerate(question.documents) if i not in dropped]
    assert list(shorter.documents) == kept


def test_a_set_is_a_sequence() -> None:
    questions = QuestionSet(numbered(5), "five")
    assert len(questions) == 5
    assert [each.id for each in questions] == ["q0", "q1", "q2", "q3", "q4"]
    assert questions[-1].id == "q4"
    assert isinstance(questions[1:3], QuestionSet)
    assert [each.id for each in questions[1:3]] == ["q1", "q2"]
    assert questions[1:3].name == "five"
    assert repr(questions) == "QuestionSet('five', 5 questions, few_shot=0)"
    assert "Which of 4?" in questions._repr_html_()
    assert "<img" not in replace(questions, name="<img src=x onerror=alert(1)>")._repr_html_()


def test_ids_must_differ() -> None:
    with pytest.raises(QueryError, match="two questions have the id 'tower'"):
        QuestionSet((OTHER, QUESTION, QUESTION))


def test_a_negative_number_of_demonstrations_is_refused() -> None:
    with pytest.raises(QueryError, match="0 or more, not -1"):
        QuestionSet((QUESTION,)).with_few_shot(-1)


def test_filter_keeps_the_questions_for_which_it_is_true() -> None:
    questions = QuestionSet(numbered(4))
    assert [q.id for q in questions.filter(lambda q: q.id > "q1")] == ["q2", "q3"]
    assert len(questions.filter(lambda _: False)) == 0


def test_samples_are_seeded_and_keep_the_order_of_the_set() -> None:
    questions = QuestionSet(numbered(20))
    ids = [each.id for each in questions]
    sample = [each.id for each in questions.sample(8, seed=1)]
    assert sample == [each.id for each in questions.sample(8, seed=1)]
    assert sample != [each.id for each in questions.sample(8, seed=2)]
    assert [ids.index(each) for each in sample] == sorted(ids.index(each) for each in sample)
    assert len(set(sample)) == 8
    assert questions.sample(20) == questions


@pytest.mark.parametrize("n", [0, 3, -1])
def test_a_sample_has_at_least_one_question_and_no_more_than_there_are(n: int) -> None:
    with pytest.raises(QueryError, match="from 1 to 2"):
        QuestionSet(numbered(2)).sample(n)


def test_without_few_shot_there_are_no_demonstrations() -> None:
    assert QuestionSet(numbered(4)).demonstrations(QUESTION) == ()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_demonstrations_are_others_with_at_most_two_distractors(k: int) -> None:
    questions = QuestionSet(numbered(6)).with_few_shot(k)
    for question in questions:
        shown = questions.demonstrations(question)
        assert len({each.id for each in shown} - {question.id}) == k
        for each in shown:
            original = next(q for q in questions if q.id == each.id)
            assert len(each.distractors) == DEMONSTRATION_DISTRACTORS == 2
            assert [each.documents[g] for g in each.gold] == [
                original.documents[g] for g in original.gold
            ]


def test_demonstrations_share_no_name_with_the_question_or_each_other() -> None:
    asked, *others = numbered(5)
    same_answer = replace(others[0], answer=asked.answer)
    same_bridge = replace(others[1], hops=(Hop("", "q bridge 0", 3), others[1].hops[1]))
    title = others[2].documents[1].title
    twin = replace(others[2], id="twin", answer="another", question="Other?")
    questions = QuestionSet((asked, same_answer, same_bridge, others[2], twin, others[3]))
    for seed in range(20):
        shown = questions.with_few_shot(2, seed).demonstrations(asked)
        assert not {each.id for each in shown} & {same_answer.id, same_bridge.id}
        assert sum(title in each.mentioned for each in shown) == 1
    with pytest.raises(QueryError, match="only 2 others in questions share no name with it, and 3"):
        questions.with_few_shot(3).demonstrations(asked)


def test_demonstrations_come_from_the_whole_set_that_a_part_was_taken_from() -> None:
    questions = QuestionSet(numbered(6)).with_few_shot(3)
    whole = questions.demonstrations(questions[2])
    assert questions[2:3].demonstrations(questions[2]) == whole
    assert questions.filter(lambda q: q.id == "q2").demonstrations(questions[2]) == whole
    assert questions.sample(1).demonstrations(questions[2]) == whole


def test_the_choice_of_demonstrations_is_seeded() -> None:
    questions = QuestionSet(numbered(12)).with_few_shot(3, seed=1)
    ids = [each.id for each in questions.demonstrations(questions[0])]
    assert ids == [each.id for each in questions.demonstrations(questions[0])]
    others = {
        tuple(each.id for each in questions.with_few_shot(3, seed).demonstrations(questions[0]))
        for seed in range(5)
    }
    assert len(others) > 1
    more = questions.with_few_shot(5, seed=1).demonstrations(questions[0])
    assert [each.id for each in more][:3] == ids, "more demonstrations begin with the same"


def test_the_fingerprint_is_of_what_is_asked_not_of_the_name_or_other_fields() -> None:
    questions = QuestionSet((QUESTION, OTHER), "a")
    named = QuestionSet((replace(QUESTION, extra={"type": "x"}), OTHER), "b")
    assert questions.fingerprint == named.fingerprint
    assert len(questions.fingerprint) == 64


@pytest.mark.parametrize(
    "changes",
    [
        {"question": "Other?"},
        {"answer": "Other"},
        {"aliases": ("Paname",)},
        {"ordered": False},
        {"hops": QUESTION.hops[::-1]},
        {"documents": QUESTION.documents[::-1]},
        {"id": "other"},
    ],
    ids=str,
)
def test_the_fingerprint_changes_with_the_question(changes: dict[str, object]) -> None:
    changed = replace(QUESTION, **changes)  # type: ignore[arg-type]
    assert QuestionSet((changed,)).fingerprint != QuestionSet((QUESTION,)).fingerprint


def test_the_fingerprint_changes_with_the_order_and_with_the_demonstrations() -> None:
    questions = QuestionSet(numbered(4))
    prints = [
        questions,
        QuestionSet(tuple(questions)[::-1]),
        questions[:3],
        questions.with_few_shot(1),
        questions.with_few_shot(2),
        questions.with_few_shot(2, seed=1),
        questions[:2].with_few_shot(2),
        QuestionSet(questions.questions[:2], few_shot=2),
    ]
    assert len({each.fingerprint for each in prints}) == len(prints)


def test_the_pool_counts_only_where_there_are_demonstrations() -> None:
    questions = QuestionSet(numbered(4))
    assert questions[:2].fingerprint == QuestionSet(questions.questions[:2]).fingerprint


def test_a_question_set_is_returned_as_it_is() -> None:
    questions = QuestionSet((QUESTION,))
    assert load_questions(questions) is questions


@pytest.mark.parametrize(
    ("source", "meant"),
    [("world-dox", "did you mean world-docs"), ("nothing.jsonl", "nor a file that exists")],
)
def test_an_unknown_name_is_an_error_that_says_what_is_known(source: str, meant: str) -> None:
    with pytest.raises(QueryError, match=meant) as error:
        load_questions(source)
    assert "world-docs, world-docs-shared, world-docs-real" in str(error.value)


def test_a_path_is_never_the_name_of_a_bundled_set() -> None:
    with pytest.raises(QueryError, match="no question set"):
        load_questions(Path("world-docs"))


def test_a_file_is_called_after_its_stem(tmp_path: Path) -> None:
    row = {
        "question": "Who?",
        "answer": "B",
        "paragraphs": [{"idx": 0, "title": "A", "paragraph_text": "B"}],
        "question_decomposition": [{"question": "", "answer": "B", "paragraph_support_idx": 0}],
    }
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(row))
    assert load_questions(path).name == load_questions(str(path)).name == "mine"
    assert load_questions([row]).name == "rows"
    assert load_questions(path)[0] == load_questions([row])[0]


def test_a_name_that_no_file_can_have_is_an_unknown_name() -> None:
    with pytest.raises(QueryError, match="no question set"):
        load_questions("x" * 5000)
