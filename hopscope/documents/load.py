"""Provides load_questions(): a bundled set, a file or a data set of the hub, by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hopscope.documents.question_set import QuestionSet
from hopscope.errors import QueryError

BUNDLED = {"world-docs": "invented", "world-docs-real": "real"}
"""The question sets that come with hopscope, each with the names that its documents use."""


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False


def load_questions(
    source: str | Path | Sequence[Mapping[str, Any]] | QuestionSet,
    *,
    split: str | None = None,
    distractors: int = 4,
    seed: int = 0,
) -> QuestionSet:
    """Load questions over documents.

    The form of a file is recognised by its fields: *MuSiQue* (`paragraphs`,
    `question_decomposition`), *HotpotQA* and *2WikiMultihopQA* (`context`, `supporting_facts`).
    Questions that MuSiQue marks as not answerable are left out.

    Args:
        source: "world-docs" (two-hop questions over short documents, with invented names that no
            memory can answer) or "world-docs-real" (the same facts with real names); the path of
            a .jsonl, .json or .parquet file; the id of a data set on the Hugging Face hub; rows
            as mappings; or a question set.
        split: which split of a hub data set; by default its only one, or "validation".
        distractors: for the bundled sets, how many documents beside the two gold ones.
        seed: for the bundled sets, of names, distractors and the original order.

    Raises:
        QueryError: for an unknown name, a missing file or field, a row that makes no question
            (with its number), no question, or a hub that cannot be reached.

    Example:
        >>> load_questions("world-docs")[0].gold  # doctest: +SKIP
        (1, 3)
    """
    from hopscope.documents.formats import from_rows, read_rows  # builds on this module
    from hopscope.queries.formats import read_hub

    if isinstance(source, QuestionSet):
        return source
    if isinstance(source, str) and source in BUNDLED:
        from hopscope.documents.world_docs import world_docs  # builds on this module

        return world_docs(BUNDLED[source], distractors, seed, name=source)
    if not isinstance(source, str | Path):
        return from_rows(source, "rows")
    path = Path(source)
    if _is_file(path):
        return from_rows(read_rows(path), path.stem)
    if isinstance(source, str) and source.count("/") == 1 and not path.suffix:
        return from_rows(list(read_hub(source, split, "validation")), source)
    near = difflib.get_close_matches(str(source), list(BUNDLED), n=2)
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    raise QueryError(
        f"no question set {str(source)!r}: it is neither a bundled set ({', '.join(BUNDLED)}) nor "
        f"a file that exists nor a hub id (owner/name){meant}"
    )
