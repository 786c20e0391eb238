"""Provides load_queries(): loads a bundled set, a file, or a data set from the hub."""

from __future__ import annotations

import pkgutil
from importlib import resources
from pathlib import Path

import pandas as pd

from hopscope.errors import QueryError, did_you_mean
from hopscope.queries.formats import SUFFIXES, read_hub, read_table
from hopscope.queries.list_questions import world_lists
from hopscope.queries.query_set import QuerySet

BUNDLED_QUERY_SETS = {"world": 5, "world-lists": 5, "world-three-hops": 5, "world-four-hops": 5}
"""The query sets that come with hopscope, each with its default number of demonstrations."""
RESOLVERS = {"world": "hopscope.worlds.load:world_queries"}
"""By scheme, as in `world:NAME`, the function that loads its query sets. Like entry points they
are given by their address, and imported when the scheme is used."""


def load_queries(
    source: str | Path | pd.DataFrame | QuerySet,
    *,
    split: str | None = None,
    few_shot: int | None = None,
    hops: int | None = None,
) -> QuerySet:
    """Load a set of queries of two to four hops.

    The format of a table is recognised by its columns. *Hopping Too Late* (Biran et al. 2024) needs
    ``e{1,2,3}_label``, ``e{1,2,3}_aliases``, ``r1_template`` and ``r2_template``. *TwoHopFact*
    (Yang et al. 2024) needs ``e{1,2,3}.value`` and the prompts ``r1(e1).prompt``,
    ``r2(e2).prompt``, ``r2(r1(e1)).prompt``, from which the templates are extracted. Queries of
    three and four hops have the columns of Hopping Too Late for each further entity and relation
    (``e4_label``, ``e4_aliases``, ``r3_template``, …). All other columns are kept as ``extra``; a
    first column without a name becomes ``Unnamed: 0``. *MuSiQue* (Trivedi et al. 2022) needs
    ``question_decomposition``, ``paragraphs``, ``question`` and ``answer``: those of its questions
    that are chains are asked without their documents, in its own words.

    Args:
        source: "world", the bundled set; "world-lists", questions with several right answers, a row
            for each, as `rank_neighbours` takes them; "world-three-hops" and "world-four-hops",
            chains of the bundled facts; "world:NAME.SPLIT", the questions of one of
            `hopscope.worlds` (such as "world:two-hop-looped.first_hop_ood"); the path of a .csv,
            .parquet or .jsonl file; the id of a data set on the Hugging Face hub; a data frame;
            or a query set.
        split: split of a hub data set; by default its only split, or else "train".
        few_shot: number of demonstrations in each prompt. By default 5 for the bundled sets, 0
            for other tables, and unchanged for a query set.
        hops: keep the queries of so many hops alone; all of a set must have as many.

    Raises:
        QueryError: for an unknown name, a missing file or column, a row that cannot be converted
            (the message gives its number), an empty table, several numbers of hops, or a hub that
            cannot be reached.

    Example:
        >>> load_queries("world", few_shot=0)[0].first_hop()
        'The country containing Aarhus is'
    """
    queries, default = _load(source, split, hops)
    if hops not in (None, queries.n_hops):
        raise QueryError(
            f"{queries.name} has queries of {queries.n_hops} hops; {hops} were asked for"
        )
    k = default if few_shot is None else few_shot
    return queries if k == queries.few_shot else queries.with_few_shot(k)


def _load(source: object, split: str | None, hops: int | None) -> tuple[QuerySet, int]:
    """Load a source, and return its queries and its default number of demonstrations."""
    if isinstance(source, QuerySet):
        return source, source.few_shot
    if isinstance(source, pd.DataFrame):
        return QuerySet.from_pandas(source, hops=hops), 0
    if isinstance(source, str) and source == "world-lists":
        return QuerySet.from_pandas(world_lists(), source), BUNDLED_QUERY_SETS[source]
    if isinstance(source, str) and source in BUNDLED_QUERY_SETS:
        with resources.as_file(resources.files("hopscope.data") / f"{source}.csv") as path:
            return QuerySet.from_pandas(read_table(path), source), BUNDLED_QUERY_SETS[source]
    if not isinstance(source, str | Path):
        raise QueryError(
            f"cannot load queries from a {type(source).__name__}; give a name, a path, a hub id, "
            "a data frame or a query set"
        )
    scheme = source.partition(":")[0] if isinstance(source, str) else ""
    if scheme in RESOLVERS:
        return pkgutil.resolve_name(RESOLVERS[scheme])(source), 0
    path = Path(source)
    if _is_file(path):
        return QuerySet.from_pandas(read_table(path), path.stem, hops), 0
    if isinstance(source, str) and source.count("/") == 1 and path.suffix not in SUFFIXES:
        return QuerySet.from_datasets(read_hub(source, split, "train"), source, hops), 0
    raise QueryError(_not_found(path))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # raised for a name that is too long, for instance
        return False


def _not_found(path: Path) -> str:
    """Return the error message for a name that cannot be resolved."""
    in_folder = [str(each) for each in path.parent.glob("*") if each.suffix in SUFFIXES]
    return (
        f"no query set {str(path)!r}: it is neither a bundled set "
        f"({', '.join(BUNDLED_QUERY_SETS)}) nor a file that exists nor a hub id (owner/name)"
        f"{did_you_mean(str(path), [*BUNDLED_QUERY_SETS, *in_folder])}"
    )
