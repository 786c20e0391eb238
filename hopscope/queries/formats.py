"""Reads and writes tables of two-hop queries, in the formats of published data sets."""

from __future__ import annotations

import ast
import csv
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from hopscope.errors import QueryError
from hopscope.files import read_parquet, replacing
from hopscope.queries import musique
from hopscope.queries.answers import name_text
from hopscope.queries.multi_hop_query import MultiHopQuery
from hopscope.queries.query import MAX_HOPS, Query
from hopscope.queries.two_hop_query import TwoHopQuery

if TYPE_CHECKING:
    import datasets  # type: ignore[import-untyped]

logger = logging.getLogger(__name__)

Row = dict[str, Any]

_ENTITIES = ("e1", "e2", "e3")
_INDEX = "Unnamed: 0"  # the name that pandas gives to a first column without one


def columns_of(n: int) -> tuple[str, ...]:
    """The columns of queries of n hops, in the order of the Hopping Too Late CSV."""
    entities, relations = range(1, n + 2), range(1, n + 1)
    chain = [f"{kind}{k}" for k in entities for kind in ("e", "r")][:-1]
    return (
        "id",
        *chain,
        *(f"e{k}_label" for k in entities),
        *(f"e{k}_aliases" for k in entities),
        *(f"{part}_type" for part in chain),
        *(f"e{k}_popularity" for k in entities),
        *(f"r{k}_template" for k in relations),
        "source_prompt",
    )


def _texts_of(n: int) -> tuple[str, ...]:
    """The columns of queries of n hops that are texts which the prompts are made of."""
    drop = ("popularity", "aliases", "source_prompt")
    return tuple(name for name in columns_of(n) if not any(part in name for part in drop))


def _names_of(kind: str, what: str, n: int) -> tuple[str, ...]:
    """The columns of one part of each entity or relation of queries of n hops."""
    return tuple(f"{kind}{k}_{what}" for k in range(1, n + 1 + (kind == "e")))


def _required(n: int) -> tuple[str, ...]:
    """The columns that a table of queries of n hops must have."""
    parts = (("e", "label"), ("e", "aliases"), ("r", "template"))
    return tuple(name for part in parts for name in _names_of(*part, n))


COLUMNS = columns_of(2)
"""The columns of the Hopping Too Late CSV, in the order of that file."""
_TEXTS = _texts_of(MAX_HOPS)
_ALIASES = _names_of("e", "aliases", MAX_HOPS)
_ENDINGS = _names_of("r", "ending", MAX_HOPS)
_FACT_PROMPTS = ("r1(e1).prompt", "r2(e2).prompt", "r2(r1(e1)).prompt")
_FACT_REQUIRED = (*(f"{entity}.value" for entity in _ENTITIES), *_FACT_PROMPTS)
SUFFIXES = (".csv", ".parquet", ".jsonl")


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV, parquet or JSON-lines file, keeping text as written ("NA" is not missing).

    Raises:
        QueryError: if the file has another suffix, or cannot be parsed.
    """
    try:
        if path.suffix == ".parquet":
            return read_parquet(path)
        if path.suffix == ".jsonl":
            return pd.DataFrame(read_json_lines(path))
        if path.suffix == ".csv":
            return _read_csv(path)
    except (ValueError, OSError) as error:  # includes parse errors of pandas, json and pyarrow
        raise QueryError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error
    raise QueryError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}")


def read_json_lines(path: Path) -> list[Any]:
    """Read the values of a file with one JSON value a line.

    Raises:
        ValueError: if a line is none, or has two fields of one name.
    """
    # Not splitlines(), which also divides at characters that JSON allows within a text.
    lines = path.read_text("utf-8-sig").split("\n")
    return [parse_json(line) for line in lines if line.strip()]


def parse_json(text: str) -> Any:
    """Parse JSON in which no object has two fields of one name.

    Raises:
        ValueError: if it is none.
    """

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        refuse_repeats([name for name, _ in pairs])
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=distinct)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def refuse_repeats(names: Sequence[str]) -> None:
    """Raise ValueError if two columns or fields have the same name: which is meant is unknown."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"several of its columns are called {repeated[0]!r}; rename or drop one")


