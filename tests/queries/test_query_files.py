"""Tests of query_files.py: tables of queries are read exactly, written whole, refused clearly."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopscope.errors import QueryError
from hopscope.queries.formats import parse_aliases
from hopscope.queries.load import load_queries
from hopscope.queries.query_set import QuerySet

SHARED = Path(__file__).parents[3] / "shared" / "data"

HOPPING = '''\
,id,e1,r1,e2,r2,e3,e1_label,e2_label,e3_label,e1_aliases,e2_aliases,e3_aliases,e1_type,r1_type,\
e2_type,r2_type,e3_type,e1_popularity,e2_popularity,e3_popularity,r1_template,r2_template,\
source_prompt,first_hop_correct,second_hop_correct,composition_correct,entity_shortcut_correct,\
relation_shortcut_correct
26,263,Q440,P27,Q298,P36,Q2887,Salvador Allende,Chile,Santiago,"['Allende', 'Chicho']","['CHI', \
'cl', '🇨🇱', 'República de Chile', 'CL']","['Santiago, Chile']",human,country of citizenship,\
country,capital,city,250.0,47117.0,6344.0,the country of citizenship of {},the capital of {},\
the capital of the country of citizenship of Salvador Allende is,True,True,False,False,False
7,0547,Q1,P2,Q3,P4,Q5,Null,NA,"O'Neill, ""Ed""",[],"[""L'Été"", 'NA']",[''],,,,,,1.0,,2.5,the work \
that features {},the author of {},the author of the work that features Null is,True,,False,False,\
True
'''

FACTS: list[dict[str, Any]] = [
    {
        "uid": 1,
        "fact_comp_type": "birthcity of novel's author",
        "category": "book-author-birthcity",
        "e1.value": "Nineteen Eighty-Four",
        "e1.category": "novel",
        "e2.value": "George Orwell",
        "e2.aliases": "(('George Orwell', 'Eric Blair'), ('Orwell',))",
        "e2.category": "human",
        "e3.value": "Motihari",
        "e3.aliases": "(('Motihari',),)",
        "e1.wikidata_qid": "Q208460",
        "r1(e1).prompt": "The author of the novel Nineteen Eighty-Four is",
        "r2(e2).prompt": "George Orwell was born in the city of",
        "r2(r1(e1)).prompt": "The author of the novel Nineteen Eighty-Four was born in the city of",
    },
    {
        "uid": 2,
        "category": "song-singer-mother",
        "e1.value": "Superstition",
        "e2.value": "Stevie Wonder",
        "e2.aliases": "()",
        "e3.value": "Lula",
        "r1(e1).prompt": "The singer of 'Superstition' is",
        "r2(e2).prompt": "The name of the mother of Stevie Wonder is",
        "r2(r1(e1)).prompt": "The name of the mother of the singer of 'Superstition' is",
    },
]


@pytest.fixture
def hopping(tmp_path: Path) -> Path:
    path = tmp_path / "hopping.csv"
    path.write_text(HOPPING, encoding="utf-8")
    return path


def facts_csv(path: Path, rows: Iterable[dict[str, Any]] = FACTS) -> Path:
    pd.DataFrame(list(rows)).to_csv(path, index=False)
    return path


def changed(path: Path, column: str, value: str, row: int = 2) -> Path:
    """Write one cell of a CSV anew; row 1 is the first below the header."""
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
    rows[row][rows[0].index(column)] = value
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_hopping_too_late_fields(hopping: Path) -> None:
    allende, odd = load_queries(hopping)
    assert allende.id == "263"
    assert (allende.e1, allende.r2, allende.e2_type) == ("Q440", "P36", "country")
    assert allende.e2_aliases == ("CHI", "cl", "🇨🇱", "República de Chile", "CL")
    assert allende.two_hop() == "the capital of the country of citizenship of Salvador Allende is"
    assert allende.extra["composition_correct"] is False
    assert allende.extra["e2_popularity"] == 47117.0
    assert (odd.id, odd.e1_label, odd.e2_label, odd.e1_type) == ("0547", "Null", "NA", "")
    assert odd.e3_aliases == ("",)
    assert odd.names("e3") == ('O\'Neill, "Ed"',)
    assert odd.extra["second_hop_correct"] is None
    assert odd.relation_shortcut() == "the author of the work is"


def test_a_csv_comes_back_byte_for_byte(hopping: Path, tmp_path: Path) -> None:
    load_queries(hopping).to_csv(tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_text(encoding="utf-8") == HOPPING


def test_the_column_names_are_those_of_the_csv(hopping: Path) -> None:
    frame = load_queries(hopping).to_pandas()
    assert list(frame.columns) == list(pd.read_csv(hopping).columns)
    assert list(load_queries("world", few_shot=0).to_pandas().columns)[:6] == [
        *("id", "e1", "r1", "e2", "r2", "e3")
    ]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not beside this checkout")
@pytest.mark.parametrize("kind", ["correct", "incorrect"])
def test_all_of_the_shared_data_round_trips(kind: str, tmp_path: Path) -> None:
    path = SHARED / f"hopping_too_late.llama3-8b.{kind}.csv"
    queries = load_queries(path)
    queries.to_csv(tmp_path / "again.csv")
    original = path.read_bytes().replace(b"\r\n", b"\n")
    assert (tmp_path / "again.csv").read_bytes() == original
    rows = list(csv.DictReader(io.StringIO(original.decode())))
    assert [query.two_hop() for query in queries] == [row["source_prompt"] for row in rows]
    assert [query.id for query in queries] == [row["id"] for row in rows]
    for query in queries:
        shortcut = query.relation_shortcut()
        assert "  " not in shortcut
        assert query.e1_label not in shortcut
        assert shortcut.endswith((*(f"{end} is" for end in RELATION_ENDS),)), shortcut


RELATION_ENDS = [
    *("author", "capital", "company", "composer", "citizenship", "origin", "developer"),
    *("director", "employer", "father", "founder", "state", "location", "formation", "work"),
    *("mother", "owner", "performer", "producer", "publisher", "label", "screenwriter"),
    *("spouse", "officer"),
]


def test_the_other_files_and_tables_read_the_same(hopping: Path, tmp_path: Path) -> None:
    queries = load_queries(hopping)
    frame = queries.to_pandas()
    frame.to_parquet(tmp_path / "q.parquet")
    frame.to_json(tmp_path / "q.jsonl", orient="records", lines=True, force_ascii=False)
    for path in (tmp_path / "q.parquet", tmp_path / "q.jsonl"):
        assert load_queries(path).queries == queries.queries
        assert load_queries(str(path)).name == "q"
    assert load_queries(frame).queries == queries.queries
    assert QuerySet.from_datasets(queries.to_datasets()).queries == queries.queries


def test_alias_lists_may_be_json_or_lists(hopping: Path, tmp_path: Path) -> None:
    path = changed(hopping, "e1_aliases", '["Un", "b\\u00e9", null]')
    assert load_queries(path)[1].e1_aliases == ("Un", "bé", None)  # type: ignore[comparison-overlap]
    assert load_queries(path)[1].names("e1") == ("Null", "Un", "bé")
    frame = load_queries(hopping).to_pandas()
    frame["e1_aliases"] = [["a", "b"], []]
    assert load_queries(frame)[0].e1_aliases == ("a", "b")
    frame.to_parquet(tmp_path / "lists.parquet")
    assert load_queries(tmp_path / "lists.parquet")[0].e1_aliases == ("a", "b")


def test_columns_that_may_be_left_out(hopping: Path) -> None:
    needed = [
        *("e1_label", "e2_label", "e3_label", "e1_aliases", "e2_aliases", "e3_aliases"),
        *("r1_template", "r2_template"),
    ]
    queries = load_queries(load_queries(hopping).to_pandas()[needed])
    assert [query.id for query in queries] == ["0", "1"]
    assert queries[0].e1 == queries[0].e1_type == ""


def test_a_source_prompt_that_is_not_what_is_asked_is_told(
    hopping: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_queries(hopping)
    assert not caplog.records
    load_queries(changed(hopping, "source_prompt", "who wrote it?"))
    assert "who wrote it?" in caplog.text


def test_whole_numbers_beside_gaps_stay_whole(hopping: Path, tmp_path: Path) -> None:
    path = changed(changed(hopping, "e1_popularity", "3", 1), "e1_popularity", "", 2)
    queries = load_queries(path)
    assert [query.extra["e1_popularity"] for query in queries] == [3, None]
    queries.to_csv(tmp_path / "again.csv")
    assert ",city,3,47117.0," in (tmp_path / "again.csv").read_text(encoding="utf-8")


def test_two_hop_fact_asks_its_own_prompts(tmp_path: Path) -> None:
    queries = load_queries(facts_csv(tmp_path / "TwoHopFact.csv"))
    for query, row in zip(queries, FACTS, strict=True):
        assert query.first_hop() == row["r1(e1).prompt"]
        assert query.second_hop() == row["r2(e2).prompt"]
        assert query.two_hop() == row["r2(r1(e1)).prompt"]
        assert query.id == str(row["uid"])
        assert query.extra["category"] == row["category"]
    orwell, wonder = queries
    assert orwell.e2_aliases == ("George Orwell", "Eric Blair", "Orwell")
    assert (orwell.e1, orwell.e1_type, orwell.e2_type) == ("Q208460", "novel", "human")
    assert orwell.entity_shortcut() == "Nineteen Eighty-Four was born in the city of"
    assert orwell.relation_shortcut() == "The author was born in the city of"
    assert wonder.relation_shortcut() == "The name of the mother of the singer is"
    assert wonder.r2_template == "The name of the mother of {}"
    prompt = queries.prompts()[1]
    start, end = prompt.spans["t1"]
    assert prompt.text[start:end] == "the singer of 'Superstition'"


def test_two_hop_fact_is_written_in_our_form_and_read_again(tmp_path: Path) -> None:
    queries = load_queries(facts_csv(tmp_path / "facts.csv"))
    queries.to_csv(tmp_path / "ours.csv")
    again = load_queries(tmp_path / "ours.csv")
    assert [query.two_hop() for query in again] == [query.two_hop() for query in queries]
    assert again.queries == queries.queries


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("r2(r1(e1)).prompt", "The birthplace of the writer of the novel is"),
        ("r1(e1).prompt", "Who wrote Nineteen Eighty-Four? It was"),
        ("r2(e2).prompt", "He was born in the city of"),
        (
            "r2(r1(e1)).prompt",
            "the author of the novel Nineteen Eighty-Four was born in the city of",
        ),
    ],
)
def test_two_hop_fact_prompts_that_do_not_fit_are_refused(
    column: str, value: str, tmp_path: Path
) -> None:
    path = facts_csv(tmp_path / "facts.csv", [FACTS[1], FACTS[0] | {column: value}])
    with pytest.raises(QueryError, match="facts, row 2 below the header: column"):
        load_queries(path)


def test_missing_columns_are_named_with_those_found(hopping: Path, tmp_path: Path) -> None:
    frame = load_queries(hopping).to_pandas()
    with pytest.raises(
        QueryError, match=r"missing columns e2_label, r1_template .* found .*id, e1"
    ):
        load_queries(frame.drop(columns=["e2_label", "r1_template"]))
    facts = [{k: v for k, v in row.items() if k != "r2(e2).prompt"} for row in FACTS]
    with pytest.raises(
        QueryError, match=r"missing column r2\(e2\).prompt of the TwoHopFact format"
    ):
        load_queries(facts_csv(tmp_path / "facts.csv", facts))


NO_ALIASES = (
    *("['a'", "a, b", "7", "{'a': 1}", "__import__('os')", "nan"),
    *("[b'x']", "['it''s']", "['a' ... 'b']", "[True]", "[{}]", "[nan 'x']"),
)


@pytest.mark.parametrize("value", NO_ALIASES)
def test_unreadable_aliases_are_named_by_row_and_column(value: str, hopping: Path) -> None:
    with pytest.raises(QueryError, match=r"hopping, row 2 below the header: column e3_aliases"):
        load_queries(changed(hopping, "e3_aliases", value))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("id", "263", r"row 2 .*id '263' is already that of row 1"),
        ("r1_template", "the work", r"row 2 .*r1_template is 'the work'.*exactly one \{\}"),
        ("r2_template", "", r"row 2 .*r2_template is ''"),
        ("e3_label", "", r"row 2 .*e3_label is empty"),
    ],
)
def test_broken_rows_are_named(column: str, value: str, message: str, hopping: Path) -> None:
    with pytest.raises(QueryError, match=message):
        load_queries(changed(hopping, column, value))


def test_empty_tables_are_refused(hopping: Path, tmp_path: Path) -> None:
    (tmp_path / "header.csv").write_text(HOPPING.split("\n")[0] + "\n", encoding="utf-8")
    with pytest.raises(QueryError, match=r"header holds no queries"):
        load_queries(tmp_path / "header.csv")
    (tmp_path / "nothing.csv").write_text("")
    with pytest.raises(QueryError, match=r"nothing.csv cannot be read as csv"):
        load_queries(tmp_path / "nothing.csv")
    (tmp_path / "nothing.jsonl").write_text("")
    with pytest.raises(QueryError, match="found no columns"):
        load_queries(tmp_path / "nothing.jsonl")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("latin.csv", HOPPING.encode("latin-1", "replace") + b"\xff\xfe"),
        ("ragged.csv", HOPPING.encode() + b"1,2,3" + b",x" * 40 + b"\n"),
        ("wide.csv", b"a,b\n1,2,3\n"),
        ("broken.parquet", b"PAR1 and no more"),
        ("broken.jsonl", b'{"id": 1\n'),
    ],
)
def test_files_that_cannot_be_parsed_are_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(QueryError, match=f"{name} cannot be read as"):
        load_queries(tmp_path / name)


def test_a_short_row_is_refused(hopping: Path) -> None:
    hopping.write_text(HOPPING + "1,2,3\n", encoding="utf-8")
    with pytest.raises(QueryError, match="row 3 below the header"):
        load_queries(hopping)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "queries.xlsx").write_bytes(b"")
    with pytest.raises(QueryError, match=r"ends in .csv, .parquet, .jsonl"):
        load_queries(tmp_path / "queries.xlsx")


def test_a_failed_write_leaves_the_old_file_and_no_other(
    hopping: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = load_queries(hopping)

    def fail(self: pd.DataFrame, path: Path, **options: object) -> None:
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_csv", fail)
    with pytest.raises(OSError, match="disk full"):
        queries.to_csv(hopping)
    assert hopping.read_text(encoding="utf-8") == HOPPING
    assert list(tmp_path.iterdir()) == [hopping]
    with pytest.raises(QueryError, match="no folder"):
        queries.to_csv(tmp_path / "no" / "where.csv")


def test_a_file_is_replaced_never_written_over(hopping: Path, tmp_path: Path) -> None:
    (tmp_path / "reader.csv").hardlink_to(hopping)
    load_queries(hopping)[:1].to_csv(hopping)
    assert len(load_queries(hopping)) == 1
    assert (tmp_path / "reader.csv").read_text(encoding="utf-8") == HOPPING


def test_json_lines_with_lists(tmp_path: Path) -> None:
    row = load_queries("world", few_shot=0).to_pandas().iloc[0].to_dict()
    row |= {"e3_aliases": ["a", "b"], "note": "x"}
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    query = load_queries(tmp_path / "q.jsonl")[0]
    assert query.e3_aliases == ("a", "b")
    assert query.extra == {"note": "x"}


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("['Ono Yoko' 'Yoko']", ("Ono Yoko", "Yoko")),
        ("['Ono Yoko'\n 'Yoko'\n \"O'Neill\"]", ("Ono Yoko", "Yoko", "O'Neill")),
        ("[['a b' 'c']\n ['d' 'e']]", ("a b", "c", "d", "e")),
        ("[1984 'x']", (1984, "x")),
        ("[1984, 'x', -2.5]", (1984, "x", -2.5)),
        ("['a, b' 'c]' '[d']", ("a, b", "c]", "[d")),
        ("[u'Paris', u'x']", ("Paris", "x")),
        ("[]", ()),
    ],
)
def test_aliases_that_numpy_wrote_are_told_apart(
    value: str, found: tuple[object, ...], hopping: Path
) -> None:
    query = load_queries(changed(hopping, "e3_aliases", value))[1]
    assert query.e3_aliases == found
    names = [str(alias) for alias in found]
    assert query.names("e3") == tuple(dict.fromkeys([query.e3_label, *names]))


@given(
    st.lists(st.text(st.sampled_from("ab'\"\\, []\n1é"), min_size=1) | st.integers(), max_size=5)
)
def test_aliases_are_read_as_python_json_and_numpy_write_them(aliases: list[str | int]) -> None:
    array = np.array(aliases, dtype=object)
    for text in (repr(aliases), str(array), json.dumps(aliases)):
        assert parse_aliases(text, "c") == tuple(aliases), text
    assert parse_aliases([array, *aliases], "c") == (*aliases, *aliases)


def test_two_columns_of_one_name_are_refused(hopping: Path, tmp_path: Path) -> None:
    frame = load_queries(hopping).to_pandas()
    twice = pd.concat([frame, frame[["e3_label"]]], axis=1)
    with pytest.raises(QueryError, match="several of its columns are called 'e3_label'"):
        load_queries(twice)
    with pytest.raises(QueryError, match="called 'note'"):
        load_queries(pd.concat([frame.assign(note=1), frame.assign(note=2)[["note"]]], axis=1))
    twice.to_csv(tmp_path / "twice.csv", index=False)
    row = json.dumps(frame.iloc[0].to_dict(), default=str)
    (tmp_path / "twice.jsonl").write_text(row[:-1] + ', "e3_label": "x"}')
    for name in ("twice.csv", "twice.jsonl"):
        with pytest.raises(QueryError, match=f"{name} cannot be read as .*'e3_label'"):
            load_queries(tmp_path / name)


def test_rows_may_begin_with_a_byte_order_mark_and_hold_line_separators(
    hopping: Path, tmp_path: Path
) -> None:
    frame = load_queries(hopping).to_pandas().astype(object)
    frame.loc[0, "note"] = "a\u2028b\x85c\u2029d"
    rows = [json.dumps(row, ensure_ascii=False, default=str) for row in frame.to_dict("records")]
    (tmp_path / "rows.jsonl").write_text("\r\n".join(rows), "utf-8-sig")
    queries = load_queries(tmp_path / "rows.jsonl")
    assert len(queries) == len(frame)
    assert queries[0].extra["note"] == "a\u2028b\x85c\u2029d"
