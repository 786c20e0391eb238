"""Reads questions over documents in the formats of MuSiQue, HotpotQA and 2WikiMultihopQA."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hopscope.documents.question_set import Document, Hop, MultiDocQuestion, QuestionSet
from hopscope.errors import QueryError
from hopscope.files import read_parquet
from hopscope.queries.answers import matches, name_text, normalise
from hopscope.queries.formats import (
    parse_aliases,
    parse_json,
    read_json_lines,
    refuse_repeats,
)

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
MUSIQUE = ("paragraphs", "question_decomposition", "question", "answer")
HOTPOT = ("context", "supporting_facts", "question", "answer")
_KNOWN_WITH_ANSWER = ("answer", "question_decomposition", "supporting_facts")
SUFFIXES = (".jsonl", ".json", ".parquet")


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a .jsonl, .json or .parquet file.

    Raises:
        QueryError: if the file has another suffix, or cannot be parsed.
    """
    try:
        if path.suffix == ".parquet":
            table = read_parquet(path)
            refuse_repeats([str(name) for name in table.columns])
            return [{str(key): row[key] for key in row} for row in table.to_dict("records")]
        if path.suffix == ".jsonl":
            return read_json_lines(path)
        if path.suffix == ".json":
            content = parse_json(path.read_text("utf-8-sig"))
            return list(content if isinstance(content, list) else content["data"])
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise QueryError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error
    raise QueryError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}")


def from_rows(rows: Sequence[Row], name: str) -> QuestionSet:
    """Convert rows in one of the formats to questions, leaving out unanswerable ones.

    MuSiQue asks some questions twice under one id, about different paragraphs, and the test part
    does not tell which can be answered: the second is then called "ID (2)".

    Args:
        rows: one mapping for each question.
        name: name of the question set, which error messages mention.

    Raises:
        QueryError: if there are no rows, if the format is unknown, or if a row cannot be
            converted; the message gives its number.
    """
    if not rows:
        raise QueryError(f"{name} contains no questions")
    questions, unanswerable, ambiguous = [], 0, 0
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise QueryError(f"{name}, row {number} must be an object with fields, not {row!r:.60}")
        try:
            if not _answerable(row):
                unanswerable += 1
                continue
            questions.append(_reader(row)(_plain(row), number))
        except _AmbiguousError:
            ambiguous += 1
        except QueryError as error:
            raise QueryError(f"{name}, row {number}: {error}") from error
        except (LookupError, TypeError, ValueError, AttributeError, StopIteration) as error:
            raise QueryError(
                f"{name}, row {number} is damaged ({type(error).__name__}: {error})"
            ) from error
    questions = _distinct(questions, name)
    if unanswerable:
        logger.warning("%s: %d unanswerable questions are left out", name, unanswerable)
    if ambiguous:
        logger.warning(
            "%s: %d questions are left out, since several of their documents have the title of a "
            "gold one",
            *(name, ambiguous),
        )
    unordered = sum(not question.ordered for question in questions)
    if unordered:
        logger.warning(
            "%s: the order of the hops is unknown for %d questions, which therefore cannot be put "
            "in a forward or backward order",
            *(name, unordered),
        )
    if not questions:
        raise QueryError(f"{name} contains no answerable question")
    return QuestionSet(tuple(questions), name)


def _distinct(questions: Sequence[MultiDocQuestion], name: str) -> list[MultiDocQuestion]:
    """Give questions that share an id and differ otherwise ids of their own."""
    same_id: dict[str, list[MultiDocQuestion]] = {}
    renamed = []
    for question in questions:
        before = same_id.setdefault(question.id, [])
        number = len(before) + 1 if question not in before else 1
        before.append(question)
        renamed.append(
            question if number == 1 else replace(question, id=f"{question.id} ({number})")
        )
    twice = sum(len(each) > 1 for each in same_id.values())
    if twice:
        logger.warning("%s: %d ids are those of several questions", name, twice)
    return renamed


def _answerable(row: Row) -> bool:
    """Return whether a row says that its question can be answered; one that says nothing can."""
    stated = row.get("answerable")
    if stated is None or stated != stated:
        return True
    for value in (True, False):
        if stated == value or str(stated).strip().lower() == str(value).lower():
            return value
    raise QueryError(f"answerable is {stated!r}; expected true or false")


