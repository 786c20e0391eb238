"""Integrity of the bundled data set ``world``: each rule is a function that lists violations."""

from __future__ import annotations

import ast
import csv
import re
import subprocess
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from hopscope.queries.load import load_queries

Row = dict[str, str]
Check = Callable[[list[Row]], list[str]]

DATA = Path(__file__).resolve().parents[2] / "hopscope" / "data"
WORLD = DATA / "world.csv"
COLUMNS = [
    *("id", "e1", "r1", "e2", "r2", "e3", "e1_label", "e2_label", "e3_label"),
    *("e1_aliases", "e2_aliases", "e3_aliases"),
    *("e1_type", "r1_type", "e2_type", "r2_type", "e3_type"),
    *("r1_template", "r2_template", "source_prompt"),
]
TEMPLATE = re.compile(r"The [^{}]+ (of|in|by|containing|holding|using) \{\}")


def read_world() -> list[Row]:
    with WORLD.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def fold(text: str) -> str:
    marks = unicodedata.normalize("NFKD", text.casefold())
    return "".join(char for char in marks if not unicodedata.combining(char))


def says(prompt: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(fold(name))}(?!\w)", fold(prompt)) is not None


def names(row: Row, slot: str) -> list[str]:
    return [row[f"{slot}_label"], *ast.literal_eval(row[f"{slot}_aliases"])]


def lower_first(text: str) -> str:
    return text[0].lower() + text[1:]


def prompts(row: Row) -> dict[str, str]:
    r1, r2 = row["r1_template"], row["r2_template"]
    first = r1.format(row["e1_label"])
    bare = re.sub(r" \w+ \{\}$", "", r1)
    return {
        "two-hop": r2.format(lower_first(first)) + " is",
        "first-hop": first + " is",
        "second-hop": r2.format(row["e2_label"]) + " is",
        "entity shortcut": r2.format(row["e1_label"]) + " is",
        "relation shortcut": r2.format(lower_first(bare)) + " is",
    }


def repeated(keys: list[str]) -> list[str]:
    return [key for key, count in Counter(keys).items() if count > 1]


def repeated_ids(rows: list[Row]) -> list[str]:
    return repeated([row["id"] for row in rows])


def repeated_queries(rows: list[Row]) -> list[str]:
    return repeated([f"{row['e1']} {row['r1']} {row['r2']}" for row in rows])


def repeated_prompts(rows: list[Row]) -> list[str]:
    return repeated([row["source_prompt"].casefold() for row in rows])


def wrong_prompts(rows: list[Row]) -> list[str]:
    return [row["id"] for row in rows if row["source_prompt"] != prompts(row)["two-hop"]]


def wrong_templates(rows: list[Row]) -> list[str]:
    templates = {row[slot] for row in rows for slot in ("r1_template", "r2_template")}
    return sorted(text for text in templates if not TEMPLATE.fullmatch(text))


def empty_cells(rows: list[Row]) -> list[str]:
    return [row["id"] for row in rows if not all(cell.strip() for cell in row.values())]


def bad_alias_list(label: str, cell: str) -> bool:
    """Tell whether a cell is anything but a list of at least one real, distinct alias."""
    try:
        aliases = ast.literal_eval(cell)
    except (SyntaxError, ValueError):
        return True
    if not isinstance(aliases, list) or not aliases or label in aliases:
        return True
    if not all(isinstance(alias, str) for alias in aliases):
        return True
    stripped = all(alias == alias.strip() and len(alias) >= 2 for alias in aliases)
    return not stripped or len(set(aliases)) < len(aliases)


def bad_aliases(rows: list[Row]) -> list[str]:
    slots = ("e1", "e2", "e3")
    cells = [(row[f"{slot}_label"], row[f"{slot}_aliases"]) for row in rows for slot in slots]
    return [label for label, cell in dict.fromkeys(cells) if bad_alias_list(label, cell)]


def articles_without_bare_alias(rows: list[Row]) -> list[str]:
    labels = {name[0]: name for row in rows for s in ("e1", "e2", "e3") for name in [names(row, s)]}
    return [
        label
        for label, known in labels.items()
        if label.startswith("the ") and label[len("the ") :] not in known
    ]


def ambiguous_hops(rows: list[Row]) -> list[str]:
    objects: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        objects[row["e1"], row["r1"]].add(row["e2"])
        objects[row["e2"], row["r2"]].add(row["e3"])
    return [f"{key}: {sorted(found)}" for key, found in objects.items() if len(found) > 1]


def inconsistent_entities(rows: list[Row]) -> list[str]:
    cells: defaultdict[str, set[tuple[str, ...]]] = defaultdict(set)
    for row in rows:
        for slot in ("e1", "e2", "e3"):
            texts = (row[f"{slot}_{field}"] for field in ("label", "aliases", "type"))
            cells[row[slot]].add(tuple(texts))
    return [entity for entity, found in cells.items() if len(found) > 1]


def inconsistent_relations(rows: list[Row]) -> list[str]:
    cells: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
    for row in rows:
        for slot in ("r1", "r2"):
            cells[row[slot]].add((row[f"{slot}_type"], row[f"{slot}_template"]))
    return [relation for relation, found in cells.items() if len(found) > 1]


def shared_answer_names(rows: list[Row]) -> list[str]:
    owners: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        for name in names(row, "e3"):
            owners[row["r2"], fold(name)].add(row["e3"])
    return [f"{key}: {sorted(found)}" for key, found in owners.items() if len(found) > 1]


def answer_leaks(rows: list[Row]) -> list[str]:
    return [
        f"{row['id']}: {name} in {kind}"
        for row in rows
        for kind, prompt in prompts(row).items()
        if kind != "first-hop"
        for name in names(row, "e3")
        if says(prompt, name)
    ]


