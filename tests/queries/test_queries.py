"""Tests of queries.py: choosing among queries, and loading sets by name."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from hopscope.errors import QueryError, UsageError
from hopscope.queries.load import load_queries
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import TwoHopQuery


def invented(number: int, kind: str) -> TwoHopQuery:
    return TwoHopQuery(
        id=str(number),
        e1_label=f"Town{number}",
        e2_label=f"Land{number}",
        e3_label=f"City{number}",
        r1_template="The country of {}",
        r2_template="The capital of {}",
        e2_type=kind,
        extra={"half": number % 2},
    )


QUERIES = QuerySet(tuple(invented(i, "city" if i % 3 else "river") for i in range(30)), "invented")


def test_it_is_a_sequence() -> None:
    assert len(QUERIES) == 30
    assert QUERIES[-1].id == "29"
    assert [query.id for query in QUERIES[3:5]] == ["3", "4"]
    assert isinstance(QUERIES[3:5], QuerySet)
    assert QUERIES[4] in QUERIES
    assert next(reversed(QUERIES)).id == "29"
    assert repr(QUERIES) == "QuerySet('invented', 30 queries, few_shot=0)"
    assert "The capital of the country of Town9" in QUERIES._repr_html_()
    assert "Town10" not in QUERIES._repr_html_()
    query = dataclasses.replace(QUERIES[0], e2_label="<script>")
    strange = QuerySet((query, *QUERIES[1:]), "<img src=x onerror=alert(1)>")
    assert "<img" not in strange._repr_html_()
    assert "<script" not in strange._repr_html_()


def test_it_is_immutable_copied_and_pickled() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        QUERIES.name = "other"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(QUERIES)) == QUERIES == copy.deepcopy(QUERIES)
    assert pickle.loads(pickle.dumps(QUERIES.prompts())) == QUERIES.prompts()
    prompts = QUERIES.prompts()
    prompts.clear()
    assert len(QUERIES.prompts()) == 30


def test_filter_and_empty_sets() -> None:
    rivers = QUERIES.filter(lambda query: query.e2_type == "river")
    assert len(rivers) == 10
    none = QUERIES.with_few_shot(2).filter(lambda query: False)
    assert len(none) == 0
    assert none.prompts() == []
    assert none.to_pandas().columns[0] == "id"


def test_sample_is_seeded_and_without_replacement() -> None:
    samples = [tuple(q.id for q in QUERIES.sample(10, seed)) for seed in (0, 0, 1)]
    assert samples[0] == samples[1] != samples[2]
    assert len(set(samples[0])) == 10
    assert list(samples[0]) == sorted(samples[0], key=int)
    for n in (0, 31):
        with pytest.raises(QueryError, match=f"cannot sample {n} queries .* from 1 to 30"):
            QUERIES.sample(n)


def test_balance_keeps_at_most_so_many_of_a_kind() -> None:
    counts = Counter(query.e2_type for query in QUERIES.balance("e2_type", 7))
    assert counts == {"city": 7, "river": 7}
    assert Counter(query.e2_type for query in QUERIES.balance(most=15))["river"] == 10
    assert len(QUERIES.balance("half", 2)) == 4
    assert QUERIES.balance(most=5).queries != QUERIES.balance(most=5, seed=1).queries
    with pytest.raises(QueryError, match="'e9_type': no query has that field"):
        QUERIES.balance("e9_type")
    with pytest.raises(QueryError, match="most must be 1 or more"):
        QUERIES.balance(most=0)


def test_split_divides() -> None:
    first, second = QUERIES.split(0.3, seed=4)
    assert (len(first), len(second)) == (9, 21)
    assert sorted({*first, *second}, key=lambda query: int(query.id)) == list(QUERIES)
    assert QUERIES.split(0.3, seed=4)[0] == first != QUERIES.split(0.3, seed=5)[0]
    for fraction in (0.0, 1.0, 2.0):
        with pytest.raises(QueryError, match="between 0 and 1"):
            QUERIES.split(fraction)


def test_by_id() -> None:
    assert QUERIES.by_id("7") is QUERIES[7]
    with pytest.raises(QueryError, match=r"no query '229'; did you mean 2"):
        QUERIES.by_id("229")


def test_ids_must_differ() -> None:
    with pytest.raises(QueryError, match="two queries have the id '3'"):
        QuerySet((*QUERIES[:5], QUERIES[3]))


def test_the_fingerprint_tells_what_is_asked() -> None:
    renamed = QuerySet(QUERIES.queries, "another name")
    other = [dataclasses.replace(QUERIES[0], e3_label="Elsewhere"), *QUERIES[1:]]
    sets = [
        QUERIES,
        QuerySet(tuple(other)),
        QUERIES[:10],
        QUERIES.with_few_shot(2),
        QUERIES.with_few_shot(2, seed=1),
        QUERIES.with_few_shot(2)[:10],
        QUERIES[:10].with_few_shot(3),
        QuerySet(QUERIES.queries[:10], few_shot=3),
    ]
    assert renamed.fingerprint == QUERIES.fingerprint
    assert len({each.fingerprint for each in sets}) == len(sets)
    assert all(len(each.fingerprint) == 64 for each in sets)


def test_with_few_shot_returns_another_set() -> None:
    few = QUERIES.with_few_shot(3, seed=2)
    assert (few.few_shot, few.few_shot_seed, QUERIES.few_shot) == (3, 2, 0)
    assert few.with_few_shot(0).prompts() == QUERIES.prompts()
    assert few.prompts()[0].text.count("\n") == 3


def test_unknown_forms_are_refused() -> None:
    with pytest.raises(QueryError, match=r"'riddle'.*two_hop"):
        QUERIES.prompts("riddle")  # type: ignore[arg-type]


def test_world_comes_with_five_demonstrations() -> None:
    world = load_queries("world")
    assert (world.name, world.few_shot, world.few_shot_seed) == ("world", 5, 0)
    assert load_queries("world", few_shot=0).prompts()[0].few_shot == 0


def test_a_query_set_is_returned_as_it_is() -> None:
    assert load_queries(QUERIES) is QUERIES
    assert load_queries(QUERIES, few_shot=2) == QUERIES.with_few_shot(2)
    few = QUERIES.with_few_shot(2, seed=9)
    assert load_queries(few) is few


def test_a_file_has_no_demonstrations(tmp_path: Path) -> None:
    QUERIES.to_csv(tmp_path / "mine.csv")
    mine = load_queries(tmp_path / "mine.csv")
    assert (mine.name, mine.few_shot, mine.queries) == ("mine", 0, QUERIES.queries)
    assert load_queries(str(tmp_path / "mine.csv"), few_shot=2).few_shot == 2


def test_unknown_names_and_missing_files_are_refused_with_near_ones(tmp_path: Path) -> None:
    QUERIES.to_csv(tmp_path / "mine.csv")
    with pytest.raises(QueryError, match=r"'wrold'.*did you mean world"):
        load_queries("wrold")
    with pytest.raises(QueryError, match=r"did you mean .*mine.csv"):
        load_queries(tmp_path / "mina.csv")
    with pytest.raises(QueryError, match="no query set"):
        load_queries("data/missing.csv")
    with pytest.raises(QueryError, match="from a int"):
        load_queries(7)  # type: ignore[arg-type]
    assert issubclass(QueryError, UsageError)


def test_a_hub_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets  # type: ignore[import-untyped]

    rows = QUERIES.to_datasets()
    asked: list[tuple[str, str | None]] = []

    def load(id: str, split: str | None = None) -> object:
        asked.append((id, split))
        if split:
            return rows
        names = {"owner/one": ["test"], "owner/many": ["a", "b"]}.get(id, ["train", "test"])
        return datasets.DatasetDict(dict.fromkeys(names, rows))

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert load_queries("owner/one").queries == QUERIES.queries
    assert load_queries("owner/two").name == "owner/two"
    assert load_queries("owner/many", split="b", few_shot=1).few_shot == 1
    with pytest.raises(QueryError, match=r"splits a, b: choose one with split="):
        load_queries("owner/many")
    assert asked[2] == ("owner/many", "b")


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(id: str, split: str | None = None) -> object:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(QueryError, match=r"'soheeyang/TwoHopFact'.*no route.*the network"):
        load_queries("soheeyang/TwoHopFact")


IMPORTED = (
    "import sys; {}; print(sorted({{'torch', 'transformers', 'datasets'}} & set(sys.modules)))"
)
HERE = (  # by file, since the package's own __init__ may bring torch along
    "import types; package = types.ModuleType('hopscope'); "
    "package.__path__ = [{path!r}]; sys.modules['hopscope'] = package; "
    "import hopscope.queries.query_set, hopscope.queries.answers"
)


@pytest.mark.parametrize(("also", "found"), [("", "[]"), ("; import datasets", "['datasets'")])
def test_no_model_code_is_imported(also: str, found: str) -> None:
    path = str(Path(__file__).parents[2] / "hopscope")
    program = IMPORTED.format(HERE.format(path=path) + also)
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip().startswith(found)