def _plain(value: Any) -> Any:
    """Convert the arrays that parquet files contain to lists, at any depth."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _reader(row: Row) -> Callable[[Row, int], MultiDocQuestion]:
    """Choose the conversion for a row by its fields.

    Rows without an answer are those of a test part, which do not tell the gold documents either.
    """
    optional = _KNOWN_WITH_ANSWER if row.get("answer") is None else ()
    missing = {
        form: [name for name in fields if name not in row and name not in optional]
        for form, fields in {"MuSiQue": MUSIQUE, "HotpotQA or 2WikiMultihopQA": HOTPOT}.items()
    }
    if not missing["MuSiQue"]:
        return _from_musique
    if not missing["HotpotQA or 2WikiMultihopQA"]:
        return _from_hotpot
    form = min(missing, key=lambda name: len(missing[name]))
    raise QueryError(
        f"missing field{'s' * (len(missing[form]) > 1)} {', '.join(missing[form])} of the {form} "
        f"format; found {', '.join(map(str, row)) or 'no fields'}"
    )


def _answer(row: Row) -> str:
    """Return the answer of a row as text; an empty text if it has none.

    Raises:
        QueryError: if it has one that is empty, or no name.
    """
    stated = row.get("answer")
    if stated is None:
        return ""
    answer = name_text(stated)
    if answer is None:
        raise QueryError(f"answer is {stated!r}; expected a text or a number")
    if not answer.strip():
        raise QueryError("it has an empty answer; leave the field out if it is unknown")
    return answer


def _from_musique(row: Row, number: int) -> MultiDocQuestion:
    """Convert a MuSiQue row (Trivedi et al. 2022)."""
    paragraphs = sorted(row["paragraphs"], key=lambda each: each["idx"])
    places = {each["idx"]: index for index, each in enumerate(paragraphs)}
    if len(places) < len(paragraphs):
        raise QueryError("two paragraphs have the same idx")
    steps, answer = row.get("question_decomposition") or (), _answer(row)
    if answer and not steps:
        raise QueryError("it has no question_decomposition, so the chain of hops is unknown")
    hops = []
    for step in steps:
        support = step["paragraph_support_idx"]
        if support not in places:
            raise QueryError(
                f"paragraph_support_idx {support} is out of range: the paragraphs are "
                f"{min(places, default=0)} to {max(places, default=0)}"
            )
        hops.append(Hop(step["question"], step["answer"], places[support]))
    known = {*MUSIQUE, "id", "answer_aliases", "answerable"}
    return MultiDocQuestion(
        id=str(row.get("id", number - 1)),
        question=row["question"],
        answer=answer,
        documents=tuple(Document(each["title"], each["paragraph_text"]) for each in paragraphs),
        hops=tuple(hops),
        aliases=parse_aliases(row.get("answer_aliases"), "answer_aliases"),
        extra={key: value for key, value in row.items() if key not in known},
    )


class _AmbiguousError(Exception):
    """A row that does not say which of its documents are the gold ones."""


def _from_hotpot(row: Row, number: int) -> MultiDocQuestion:
    """Convert a row of HotpotQA (Yang et al. 2018) or 2WikiMultihopQA (Ho et al. 2020)."""
    answer = _answer(row)
    documents = [Document(title, _joined(sentences)) for title, sentences in _pairs(row["context"])]
    titles = [document.title for document in documents]
    facts = row["supporting_facts"] if answer else row.get("supporting_facts") or ()
    gold = list(dict.fromkeys(title for title, _ in _pairs(facts)))
    unknown = [title for title in gold if title not in titles]
    if any(titles.count(title) > 1 for title in gold):
        raise _AmbiguousError
    if unknown or (answer and not gold):
        problem = (
            f"names {unknown[0]!r}, which is" if unknown else "is empty, so that a gold title is"
        )
        raise QueryError(f"supporting_facts {problem} not among the documents of its context")
    chain, ordered = _chain(row, answer, gold, documents)
    hops = [Hop("", "", titles.index(title)) for title in chain]
    hops[-1:] = [Hop("", answer, hop.document) for hop in hops[-1:]]
    known = {*HOTPOT, "id", "_id", "answer_aliases"}
    return MultiDocQuestion(
        id=str(row.get("_id", row.get("id", number - 1))),
        question=row["question"],
        answer=answer,
        documents=tuple(documents),
        hops=tuple(hops),
        aliases=parse_aliases(row.get("answer_aliases"), "answer_aliases"),
        ordered=ordered,
        extra={key: value for key, value in row.items() if key not in known},
    )


def _pairs(value: Any) -> list[tuple[str, Any]]:
    """Return pairs of a title and its content.

    Files have a list of pairs; data sets on the hub have one list of titles and one of contents.
    """
    if isinstance(value, Mapping):
        content_key = next(key for key in value if key != "title")
        return list(zip(value["title"], value[content_key], strict=True))
    return [(title, content) for title, content in value]


def _joined(sentences: Any) -> str:
    if isinstance(sentences, str):
        return sentences
    return " ".join(sentence.strip() for sentence in sentences)


def _chain(
    row: Row, answer: str, gold: Sequence[str], documents: Sequence[Document]
) -> tuple[Sequence[str], bool]:
    """Return the gold titles in the order of the hops, and whether that order is known.

    2WikiMultihopQA gives the chain as `evidences`, whose subjects are titles. In a HotpotQA
    question of type `bridge`, the last hop is the only gold document that names the answer.
    Comparison questions, and those that are answered by yes or no, have no order.
    """
    if "comparison" in str(row.get("type", "")) or len(gold) < 2:
        return gold, len(gold) < 2
    subjects = [evidence[0] for evidence in row.get("evidences") or ()]
    if set(gold) <= set(subjects):
        return [title for title in dict.fromkeys(subjects) if title in gold], True
    if not answer or normalise(answer) in ("yes", "no"):
        return gold, False
    texts = {document.title: document.text for document in documents}
    last = [title for title in gold if matches(texts[title], [answer])]
    if len(gold) == 2 and len(last) == 1:
        return [*(title for title in gold if title not in last), *last], True
    return gold, False