def bridge_leaks(rows: list[Row]) -> list[str]:
    return [
        f"{row['id']}: {name} in {kind}"
        for row in rows
        for kind in ("two-hop", "first-hop")
        for name in names(row, "e2")
        if says(prompts(row)[kind], name)
    ]


def loops(rows: list[Row]) -> list[str]:
    return [row["id"] for row in rows if len({row["e1"], row["e2"], row["e3"]}) < 3]


CHECKS: list[Check] = [
    repeated_ids,
    repeated_queries,
    repeated_prompts,
    wrong_prompts,
    wrong_templates,
    empty_cells,
    bad_aliases,
    articles_without_bare_alias,
    ambiguous_hops,
    inconsistent_entities,
    inconsistent_relations,
    shared_answer_names,
    answer_leaks,
    bridge_leaks,
    loops,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_world_obeys(check: Check) -> None:
    assert check(read_world()) == []


def sample() -> list[Row]:
    """Two sound rows that every check passes and that the tests below spoil."""
    tower = {
        "id": "eiffel-tower.country.capital",
        "e1": "eiffel-tower",
        "r1": "country",
        "e2": "france",
        "r2": "capital",
        "e3": "paris",
        "e1_label": "the Eiffel Tower",
        "e2_label": "France",
        "e3_label": "Paris",
        "e1_aliases": "['Eiffel Tower']",
        "e2_aliases": "['La France']",
        "e3_aliases": "['Paris, France']",
        "e1_type": "landmark",
        "r1_type": "location",
        "e2_type": "country",
        "r2_type": "national",
        "e3_type": "city",
        "r1_template": "The country containing {}",
        "r2_template": "The capital of {}",
        "source_prompt": "The capital of the country containing the Eiffel Tower is",
    }
    other = {
        "id": "krakow.country.capital",
        "e1": "krakow",
        "e2": "poland",
        "e3": "warsaw",
        "e1_label": "Kraków",
        "e2_label": "Poland",
        "e3_label": "Warsaw",
        "e1_aliases": "['Krakow']",
        "e2_aliases": "['Polska']",
        "e3_aliases": "['Warszawa']",
        "e1_type": "city",
        "source_prompt": "The capital of the country containing Kraków is",
    }
    return [tower, {**tower, **other}]


SPOILED: list[tuple[Check, Row]] = [
    (repeated_ids, {"id": "eiffel-tower.country.capital"}),
    (repeated_queries, {"e1": "eiffel-tower"}),
    (repeated_prompts, {"source_prompt": sample()[0]["source_prompt"].upper()}),
    (wrong_prompts, {"source_prompt": "The capital of Kraków is"}),
    (wrong_templates, {"r1_template": "The country containing"}),
    (wrong_templates, {"r2_template": "The {} capital of {}"}),
    (empty_cells, {"e3_type": " "}),
    (bad_aliases, {"e1_aliases": "[]"}),
    (bad_aliases, {"e1_aliases": "['K']"}),
    (bad_aliases, {"e1_aliases": "['Krakow', '']"}),
    (bad_aliases, {"e1_aliases": "Krakow"}),
    (bad_aliases, {"e1_aliases": "['Kraków']"}),
    (articles_without_bare_alias, {"e1_label": "the Wawel", "e1_aliases": "['Wawel Castle']"}),
    (ambiguous_hops, {"e1": "eiffel-tower"}),
    (ambiguous_hops, {"e2": "france"}),
    (inconsistent_entities, {"e1": "eiffel-tower"}),
    (inconsistent_relations, {"r2_template": "The seat of {}"}),
    (shared_answer_names, {"e3_aliases": "['PÁRIS']"}),
    (answer_leaks, {"e1_label": "the Warszawa tram"}),
    (answer_leaks, {"e2_label": "Greater Wársaw"}),
    (bridge_leaks, {"e1_label": "Polska Arena"}),
    (loops, {"e3": "krakow"}),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_check_passes_sound_rows(check: Check) -> None:
    assert check(sample()) == []


@pytest.mark.parametrize(("check", "change"), SPOILED)
def test_check_finds_spoiled_row(check: Check, change: Row) -> None:
    sound, other = sample()
    assert check([sound, {**other, **change}])


def test_every_check_is_seen_to_fail() -> None:
    assert {check for check, _ in SPOILED} == set(CHECKS)


def test_columns() -> None:
    header = WORLD.read_text(encoding="utf-8").splitlines()[0]
    assert header.split(",") == COLUMNS


def test_size_and_breadth() -> None:
    rows = read_world()
    assert len(rows) >= 1500
    assert len({(row["r1"], row["r2"]) for row in rows}) >= 20
    assert len({row["e1_type"] for row in rows}) >= 8
    assert WORLD.stat().st_size < 1_500_000


def test_no_answer_dominates() -> None:
    rows = read_world()
    _, most = Counter(row["e3"] for row in rows).most_common(1)[0]
    assert most <= 0.08 * len(rows)


def test_readme_counts() -> None:
    rows = read_world()
    counts = Counter((row["e1_type"], row["r1"], row["r2"]) for row in rows)
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| ([\w-]+) \| ([\w-]+) \| ([\w-]+) \| (\d+) \|$", readme, re.MULTILINE)
    assert {tuple(line[:3]): int(line[3]) for line in table} == dict(counts)


def test_readme_counts_the_chains() -> None:
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    counts = [len(load_queries(f"world-{n}-hops")) for n in ("three", "four")]
    assert f"{counts[0]} queries of three hops and {counts[1]} of four" in readme


def test_world_is_up_to_date() -> None:
    command = [sys.executable, "-m", "hopscope.queries.build_bundled", "--check"]
    assert subprocess.run(command, check=False).returncode == 0
