"""Provides load_questions(): loads a bundled set, a file, or a data set from the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hopscope.documents.question_set import QuestionSet
from hopscope.errors import QueryError, did_you_mean, of_type, whole_number

BUNDLED_QUESTION_SETS = {
    "world-docs": "invented",
    "world-docs-shared": "shared",
    "world-docs-real": "real",
}
"""The question sets that come with hopscope, each with the kind of names in its documents."""


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # raised for a name that is too long, for instance
        return False


def load_questions(
    source: str | Path | Sequence[Mapping[str, Any]] | QuestionSet,
    *,
    split: str | None = None,
    distractors: int = 4,
    seed: int = 0,
) -> QuestionSet:
    """Load questions over documents.

    The format of a file is recognised by its fields: *MuSiQue* (`paragraphs`,
    `question_decomposition`), *HotpotQA* and *2WikiMultihopQA* (`context`, `supporting_facts`).
    Questions that MuSiQue marks as unanswerable are left out.

    Args:
        source: "world-docs" (two-hop questions over short documents, with invented names, so that
            they cannot be answered from memory), "world-docs-shared" (each entity has one invented
            name in all questions) or "world-docs-real" (the same facts with real names); the path
            of a .jsonl, .json or .parquet file; the id of a data set on the Hugging Face hub; a
            sequence of mappings, one for each row; or a question set, which is returned as it is.
        split: split of a hub data set; by default its only split, or else "validation".
        distractors: for the bundled sets, the number of documents besides the two gold ones.
        seed: for the bundled sets, the seed of names, distractors and the original order.

    Raises:
        QueryError: for an unknown name, a missing file or field, a row that cannot be converted
            (the message gives its number), an empty set, or a hub that cannot be reached.

    Example:
        >>> load_questions("world-docs")[0].gold  # doctest: +SKIP
        (1, 3)
    """
    from hopscope.documents.formats import from_rows, read_rows
    from hopscope.queries.formats import read_hub

    if isinstance(source, QuestionSet):
        return source
    whole_number("distractors", distractors, least=0, error=QueryError)
    whole_number("seed", seed, error=QueryError)
    if isinstance(source, str) and source in BUNDLED_QUESTION_SETS:
        from hopscope.documents.world_docs import world_docs

        return world_docs(BUNDLED_QUESTION_SETS[source], distractors, seed, name=source)
    if not isinstance(source, str | Path):
        rows = of_type("source", source, Sequence, "a name, a path or a list of rows", QueryError)
        return from_rows(rows, "rows")
    path = Path(source)
    if _is_file(path):
        return from_rows(read_rows(path), path.stem)
    if isinstance(source, str) and source.count("/") == 1 and not path.suffix:
        return from_rows(list(read_hub(source, split, "validation")), source)
    raise QueryError(
        f"no question set {str(source)!r}: it is neither a bundled set "
        f"({', '.join(BUNDLED_QUESTION_SETS)}) nor a file that exists nor a hub id "
        f"(owner/name){did_you_mean(str(source), BUNDLED_QUESTION_SETS)}"
    )
