"""Provides load_corpus(): the passages among which distractors are looked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hopscope.documents.formats import read_rows
from hopscope.documents.question_set import Document, QuestionSet
from hopscope.errors import QueryError
from hopscope.queries.formats import read_hub

TEXTS = ("text", "paragraph_text", "contents")
"""The fields that the text of a passage may stand in."""


@dataclass(frozen=True)
class Corpus:
    """Passages, each once.

    Attributes:
        passages: the passages.
        name: what the corpus is called in results.
    """

    passages: tuple[Document, ...]
    name: str = "corpus"

    def __post_init__(self) -> None:
        object.__setattr__(self, "passages", tuple(dict.fromkeys(self.passages)))
        if not self.passages:
            raise QueryError(f"{self.name} contains no passage; give at least one with a text")

    def __len__(self) -> int:
        return len(self.passages)

    def __repr__(self) -> str:
        return f"Corpus({self.name!r}, {len(self)} passages)"

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over titles, texts and links."""
        digest = hashlib.sha256()
        for each in self.passages:
            digest.update(json.dumps([each.title, each.text, each.links]).encode())
        return digest.hexdigest()


def corpus_of(questions: QuestionSet) -> Corpus:
    """The union of the documents of a set of questions, and of the set that it was taken from."""
    everywhere = (*questions.pool, *questions)
    passages = [document for question in everywhere for document in question.documents]
    return Corpus(tuple(passages), f"documents of {questions.name}")


Source = Corpus | str | Path | Iterable[Document | Mapping[str, Any]]
"""What a corpus is loaded from; a `datasets.Dataset` is an iterable of rows."""


def load_corpus(source: Source, *, split: str | None = None) -> Corpus:
    """Load the passages among which distractors are looked for.

    Args:
        source: the path of a .jsonl, .json or .parquet file; the id of a data set on the Hugging
            Face hub; a `datasets.Dataset`, or any sequence of rows or documents. A row has the text
            of a passage in `text`, `paragraph_text` or `contents`, and may have a `title` and
            `links`: the titles of the passages that it links to. A corpus is returned as it is.
        split: split of a hub data set; by default its only split, or else "train".

    Raises:
        QueryError: for a source that cannot be read, a row without a text (the message gives its
            number), or no row at all.

    Example:
        >>> load_corpus([{"title": "France", "text": "The capital of France is Paris."}])
        Corpus('rows', 1 passages)
    """
    if isinstance(source, Corpus):
        return source
    rows: Iterable[Any]
    if not isinstance(source, str | Path):
        rows, name = source, "rows"
    elif Path(source).is_file():
        rows, name = read_rows(Path(source)), Path(source).stem
    elif isinstance(source, str) and source.count("/") == 1 and not Path(source).suffix:
        rows, name = read_hub(source, split, "train"), source
    else:
        raise QueryError(
            f"no corpus {str(source)!r}: it is neither a file that exists (.jsonl, .json, "
            ".parquet) nor a hub id (owner/name)"
        )
    passages = (_passage(row, f"{name}, row {number}") for number, row in enumerate(rows, 1))
    return Corpus(tuple(passages), name)


def _passage(row: Any, where: str) -> Document:
    """Convert a row to a passage."""
    if isinstance(row, Document):
        return row
    if not isinstance(row, Mapping):
        raise QueryError(f"{where} must be an object with fields, not {row!r:.60}")
    text = next((row[name] for name in TEXTS if row.get(name) is not None), None)
    if not isinstance(text, str) or not text.strip():
        raise QueryError(
            f"{where} has no text: put it in one of the fields {', '.join(TEXTS)}; found "
            f"{', '.join(map(str, row)) or 'no fields'}"
        )
    links = row.get("links")
    if isinstance(links, str):
        raise QueryError(f"{where}: links must be a list of titles, not {links!r:.60}")
    return Document(
        str(row.get("title") or ""), text, None if links is None else tuple(map(str, links))
    )