def read_hub(id: str, split: str | None, usual: str) -> datasets.Dataset:
    """Load a data set from the Hugging Face hub, or from its local cache.

    Args:
        id: the id of the data set, owner/name.
        split: the split; None for the only one, or for `usual` if there are several.
        usual: the default among several splits.

    Raises:
        QueryError: if the data set cannot be loaded, or if a split must be chosen.
    """
    import datasets

    try:
        loaded = datasets.load_dataset(id, split=split)
    except Exception as error:  # the hub client raises many unrelated types of errors
        raise QueryError(
            f"{id!r} is not a local file, and the hub data set of that name cannot be loaded "
            f"({type(error).__name__}: {error}); check the name, the split and the network, "
            "or download the file and give its path"
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        names = list(loaded)
        if len(names) > 1 and usual not in names:
            raise QueryError(f"{id!r} has the splits {', '.join(names)}: choose one with split=")
        loaded = loaded[names[0] if len(names) == 1 else usual]
    return loaded


def _read_csv(path: Path) -> pd.DataFrame:
    """Read a CSV: known columns as text, other columns with the type of their values."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        refuse_repeats([name for name in next(csv.reader(file), []) if name])
    text = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig").fillna("")
    if not isinstance(text.index, pd.RangeIndex):
        raise ValueError("its rows have more fields than its header")
    others = [str(name) for name in text.columns if name not in (*_TEXTS, *_ALIASES)]
    return text.assign(**{name: _typed(text[name]) for name in others if name != "source_prompt"})


def _typed(column: pd.Series[Any]) -> pd.Series[Any]:
    """Convert a column of text to booleans, integers or floats if every entry is one."""
    values = [value for value in column if value]
    read: Callable[[str], object] = str
    if values and all(value in ("True", "False") for value in values):
        read = "True".__eq__
    elif values and all(re.fullmatch(r"-?(0|[1-9]\d{0,17})", value) for value in values):
        read = int
    elif values and all(re.fullmatch(r"-?\d+\.\d*(e[+-]?\d+)?", value) for value in values):
        read = float
    if read is str:
        return column
    return _column([read(value) if value else None for value in column])


def _column(values: Sequence[object]) -> pd.Series[Any]:
    """Return a column in which integers and booleans keep their type despite missing values."""
    present = {type(value) for value in values if value is not None}
    if None in values and present in ({int}, {bool}):
        return pd.Series(values, dtype="Int64" if present == {int} else "boolean")
    return pd.Series(values, dtype="object" if len(present) > 1 or not present else None)


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a table of queries as CSV in UTF-8.

    Raises:
        QueryError: if the folder of `path` does not exist.
    """
    if not path.parent.is_dir():
        raise QueryError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    header = ["" if name == _INDEX else str(name) for name in frame.columns]
    with replacing(path) as temporary:
        frame.to_csv(temporary, index=False, header=header, lineterminator="\n", encoding="utf-8")


def to_frame(queries: Iterable[Query]) -> pd.DataFrame:
    """Return queries in the columns of the Hopping Too Late CSV, followed by extra columns.

    Those of three and four hops have the like columns of their further entities and relations.
    """
    listed = list(queries)
    rows = [_to_row(query) for query in listed]
    n = max((query.n_hops for query in listed), default=2)
    names = list(dict.fromkeys([*columns_of(n), *(name for row in rows for name in row)]))
    if _INDEX in names:
        names.insert(0, names.pop(names.index(_INDEX)))
    names = [name for name in names if "popularity" not in name or any(name in r for r in rows)]
    defaults = dict.fromkeys(_ENDINGS, " is")  # of rows beside one that has others
    return pd.DataFrame({n: _column([row.get(n, defaults.get(n)) for row in rows]) for n in names})


def _to_row(query: Query) -> Row:
    n = query.n_hops
    row: Row = {name: query.value(name) for name in _texts_of(n)}
    for entity, aliases in zip(query.entities, query.aliases, strict=True):
        row[f"{entity}_aliases"] = repr(list(aliases))
    row["source_prompt"] = query.compose()[0]
    if set(query.endings) != {" is"}:
        row |= {f"r{k}_ending": ending for k, ending in enumerate(query.endings, start=1)}
    if isinstance(query, MultiHopQuery) and query.wording:
        row["wording"] = query.wording
    return row | dict(query.extra)


def from_frame(frame: pd.DataFrame, name: str, hops: int | None = None) -> tuple[Query, ...]:
    """Convert a table to queries; for its format see `load_queries`.

    Args:
        frame: the table, one row per query.
        name: name of the query set, which error messages mention.
        hops: keep the queries of so many hops alone; if None, all must have as many.

    Raises:
        QueryError: for missing columns, an empty table, a row that cannot be converted (the
            message gives its number), or no query, or several kinds of them, by hops.
    """
    columns = [str(column) for column in frame.columns]
    try:
        refuse_repeats(columns)
    except ValueError as error:
        raise QueryError(f"{name}: {error}") from error
    read = _reader(columns, name)
    if frame.empty:
        raise QueryError(f"{name} holds no queries: the table has a header but no rows")
    rows_of: dict[str, int] = {}
    by_id, left_out = dict[str, Query](), 0
    for number, values in enumerate(frame.itertuples(index=False, name=None), start=1):
        row = {column: _plain(value) for column, value in zip(columns, values, strict=True)}
        try:
            query = read(row, number)
        except QueryError as error:
            raise QueryError(f"{name}, row {number} below the header: {error}") from error
        if query is None or (read is _from_musique and query == by_id.get(query.id)):
            left_out += 1  # MuSiQue asks some questions twice, about other documents
            continue
        if query.id in rows_of:
            raise QueryError(
                f"{name}, row {number} below the header: id {query.id!r} is already that of row "
                f"{rows_of[query.id]}; give each query a different id"
            )
        rows_of[query.id], by_id[query.id] = number, query
    if left_out:
        logger.warning(
            "%s: %d of %d rows are left out, since they are no chain of two to %d hops from an "
            "entity that their first question names, cannot be answered, or ask the same again",
            *(name, left_out, len(frame), MAX_HOPS),
        )
    return _of_hops(tuple(by_id.values()), name, hops)


def _of_hops(queries: Sequence[Query], name: str, hops: int | None) -> tuple[Query, ...]:
    """The queries of so many hops.

    Raises:
        QueryError: if there is none, or if they have different numbers and none was asked for.
    """
    counts = Counter(query.n_hops for query in queries)
    told = ", ".join(f"{count} of {n}" for n, count in sorted(counts.items())) or "none"
    if hops is None and len(counts) > 1:
        raise QueryError(
            f"{name} has queries of several numbers of hops ({told}); choose one with hops="
        )
    kept = tuple(query for query in queries if hops in (None, query.n_hops))
    if not kept:
        raise QueryError(f"{name} has no query of {hops or 'two to four'} hops: it has {told}")
    return kept


def _reader(columns: Sequence[str], name: str) -> Callable[[Row, int], Query | None]:
    """Choose the conversion for a table by its columns."""
    if all(column in columns for column in musique.COLUMNS):
        return _from_musique
    n = max([2, *(k for k in range(3, MAX_HOPS + 1) if f"r{k}_template" in columns)])
    missing = [column for column in _required(n) if column not in columns]
    missing_facts = [column for column in _FACT_REQUIRED if column not in columns]
    if not missing:
        return _from_row if n == 2 else _from_chain
    if not missing_facts:
        return _from_fact
    form = "Hopping Too Late"
    if len(missing_facts) / len(_FACT_REQUIRED) < len(missing) / len(_required(n)):
        form, missing = "TwoHopFact", missing_facts
    raise QueryError(
        f"{name}: missing column{'s' * (len(missing) > 1)} {', '.join(missing)} of the {form} "
        f"format; found {', '.join(columns) or 'no columns'}"
    )


def _plain(value: Any) -> Any:
    """Return a cell as a plain Python value; a missing value becomes None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    missing = value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))
    return None if missing else value


def _text(value: object) -> str:
    """Return a cell as text; an integer that missing values turned into 57.0 becomes 57 again.

    Raises:
        QueryError: for a list, or anything else that has parts.
    """
    if value is None:
        return ""
    if isinstance(value, Container) and not isinstance(value, str):
        raise QueryError(f"{value!r:.60} stands where one text is expected")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def parse_aliases(value: object, column: str) -> tuple[str, ...]:
    """Read aliases from a list or from the text of one; nested lists are joined.

    The text is that of a Python or JSON list, or of a numpy array, which has no commas.

    Args:
        value: the cell.
        column: name of its column, which error messages mention.

    Raises:
        QueryError: if the cell is none of these.
    """
    parsed = _parsed_list(value) if isinstance(value, str) else value
    if parsed is None:
        return ()
    aliases = _flat(parsed)
    if not isinstance(parsed, list | tuple) or not all(map(_is_alias, aliases)):
        shown = repr(value) if len(repr(value)) < 80 else repr(value)[:76] + " ..."
        raise QueryError(
            f"column {column}: cannot read the aliases {shown}; expected a list such as "
            "['Paris', 'City of Light'], or []"
        )
    return aliases


def _parsed_list(text: str) -> object:
    """Parse the text of a list; any other text is returned as it is."""
    if not text.strip():
        return []
    try:
        return ast.literal_eval(_with_commas(text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text


_ITEM = re.compile(
    r"""[uU]?(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|[\[\](),]|[^\s\[\](),'"]+""", re.DOTALL
)


def _with_commas(text: str) -> str:
    """Put commas between the items of a numpy array: Python would join texts without them.

    Raises:
        ValueError: if two items touch, so that it is unknown whether they are one.
    """
    parts, before = [""], None
    for item in _ITEM.finditer(text):
        apart = before and before[0] not in ("[", "(", ",") and item[0] not in ("]", ")", ",")
        if apart and before and before.end() == item.start():
            raise ValueError("two items touch")
        parts += [","] * bool(apart) + [text[before.end() if before else 0 : item.end()]]
        before = item
    return "".join([*parts, text[before.end() if before else 0 :]])


def _is_alias(value: object) -> bool:
    """Return whether a value is a name, or stands for a missing one."""
    return isinstance(value, str) or _plain(value) is None or name_text(value) is not None


def _flat(part: Any) -> tuple[Any, ...]:
    """Return the elements of nested lists and arrays in order."""
    if hasattr(part, "tolist"):
        part = part.tolist()
    if isinstance(part, list | tuple):
        return tuple(alias for inner in part for alias in _flat(inner))
    return (part,)


def _from_row(row: Row, number: int) -> TwoHopQuery:
    """Convert a row in the Hopping Too Late format (Biran et al. 2024)."""
    fields, prompt = _fields(row, number, 2)
    query = TwoHopQuery(**fields, extra=row)
    _warn_of_other_prompt(query, prompt)
    return query


def _from_chain(row: Row, number: int) -> MultiHopQuery:
    """Convert a row with more relations; it has as many hops as it has templates."""
    n = sum(bool(row.get(name)) for name in _names_of("r", "template", MAX_HOPS))
    fields, prompt = _fields(row, number, n)
    for name in (*_TEXTS, *_ALIASES, *_ENDINGS):
        row.pop(name, None)  # those of hops that the row does not have
    query = MultiHopQuery(
        fields["id"],
        tuple(fields[name] for name in _names_of("e", "label", n)),
        tuple(fields[name] for name in _names_of("r", "template", n)),
        aliases=tuple(fields[name] for name in _names_of("e", "aliases", n)),
        entity_ids=tuple(fields[f"e{k}"] for k in range(1, n + 2)),
        relation_ids=tuple(fields[f"r{k}"] for k in range(1, n + 1)),
        entity_types=tuple(fields[name] for name in _names_of("e", "type", n)),
        relation_types=tuple(fields[name] for name in _names_of("r", "type", n)),
        endings=tuple(fields.get(name, " is") for name in _names_of("r", "ending", n)),
        wording=_text(row.pop("wording", None)),
        extra=row,
    )
    _warn_of_other_prompt(query, prompt)
    return query


def _fields(row: Row, number: int, n: int) -> tuple[Row, object]:
    """The parts of a query of n hops, taken out of a row, and the prompt that it gives."""
    fields: Row = {name: _text(row.pop(name, None)) for name in _texts_of(n)}
    fields["id"] = fields["id"] or str(number - 1)
    fields |= {name: parse_aliases(row.pop(name), name) for name in _names_of("e", "aliases", n)}
    endings = _names_of("r", "ending", n)
    fields |= {name: _text(row.pop(name)) for name in endings if row.get(name) is not None}
    return fields, row.pop("source_prompt", None)


def _warn_of_other_prompt(query: Query, prompt: object) -> None:
    """Warn if the table gives a query another prompt than its templates."""
    composed = query.compose()[0]
    if prompt and str(prompt).strip() != composed.strip():
        logger.warning(
            "query %r: its templates give the prompt %r, which is used instead of its "
            "source_prompt %r",
            *(query.id, composed, prompt),
        )


def _from_musique(row: Row, number: int) -> MultiHopQuery | None:
    """Convert a row of MuSiQue; None if it is no chain."""
    query = musique.chain_of(row)
    return query if query is None or query.id else replace(query, id=str(number - 1))


def _from_fact(row: Row, number: int) -> TwoHopQuery:
    """Convert a row in the TwoHopFact format (Yang et al. 2024), which has prompts, not templates.

    The templates are extracted from the three prompts, which they must reproduce exactly.
    """
    fields: Row = {"id": _text(row.pop("uid", None)) or str(number - 1)}
    for entity in _ENTITIES:
        fields[f"{entity}_label"] = _text(row.pop(f"{entity}.value"))
        aliases = parse_aliases(row.pop(f"{entity}.aliases", None), f"{entity}.aliases")
        fields[f"{entity}_aliases"] = aliases
        fields[entity] = _first(row, entity, ("wikidata_id", "wikidata_qid", "qid"))
    for part in (*_ENTITIES, "r1", "r2"):
        fields[f"{part}_type"] = _first(row, part, ("type", "category", "rough_category"))
    prompts = [_text(row.pop(name)).strip() for name in _FACT_PROMPTS]
    query = TwoHopQuery(**fields | _templates(prompts, fields), extra=row)
    composed = [query.first_hop(), query.second_hop(), query.two_hop()]
    for name, given, own in zip(_FACT_PROMPTS, prompts, composed, strict=True):
        if given != own:
            raise QueryError(
                f"column {name}: {given!r} does not fit the row's other prompts, which give {own!r}"
            )
    return query


def _first(row: Row, part: str, names: Sequence[str]) -> str:
    """Return the first non-empty value among several columns about an entity or relation."""
    values = (_text(row.get(f"{part}.{name}")) for name in names)
    return next((value for value in values if value), "")


def _templates(prompts: Sequence[str], labels: Row) -> Row:
    """Extract the templates from the prompts r1(e1), r2(e2) and r2(r1(e1)).

    The two-hop prompt is the second-hop prompt with a phrase in place of e2, and the first-hop
    prompt begins with that phrase.
    """
    first, second, both = prompts
    e1, e2 = labels["e1_label"], labels["e2_label"]
    for match in re.finditer(re.escape(e2), second):
        before, after = second[: match.start()], second[match.end() :]
        phrase = both[len(before) : len(both) - len(after)]
        if both != before + phrase + after or e1 not in phrase:
            continue
        if first[:1].lower() + first[1 : len(phrase)] != phrase[:1].lower() + phrase[1:]:
            continue
        opening, _, closing = first[: len(phrase)].rpartition(e1)
        return {
            "r1_template": f"{opening}{{}}{closing}",
            "r1_ending": first[len(phrase) :],
            "r2_template": f"{before}{{}}{after.removesuffix(' is')}",
            "r2_ending": " is" if after.endswith(" is") else "",
        }
    raise QueryError(
        f"columns {', '.join(_FACT_PROMPTS)}: the two-hop prompt {both!r} is not {second!r} with "
        f"the phrase of {first!r} about {e1!r} in place of {e2!r}"
    )
