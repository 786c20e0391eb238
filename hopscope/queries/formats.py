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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from hopscope.errors import QueryError
from hopscope.files import replacing
from hopscope.queries.answers import name_text
from hopscope.queries.two_hop_query import TwoHopQuery

if TYPE_CHECKING:
    import datasets  # type: ignore[import-untyped]

logger = logging.getLogger(__name__)

Row = dict[str, Any]

_ENTITIES = ("e1", "e2", "e3")
_INDEX = "Unnamed: 0"  # the name that pandas gives to a first column without one
COLUMNS = (
    *("id", "e1", "r1", "e2", "r2", "e3"),
    *("e1_label", "e2_label", "e3_label", "e1_aliases", "e2_aliases", "e3_aliases"),
    *("e1_type", "r1_type", "e2_type", "r2_type", "e3_type"),
    *("e1_popularity", "e2_popularity", "e3_popularity"),
    *("r1_template", "r2_template", "source_prompt"),
)
"""The columns of the Hopping Too Late CSV, in the order of that file."""
_ALIASES = tuple(f"{entity}_aliases" for entity in _ENTITIES)
_ENDINGS = ("r1_ending", "r2_ending")
_TEXTS = tuple(
    name
    for name in COLUMNS
    if "popularity" not in name and name not in (*_ALIASES, "source_prompt")
)
_REQUIRED = (*(f"{entity}_label" for entity in _ENTITIES), *_ALIASES, "r1_template", "r2_template")
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
            return pd.read_parquet(path)
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


def to_frame(queries: Iterable[TwoHopQuery]) -> pd.DataFrame:
    """Return queries in the columns of the Hopping Too Late CSV, followed by extra columns."""
    rows = [_to_row(query) for query in queries]
    names = list(dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)]))
    if _INDEX in names:
        names.insert(0, names.pop(names.index(_INDEX)))
    names = [name for name in names if "popularity" not in name or any(name in r for r in rows)]
    defaults = dict.fromkeys(_ENDINGS, " is")
    return pd.DataFrame({n: _column([row.get(n, defaults.get(n)) for row in rows]) for n in names})


def _to_row(query: TwoHopQuery) -> Row:
    row: Row = {name: getattr(query, name) for name in _TEXTS}
    row |= {name: repr(list(getattr(query, name))) for name in _ALIASES}
    row["source_prompt"] = query.two_hop()
    if (query.r1_ending, query.r2_ending) != (" is", " is"):
        row |= {name: getattr(query, name) for name in _ENDINGS}
    return row | dict(query.extra)


def from_frame(frame: pd.DataFrame, name: str) -> tuple[TwoHopQuery, ...]:
    """Convert a table in the Hopping Too Late or the TwoHopFact format to queries.

    Args:
        frame: the table, one row per query.
        name: name of the query set, which error messages mention.

    Raises:
        QueryError: for missing columns, an empty table, or a row that cannot be converted; the
            message gives its number.
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
    queries = []
    for number, values in enumerate(frame.itertuples(index=False, name=None), start=1):
        row = {column: _plain(value) for column, value in zip(columns, values, strict=True)}
        try:
            query = read(row, number)
        except QueryError as error:
            raise QueryError(f"{name}, row {number} below the header: {error}") from error
        if query.id in rows_of:
            raise QueryError(
                f"{name}, row {number} below the header: id {query.id!r} is already that of row "
                f"{rows_of[query.id]}; give each query a different id"
            )
        rows_of[query.id] = number
        queries.append(query)
    return tuple(queries)


def _reader(columns: Sequence[str], name: str) -> Callable[[Row, int], TwoHopQuery]:
    """Choose the conversion for a table by its columns."""
    missing = [column for column in _REQUIRED if column not in columns]
    missing_facts = [column for column in _FACT_REQUIRED if column not in columns]
    if not missing:
        return _from_row
    if not missing_facts:
        return _from_fact
    form = "Hopping Too Late"
    if len(missing_facts) / len(_FACT_REQUIRED) < len(missing) / len(_REQUIRED):
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
    fields: Row = {name: _text(row.pop(name, None)) for name in _TEXTS}
    fields["id"] = fields["id"] or str(number - 1)
    fields |= {name: parse_aliases(row.pop(name), name) for name in _ALIASES}
    fields |= {name: _text(row.pop(name)) for name in _ENDINGS if row.get(name) is not None}
    prompt = row.pop("source_prompt", None)
    query = TwoHopQuery(**fields, extra=row)
    if prompt and prompt.strip() != query.two_hop():
        logger.warning(
            "query %r: its templates give the prompt %r, which is used instead of its "
            "source_prompt %r",
            *(query.id, query.two_hop(), prompt),
        )
    return query


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
