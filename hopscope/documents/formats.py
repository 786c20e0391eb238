"""Reads questions over documents in the forms of MuSiQue, HotpotQA and 2WikiMultihopQA."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hopscope.documents.question_set import Document, Hop, MultiDocQuestion, QuestionSet
from hopscope.errors import QueryError
from hopscope.queries.answers import squashed

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
MUSIQUE = ("paragraphs", "question_decomposition", "question", "answer")
HOTPOT = ("context", "supporting_facts", "question", "answer")
SUFFIXES = (".jsonl", ".json", ".parquet")


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a file.

    Raises:
        QueryError: for another kind of file, or one that cannot be parsed.
    """
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
            return [{str(key): row[key] for key in row} for row in table.to_dict("records")]
        if path.suffix == ".jsonl":
            lines = path.read_text("utf-8").split("\n")  # other breaks may stand in strings
            return [json.loads(line) for line in lines if line.strip()]
        if path.suffix == ".json":
            content = json.loads(path.read_text("utf-8"))
            return list(content if isinstance(content, list) else content["data"])
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise QueryError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error
    raise QueryError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}")


def from_rows(rows: Sequence[Row], name: str) -> QuestionSet:
    """The questions of rows in one of the forms; those that are not answerable are left out.

    Raises:
        QueryError: for no rows, an unknown form, or a row that makes no question.
    """
    if not rows:
        raise QueryError(f"{name} holds no questions")
    questions, unanswerable = [], 0
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise QueryError(f"{name}, row {number} is no object but {row!r:.60}")
        if row.get("answerable", True) is False:
            unanswerable += 1
            continue
        try:
            questions.append(_reader(row)(_plain(row), number))
        except QueryError as error:
            raise QueryError(f"{name}, row {number}: {error}") from error
        except (LookupError, TypeError, ValueError, AttributeError, StopIteration) as error:
            raise QueryError(
                f"{name}, row {number} is damaged ({type(error).__name__}: {error})"
            ) from error
    if unanswerable:
        logger.warning("%s: %d questions that are not answerable are left out", name, unanswerable)
    unordered = sum(not question.ordered for question in questions)
    if unordered:
        logger.warning(
            "%s: of %d questions the order of the hops is not known; forward and backward orders "
            "are not possible for them",
            *(name, unordered),
        )
    if not questions:
        raise QueryError(f"{name} holds no question that is answerable")
    return QuestionSet(tuple(questions), name)


def _plain(value: Any) -> Any:
    """Arrays, as parquet gives them, as lists."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _reader(row: Row) -> Callable[[Row, int], MultiDocQuestion]:
    """Recognise the form of a row by its fields."""
    missing = {
        form: [name for name in fields if name not in row]
        for form, fields in {"MuSiQue": MUSIQUE, "HotpotQA or 2WikiMultihopQA": HOTPOT}.items()
    }
    if not missing["MuSiQue"]:
        return _from_musique
    if not missing["HotpotQA or 2WikiMultihopQA"]:
        return _from_hotpot
    form = min(missing, key=lambda name: len(missing[name]))
    raise QueryError(
        f"missing field{'s' * (len(missing[form]) > 1)} {', '.join(missing[form])} of the {form} "
        f"form; found {', '.join(map(str, row)) or 'no fields'}"
    )


def _from_musique(row: Row, number: int) -> MultiDocQuestion:
    paragraphs = sorted(row["paragraphs"], key=lambda each: each["idx"])
    places = {each["idx"]: index for index, each in enumerate(paragraphs)}
    if len(places) < len(paragraphs):
        raise QueryError("two of its paragraphs have the same idx")
    steps = row["question_decomposition"]
    if not steps:
        raise QueryError("it has no question_decomposition, so the chain of hops is not known")
    hops = []
    for step in steps:
        support = step["paragraph_support_idx"]
        if support not in places:
            raise QueryError(
                f"paragraph_support_idx {support} is out of range: there are paragraphs "
                f"{min(places, default=0)} to {max(places, default=0)}"
            )
        hops.append(Hop(step["question"], step["answer"], places[support]))
    known = {*MUSIQUE, "id", "answer_aliases", "answerable"}
    return MultiDocQuestion(
        id=str(row.get("id", number - 1)),
        question=row["question"],
        answer=row["answer"],
        documents=tuple(Document(each["title"], each["paragraph_text"]) for each in paragraphs),
        hops=tuple(hops),
        aliases=tuple(row.get("answer_aliases") or ()),
        extra={key: value for key, value in row.items() if key not in known},
    )


def _from_hotpot(row: Row, number: int) -> MultiDocQuestion:
    documents = [Document(title, _joined(sentences)) for title, sentences in _pairs(row["context"])]
    titles = [document.title for document in documents]
    gold = list(dict.fromkeys(title for title, _ in _pairs(row["supporting_facts"])))
    unknown = [title for title in gold if title not in titles]
    if unknown or not gold:
        what = f"names {unknown[0]!r}, which is" if unknown else "names none,"
        raise QueryError(f"supporting_facts {what} not among the documents of its context")
    chain, ordered = _chain(row, gold, documents)
    hops = [Hop("", "", titles.index(title)) for title in chain]
    hops[-1] = Hop("", row["answer"], hops[-1].document)
    known = {*HOTPOT, "id", "_id", "answer_aliases"}
    return MultiDocQuestion(
        id=str(row.get("_id", row.get("id", number - 1))),
        question=row["question"],
        answer=row["answer"],
        documents=tuple(documents),
        hops=tuple(hops),
        aliases=tuple(row.get("answer_aliases") or ()),
        ordered=ordered,
        extra={key: value for key, value in row.items() if key not in known},
    )


def _pairs(value: Any) -> list[tuple[str, Any]]:
    """Pairs of a title and what belongs to it: as a list of pairs, or (the hub) two lists."""
    if isinstance(value, Mapping):
        other = next(key for key in value if key != "title")
        return list(zip(value["title"], value[other], strict=True))
    return [(title, content) for title, content in value]


def _joined(sentences: Any) -> str:
    if isinstance(sentences, str):
        return sentences
    return " ".join(sentence.strip() for sentence in sentences)


def _chain(
    row: Row, gold: Sequence[str], documents: Sequence[Document]
) -> tuple[Sequence[str], bool]:
    """The gold titles in the order of the hops, and whether that order is known.

    2WikiMultihopQA gives the chain as `evidences`, whose subjects are titles. Of a HotpotQA
    question of type `bridge` the document that alone holds the answer is the last hop.
    Comparisons have no order.
    """
    if "comparison" in str(row.get("type", "")) or len(gold) < 2:
        return gold, len(gold) < 2
    subjects = [evidence[0] for evidence in row.get("evidences") or ()]
    if set(gold) <= set(subjects):
        return [title for title in dict.fromkeys(subjects) if title in gold], True
    answer = squashed(row["answer"])
    texts = {document.title: squashed(document.text) for document in documents}
    holding = [title for title in gold if answer and answer in texts[title]]
    if len(gold) == 2 and len(holding) == 1:
        return [*(title for title in gold if title not in holding), *holding], True
    return gold, False
