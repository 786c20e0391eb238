"""What estimates say, against what runs compute, and that they write nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from known import known_model, known_queries

import hopscope as hs
from hopscope.engine.work import counting
from hopscope.errors import TakenError, UsageError
from hopscope.experiments.estimate import COSTS, Estimate, duration, measured_run
from hopscope.queries.query_set import QuerySet
from hopscope.results.packing import pack_run
from hopscope.results.run_folder import Tables
from hopscope.results.runs import Pending

SETTINGS: dict[str, Any] = {"positions": ["t1"], "controls": [], "criterion": "first_token"}


def alike(n: int) -> QuerySet:
    """Queries that cost the same."""
    queries = known_queries()
    one = next(iter(queries))
    return replace(queries, queries=tuple(replace(one, id=f"q{i}") for i in range(n)))


@pytest.fixture(scope="module")
def estimated() -> Estimate:
    return hs.estimate(hs.back_patch, known_model(), alike(8), seconds=0.5, **SETTINGS)


def test_the_estimate_of_equal_parts_is_what_the_run_computes(estimated: Estimate) -> None:
    with counting(known_model()) as work:
        result = hs.back_patch(known_model(), alike(8), progress=False, **SETTINGS)
    assert (estimated.n, estimated.n_done) == (8, 0)
    assert estimated.layer_tokens == work.layer_tokens > 0
    assert estimated.logit_rows == work.logit_rows
    assert estimated.cells == work.cells
    assert estimated.forwards == work.forwards >= len(result.frame)
    assert estimated.row_bytes == work.row_bytes > 0
    weights = {each.data_ptr(): each for each in known_model().hf.parameters()}
    assert estimated.weight_bytes >= sum(each.nbytes for each in weights.values())


def test_an_estimate_is_read_as_text_and_as_a_table(estimated: Estimate) -> None:
    text, page = repr(estimated), estimated._repr_html_()
    assert "8; 0 more are done" in text
    assert f"{estimated.layer_tokens:,}" in text
    assert "<table" in page
    assert "layer-tokens" in page


def test_an_estimate_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    hs.estimate(hs.back_patch, known_model(), alike(4), seconds=0, out=out, **SETTINGS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shard", [(1, 2), (2, 2)], ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["in parts", "packed"])
def test_parts_that_are_there_are_not_counted(
    packed: bool, shard: tuple[int, int], tmp_path: Path
) -> None:
    asked = {**SETTINGS, "out": tmp_path / "run"}
    model, queries = known_model(), alike(8)
    hs.back_patch(model, queries, shard=shard, progress=False, **asked)
    if packed:
        asked["out"] = pack_run(tmp_path / "run", tmp_path / "packed")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    left = hs.estimate(hs.back_patch, model, queries, seconds=0, **asked)
    assert (left.n, left.n_done) == (4, 4)
    assert left.cells == hs.estimate(hs.back_patch, model, alike(4), seconds=0, **SETTINGS).cells
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    with pytest.raises(TakenError, match="holds another run"):
        hs.estimate(hs.back_patch, model, alike(6), **asked)
    hs.back_patch(model, queries, progress=False, **asked)
    done = hs.estimate(hs.back_patch, model, queries, **asked)
    assert (done.n, done.cells, done.layer_tokens) == (0, 0, 0)


def test_a_shard_is_estimated_alone(tmp_path: Path) -> None:
    asked = {**SETTINGS, "out": tmp_path / "run", "shard": (1, 4)}
    assert hs.estimate(hs.back_patch, known_model(), alike(8), seconds=0, **asked).n == 2


def test_an_analysis_of_several_runs_is_the_sum_of_them(tmp_path: Path) -> None:
    model, queries = known_model(), known_queries()
    out = tmp_path / "run"
    whole = hs.estimate(hs.stages, model, queries, seconds=0, out=out)
    assert list(tmp_path.iterdir()) == []
    every = list(range(model.n_layers))
    parts = [
        hs.estimate(hs.describe, model, queries, seconds=0, source_layers=every),
        hs.estimate(hs.knockout, model, queries, seconds=0, edges=["t2->t1"]),
        hs.estimate(hs.project, model, queries, seconds=0),
    ]
    assert whole.layer_tokens == sum(each.layer_tokens for each in parts)
    assert whole.n == len(queries)


def test_what_trains_or_is_computed_at_once_is_refused() -> None:
    with pytest.raises(UsageError, match="data_needed trains models"):
        hs.estimate(hs.data_needed, known_model(), known_queries())
    queries = hs.load_queries("world")
    with pytest.raises(UsageError, match="probing is computed in one piece"):
        hs.estimate(hs.probe, known_model(), queries, "e2_type")


def test_a_run_after_an_estimate_is_run() -> None:
    with pytest.raises(UsageError):
        hs.estimate(hs.back_patch, known_model(), known_queries(), positions=["nowhere"])
    assert hs.grade(known_model(), alike(2), progress=False).n_queries == 2


@dataclass
class Machine:
    """A machine that takes a second an input, and more the first time; it notes what it ran."""

    first: float = 9.0
    slower: frozenset[int] = frozenset()
    time: float = 0.0
    layer_tokens: int = 0

    def __post_init__(self) -> None:
        self.ran: list[tuple[int, int, int]] = []

    def now(self) -> pd.Series[float]:
        return pd.Series({"layer_tokens": self.layer_tokens, "seconds": self.time}, COSTS).fillna(0)

    def compute(self, part: int, start: int, n: int) -> Tables:
        self.time += n * (2.0 if part in self.slower else 1.0) + (0 if self.ran else self.first)
        self.layer_tokens += 7 * n
        self.ran.append((part, start, n))
        ids = range(part + start, part + start + n)
        return {name: pd.DataFrame({"query": ids}) for name in ("frame", "details")}


def parts_of(size: int, n: int, last: int | None = None) -> dict[int, int]:
    sizes = {size * part: size for part in range(n)}
    return sizes | ({} if last is None else {size * n: last})


def test_what_comes_first_is_no_cost_of_every_input() -> None:
    machine = Machine()
    run = measured_run(Pending(parts_of(2, 20, 1), 0, machine.compute), machine.now, 20)
    assert run.first["seconds"] == 9
    assert set(run.costs["seconds"]) == {1}
    assert set(run.costs["layer_tokens"]) == {7}
    assert run.n == 41
    assert machine.time <= 1 + 9 + 20
    assert run.n_measured == 2 * len(run.costs)
    assert all(n == 2 for _, _, n in machine.ran[2:])


def test_a_large_part_is_measured_in_as_large_a_piece_as_there_is_time_for() -> None:
    machine = Machine(first=0)
    run = measured_run(Pending({0: 128}, 0, machine.compute), machine.now, 20)
    assert run.n_measured >= 9
    assert machine.time <= 1 + 20
    whole = Machine(first=0)
    run = measured_run(Pending({0: 128, 128: 128}, 0, whole.compute), whole.now, 600)
    assert run.n_measured >= 64
    assert [n for _, _, n in whole.ran[1:8]] == [1, 2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize("sizes", [{0: 12}, {0: 1}, {0: 12, 12: 12, 24: 3}, {0: 2, 2: 2}], ids=str)
def test_no_input_is_measured_twice(sizes: dict[int, int]) -> None:
    machine = Machine()
    run = measured_run(Pending(sizes, 0, machine.compute), machine.now, 600)
    first, *others = machine.ran
    asked = [part + start + at for part, start, n in others for at in range(n)]
    assert first == others[0], "the first alone is computed twice"
    assert len(asked) == len(set(asked))
    assert set(asked) <= {part + at for part, size in sizes.items() for at in range(size)}
    assert run.tables["frame"]["query"].to_list() == asked
    assert run.n_measured <= len(asked)


def test_what_comes_first_does_not_count_if_it_takes_all_the_time() -> None:
    machine = Machine(first=99)
    run = measured_run(Pending(parts_of(2, 4), 0, machine.compute), machine.now, 20)
    assert set(run.costs["seconds"]) == {1}
    assert run.first["seconds"] == 99


def test_parts_that_differ_give_a_range() -> None:
    machine = Machine(first=0, slower=frozenset(range(0, 80, 4)))
    run = measured_run(Pending(parts_of(2, 40), 0, machine.compute), machine.now, 40)
    assert set(run.costs["seconds"]) == {1, 2}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.26, "0.3 s"), (119, "119.0 s"), (150, "2.5 min"), (9000, "2.5 h")]
)
def test_times_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text
