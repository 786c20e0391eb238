"""Reads the decompositions of MuSiQue as chains that are asked without their documents."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hopscope.errors import QueryError
from hopscope.queries.multi_hop_query import MultiHopQuery
from hopscope.queries.query import MAX_HOPS, SLOT

COLUMNS = ("question_decomposition", "paragraphs", "question", "answer")
QUESTION, ENDING = "Question: ", "\nAnswer:"


def chain_of(row: Mapping[str, Any]) -> MultiHopQuery | None:
    """The chain of a row of MuSiQue (Trivedi et al. 2022), asked in closed book.

    Each hop is asked in the data set's own words ("Brand >> author", "What city was Pearl Jam
    formed in?"), and all of them in its whole question, which is not composed from these. The
    source entity is what stands before ">>", or the title of the first hop's gold document where it
    stands in the first question.

    Returns:
        The query; None if a hop needs anything but the answer of the one before, if the source
        entity cannot be told, if there are more than four hops, or if the row is marked as one that
        cannot be answered (which asks what another row asks).

    Raises:
        QueryError: if a field is missing or damaged.
    """
    try:
        steps = list(row["question_decomposition"])
        questions = [" ".join(str(step["question"]).split()) for step in steps]
        source = _source(questions[0], row["paragraphs"], steps[0]["paragraph_support_idx"])
        answers = [str(step["answer"]) for step in steps[:-1]] + [str(row["answer"])]
        aliases = tuple(str(alias) for alias in row.get("answer_aliases", ()))
    except (LookupError, TypeError, ValueError) as error:
        raise QueryError(f"no row of MuSiQue: {type(error).__name__}: {error}") from error
    templates = _templates(questions, source)
    if not source or templates is None or row.get("answerable") is False:
        return None
    n = len(templates)
    return MultiHopQuery(
        str(row.get("id", "")),
        (source, *answers),
        templates,
        aliases=(*((),) * n, aliases),
        endings=(ENDING,) * n,
        wording=f"{QUESTION}{' '.join(str(row['question']).split())}{ENDING}",
    )


def _source(question: str, paragraphs: Sequence[Mapping[str, Any]], gold: object) -> str:
    """The entity of the first question as it is written there; "" if it cannot be told."""
    before, arrow, _ = question.partition(" >> ")
    if arrow:
        return before
    title = str(paragraphs[int(str(gold))]["title"])
    found = re.search(re.escape(title), question, re.IGNORECASE) if title else None
    return found[0] if found else ""


def _templates(questions: Sequence[str], source: str) -> tuple[str, ...] | None:
    """The template of each hop; None if they are no chain."""
    asked = [questions[0].replace(source, SLOT, 1)]
    for number, question in enumerate(questions[1:], start=1):
        if re.findall(r"#\d", question) != [f"#{number}"]:
            return None
        asked.append(question.replace(f"#{number}", SLOT))
    one_slot = all(text.count(SLOT) == 1 for text in asked) and "#" not in questions[0]
    usable = one_slot and 2 <= len(asked) <= MAX_HOPS
    return tuple(f"{QUESTION}{text}" for text in asked) if usable else None
