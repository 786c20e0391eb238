"""Tests of runs.py: parts, going on after a stop or a kill, shards, and folders of other runs."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from known import known_model, known_queries, many_queries, parts

import hopscope as hs
from hopscope.display.front_end import ProgressBar
from hopscope.engine import sweep
from hopscope.errors import (
    DamagedResultError,
    PlaceError,
    QueryError,
    ResultError,
    TakenError,
    UsageError,
    WriteError,
)
from hopscope.experiments.two_hop.back_patching import back_patch
from hopscope.loading import load_result
from hopscope.queries.query_set import QuerySet
from hopscope.results import packing, run_folder
from hopscope.results.packing import pack_run
from hopscope.results.run_folder import Tables
from hopscope.results.run_record import provenance
from hopscope.results.runs import calling, run_over

N_PARTS = 6


def run_of(queries: QuerySet, **settings: object) -> dict[str, Any]:
    return provenance(known_model(), queries, "grading", settings)


@dataclass
class Compute:
    """Gives the length of each id; notes what it was asked, and fails where it is told to."""

    fail_at: str | None = None
    error: type[BaseException] = RuntimeError
    asked: list[str] = field(default_factory=list)

    def __call__(self, queries: QuerySet) -> Tables:
        ids = [query.id for query in queries]
        if self.fail_at in ids:
            raise self.error("stopped")
        self.asked += ids
        frame = pd.DataFrame({"query": ids, "length": [len(id) for id in ids]})
        return {"frame": frame, "details": frame[["query"]]}


def run(
    out: Path | None, compute: Compute | None = None, queries: QuerySet | None = None, **more: Any
) -> Tables:
    asked = known_queries() if queries is None else queries
    given = {"per_part": 2, "progress": False, **more}
    return run_over(asked, compute or Compute(), run_of(asked), out=out, **given)


def test_tables_are_in_the_order_of_the_queries(tmp_path: Path) -> None:
    ids = [query.id for query in known_queries()]
    for out in (None, tmp_path / "run"):
        tables = run(out)
        assert list(tables["frame"]["query"]) == ids
        assert list(tables["details"]["query"]) == ids
        assert list(tables["frame"].index) == list(range(len(ids)))


def test_a_run_folder_has_a_part_for_each_few_queries(tmp_path: Path) -> None:
    run(tmp_path / "a" / "run")
    names = sorted(path.name for path in (tmp_path / "a" / "run").iterdir())
    starts = [f"{start:06d}" for start in range(0, 12, 2)]
    tables = [f"{table}-{start}.parquet" for table in ("details", "frame") for start in starts]
    machines = [f"machine-{start}.json" for start in starts]
    assert names == sorted([*tables, *machines, "run.json"])
    second = pd.read_parquet(tmp_path / "a" / "run" / "frame-000002.parquet")
    assert list(second["query"]) == ["late-1", "late-2"]


def test_a_run_in_a_folder_is_a_run_in_memory(tmp_path: Path) -> None:
    pd.testing.assert_frame_equal(run(tmp_path / "run")["frame"], run(None)["frame"])


def test_progress_is_counted_in_queries(capsys: pytest.CaptureFixture[str]) -> None:
    run(None, progress=True)
    shown = capsys.readouterr()
    assert "12/12" in shown.err
    assert shown.out == ""


def test_the_bar_moves_within_a_query(monkeypatch: pytest.MonkeyPatch) -> None:
    """It moves chunk by chunk and block by block, forwards only, and ends whole."""
    places: list[float] = []
    reach = ProgressBar.reach

    def noting(bar: ProgressBar, n: float) -> None:
        reach(bar, n)
        places.append(bar.n)

    monkeypatch.setattr(ProgressBar, "reach", noting)
    back_patch(known_model(), known_queries()[:2], positions=["t1", "t2"])
    assert places == sorted(places)
    for query in range(2):
        for position in range(2):
            low = query + position / 2
            assert sum(low < place < low + 0.5 for place in places) > known_model().n_layers
    assert places[-1] == pytest.approx(2)


def test_a_run_that_goes_on_tells_its_time_from_what_it_computes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError):
        run(tmp_path / "run", Compute("named"))
    run(tmp_path / "run", progress=True)
    shown = capsys.readouterr().err
    assert "4/12" in shown.split("\r")[1]
    assert "12/12" in shown


@pytest.mark.parametrize("kept", [False, True], ids=["in memory", "in a folder"])
def test_an_interrupted_run_has_its_finished_queries_in_hand(
    kept: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run" if kept else None, Compute("named", KeyboardInterrupt))
    result = hs.partial()
    assert type(result).__name__ == "Grading"
    assert list(result.frame["query"]) == [query.id for query in known_queries()][:4]
    assert "stopped: hs.partial() has the 4 finished" in caplog.text
    assert ("the same call with out=" if kept else "give out=") in caplog.text


def test_nothing_is_in_hand_if_nothing_was_finished() -> None:
    with pytest.raises(KeyboardInterrupt), calling():
        run(None, Compute("early-1", KeyboardInterrupt))
    with pytest.raises(ResultError, match="no run was interrupted"):
        hs.partial()


def test_a_stopped_experiment_leaves_no_hook_and_what_it_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a notebook's stop button does it: in the middle of a forward pass."""
    model, queries = known_model(), known_queries().filter(lambda query: "late" in query.id)
    block = model.hf.model.layers[3]
    passes, forward = [], type(block).forward

    def stopping(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        passes.append(1)
        if len(passes) == stop_at:
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(block), "forward", stopping)
    stop_at = 0
    whole = back_patch(model, queries, progress=False)
    stop_at, passes[:] = 3 * len(passes) // 4, []
    hooks = sum(len(each._forward_hooks) for each in model.hf.modules())
    with pytest.raises(KeyboardInterrupt):
        back_patch(model, queries, progress=False)
    assert sum(len(each._forward_hooks) for each in model.hf.modules()) == hooks
    done = hs.partial()
    assert 0 < len(done.frame) < len(whole.frame)
    pd.testing.assert_frame_equal(done.frame, whole.frame.head(len(done.frame)))
    stop_at = 0
    again = back_patch(model, queries, progress=False)
    pd.testing.assert_frame_equal(again.frame, whole.frame)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_stopped_run_goes_on(tmp_path: Path, error: type[BaseException]) -> None:
    run(tmp_path / "whole")
    stopped = Compute("named", error)
    with pytest.raises(error):
        run(tmp_path / "run", stopped)
    assert stopped.asked == [query.id for query in known_queries()][:4]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    again = Compute()
    tables = run(tmp_path / "run", again)
    assert again.asked == [query.id for query in known_queries()][4:]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert parts(tmp_path / "run") == parts(tmp_path / "whole")
    pd.testing.assert_frame_equal(tables["frame"], run(None)["frame"])


def test_a_packed_run_is_one_part_and_goes_on(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        run(tmp_path / "run", Compute(fail_at=known_queries()[5].id))
    loose, kept = parts(tmp_path / "run"), tmp_path / "kept"
    for source in ("run", "kept"):  # what is packed can be packed again
        pack_run(tmp_path / source, kept)
        assert "parts" not in load_result(kept).run  # so that it can be saved anywhere
        assert sorted(parts(kept)) == ["details-packed.parquet", "frame-packed.parquet"]
        pd.testing.assert_frame_equal(
            load_result(kept).frame, load_result(tmp_path / "run").frame, check_exact=True
        )
    again = Compute()
    pd.testing.assert_frame_equal(run(kept, again)["frame"], run(None)["frame"])
    assert again.asked == [query.id for query in known_queries()[4:]]
    assert {**parts(kept), **loose} == parts(kept)  # its parts are the same bytes again


@pytest.mark.parametrize("shard", [(1, 3), (2, 3)])
def test_a_packed_shard_goes_on_with_what_it_lacks(shard: tuple[int, int], tmp_path: Path) -> None:
    done, again = Compute(), Compute()
    run(tmp_path / "run", done, shard=shard)
    packed = pack_run(tmp_path / "run", tmp_path / "packed")
    pd.testing.assert_frame_equal(run(packed, again)["frame"], run(None)["frame"])
    assert sorted(done.asked + again.asked) == sorted(query.id for query in known_queries())


def test_shards_that_unpack_one_run_at_once_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third shard has read what is packed when the second one unpacks it, and goes on."""
    run(tmp_path / "run", shard=(1, 3))
    packed, taken_apart = pack_run(tmp_path / "run", tmp_path / "packed"), run_folder._taken_apart
    second = Compute()

    def slow(path: Path) -> dict[int, Tables]:
        monkeypatch.setattr(run_folder, "_taken_apart", taken_apart)
        read = taken_apart(path)
        run(packed, second, shard=(2, 3))
        return read

    monkeypatch.setattr(run_folder, "_taken_apart", slow)
    run(packed, shard=(3, 3))
    assert second.asked
    again = Compute()
    pd.testing.assert_frame_equal(run(packed, again)["frame"], run(None)["frame"])
    assert not again.asked


def test_a_run_that_another_process_has_just_unpacked_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "run")
    packed, read_part = pack_run(tmp_path / "run", tmp_path / "packed"), run_folder.read_part

    def late(path: Path, part: int | str) -> Tables:
        monkeypatch.setattr(run_folder, "read_part", read_part)
        run_folder.unpack(path)
        return read_part(path, part)

    monkeypatch.setattr(run_folder, "read_part", late)
    pd.testing.assert_frame_equal(run_folder.read_parts(packed)["frame"], whole["frame"])


def test_unpacking_that_was_stopped_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(path: Path, content: object) -> None:
        raise KeyboardInterrupt

    run(tmp_path / "run", shard=(1, 3))
    packed = pack_run(tmp_path / "run", tmp_path / "packed")
    with monkeypatch.context() as stopping:
        stopping.setattr(run_folder, "write_json", stop)
        with pytest.raises(KeyboardInterrupt):
            run(packed)
    again = Compute()
    pd.testing.assert_frame_equal(run(packed, again)["frame"], run(None)["frame"])
    assert len(again.asked) == 8


def test_a_run_that_goes_on_is_packed_as_it_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError):
        run(tmp_path / "run", Compute(fail_at=known_queries()[5].id))
    parts_of = packing.parts_of

    def goes_on(path: Path) -> dict[int, Tables]:
        read = parts_of(path)
        run(path)
        return read

    monkeypatch.setattr(packing, "parts_of", goes_on)
    packed = pack_run(str(tmp_path / "run"), str(tmp_path / "packed"))
    assert run_folder.packed_parts(packed) == {0, 2}
    pd.testing.assert_frame_equal(run(packed)["frame"], run(None)["frame"])


def test_a_run_is_not_packed_into_something_else(tmp_path: Path) -> None:
    run(tmp_path / "run")
    run(tmp_path / "other", queries=known_queries()[:2])
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("my own")
    for place, why in (("other", "holds another run"), ("thesis", "not a run folder")):
        before = {path: path.read_bytes() for path in (tmp_path / place).iterdir()}
        with pytest.raises(TakenError, match=why):
            pack_run(tmp_path / "run", tmp_path / place)
        assert {path: path.read_bytes() for path in (tmp_path / place).iterdir()} == before
    with pytest.raises(ResultError, match="not a run folder"):
        pack_run(tmp_path / "thesis", tmp_path / "packed")


def test_a_whole_packed_run_is_read_and_left_as_it_is(tmp_path: Path) -> None:
    whole = run(tmp_path / "run")
    before = parts(pack_run(tmp_path / "run", tmp_path / "kept"))
    computed = Compute()
    pd.testing.assert_frame_equal(run(tmp_path / "kept", computed)["frame"], whole["frame"])
    assert not computed.asked
    assert parts(tmp_path / "kept") == before


def test_a_packed_run_whose_record_does_not_fit_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        run(tmp_path / "run", Compute(fail_at=known_queries()[5].id))
    record = pack_run(tmp_path / "run", tmp_path / "kept") / "run.json"
    told = json.loads(record.read_text())
    record.write_text(json.dumps({**told, "parts": told["parts"][1:]}))
    with pytest.raises(DamagedResultError, match="does not fit its tables"):
        run(tmp_path / "kept")


def test_a_finished_run_is_not_computed_again(tmp_path: Path) -> None:
    first = run(tmp_path / "run")
    again = Compute("early-1")
    pd.testing.assert_frame_equal(run(tmp_path / "run", again)["frame"], first["frame"])
    assert again.asked == []


def test_half_written_parts_are_no_parts(tmp_path: Path) -> None:
    """What a kill can leave: a file beside its place, or details without their frame."""
    with pytest.raises(RuntimeError):
        run(tmp_path / "run", Compute("late-1"))
    (tmp_path / "run" / ".frame-000002.parquet.4711").write_bytes(b"PAR1 half")
    details = (tmp_path / "run" / "details-000000.parquet").read_bytes()
    (tmp_path / "run" / "details-000002.parquet").write_bytes(details)
    tables = run(tmp_path / "run")
    pd.testing.assert_frame_equal(tables["details"], run(None)["details"])
    pd.testing.assert_frame_equal(tables["frame"], run(None)["frame"])


def test_a_kill_before_anything_is_written_is_no_other_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".run.json.4711").write_text('{"kind"')
    assert len(run(tmp_path / "run")["frame"]) == 12


def test_a_disk_that_is_full_in_the_middle_of_a_part_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole")
    write, left = pd.DataFrame.to_parquet, iter(range(5))

    def full(self: pd.DataFrame, path: Path, **more: Any) -> None:
        write(self, path, **more)
        if next(left, None) is None:
            Path(path).write_bytes(Path(path).read_bytes()[:100])
            raise OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28]")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(WriteError, match=r"frame-000004.parquet: No space left.*run the same"):
        run(tmp_path / "run")
    monkeypatch.undo()
    again = Compute()
    run(tmp_path / "run", again)
    assert again.asked == [query.id for query in known_queries()][4:]
    assert parts(tmp_path / "run") == parts(tmp_path / "whole")
    names = [{path.name for path in (tmp_path / name).iterdir()} for name in ("run", "whole")]
    assert names[0] == names[1]


def test_a_run_that_cannot_be_written_is_told_before_it_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    run(tmp_path / "whole")
    run(tmp_path / "half", shard=(1, 2))
    compute = Compute()
    for name in ("file/below", "x" * 300):
        with pytest.raises(PlaceError, match="Choose another place"):
            run(tmp_path / name, compute)

    def read_only(path: Path, *_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "mkdir", read_only)
    with pytest.raises(PlaceError, match="Read-only"):
        run(tmp_path / "half", compute)
    run(tmp_path / "whole", compute)  # nothing is to be written
    assert compute.asked == []


def test_the_frame_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def noting(name: str) -> None:
        real = getattr(os, name)

        def noted(source: Path, target: Path) -> None:
            written.append(Path(target).name)
            real(source, target)

        monkeypatch.setattr(os, name, noted)

    noting("link")
    noting("replace")
    run(tmp_path / "run", queries=known_queries()[:2])
    tables = ["details-000000.parquet", "frame-000000.parquet"]
    assert written == ["run.json", "machine-000000.json", *tables]


@pytest.mark.parametrize("table", ["frame", "details"])
@pytest.mark.parametrize("damage", ["half", "empty", "missing"])
def test_a_damaged_part_is_told_and_computed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, table: str, damage: str
) -> None:
    run(tmp_path / "run")
    whole = parts(tmp_path / "run")
    name = f"{table}-000004.parquet"
    file = tmp_path / "run" / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(whole[name][: len(whole[name]) // 2 if damage == "half" else 0])
    again = Compute()
    run(tmp_path / "run", again)
    assert again.asked == [query.id for query in known_queries()][4:6]
    assert parts(tmp_path / "run") == whole
    assert ("part 4 of" in caplog.text) == (name != "frame-000004.parquet" or damage != "missing")


def test_what_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "run")

    opened = Path.open

    def forbidden(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.suffix == ".parquet":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(ResultError, match=r"frame-000000.parquet cannot be read: Permission"):
        load_result(tmp_path / "run")


@pytest.mark.parametrize("table", ["frame", "details"])
def test_parts_that_cannot_be_read_are_removed_and_computed_again(
    tmp_path: Path, table: str
) -> None:
    """Also those whose damage lies in the middle, where nothing looks until they are read."""
    whole, folder = run(tmp_path / "run"), tmp_path / "run"
    before, file = parts(folder), folder / f"{table}-000004.parquet"
    content = bytearray(file.read_bytes())
    content[4:60] = bytes(56)
    file.write_bytes(content)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(DamagedResultError, match=rf"hopscope runs repair {folder}"):
        run(folder)
    removed = [f"{each}-000004.parquet" for each in ("frame", "details")]
    assert run_folder.repair(folder) == [*removed, "machine-000004.json"]
    assert run_folder.repair(folder) == []
    again = Compute()
    pd.testing.assert_frame_equal(run(folder, again)["frame"], whole["frame"])
    assert again.asked == [query.id for query in known_queries()][4:6]
    assert parts(folder) == before
    assert (folder / "notes.txt").read_text() == "mine"
    with pytest.raises(ResultError, match="is not a run folder"):
        run_folder.repair(tmp_path)
    with pytest.raises(ResultError, match="is not a run folder"):
        run_folder.repair(tmp_path / "gone")


def on_card(name: str, torch: str = "2.9") -> dict[str, Any]:
    asked = run_of(known_queries())
    return {**asked, "model": {**asked["model"], "device": name}, "versions": {"torch": torch}}


def test_each_part_says_what_computed_it_and_its_tables_do_not(tmp_path: Path) -> None:
    """A run may go on on another host, under other versions."""
    run(tmp_path / "whole")
    for version, fail_at in (("2.8", known_queries()[5].id), ("2.9", None)):
        more: dict[str, Any] = {"per_part": 2, "progress": False, "out": tmp_path / "run"}
        with suppress(RuntimeError):
            run_over(known_queries(), Compute(fail_at), on_card("H100", version), **more)
    assert parts(tmp_path / "run") == parts(tmp_path / "whole")
    machines = run_folder.machines_of(tmp_path / "run")
    assert {part: each["versions"] for part, each in machines.items()} == {
        **{part: {"torch": "2.8"} for part in (0, 2)},
        **{part: {"torch": "2.9"} for part in (4, 6, 8, 10)},
    }
    assert {each["device"] for each in machines.values()} == {"H100"}
    assert machines[4]["host"] == socket.gethostname()
    kept = pack_run(tmp_path / "run", tmp_path / "kept")
    assert run_folder.machines_of(kept) == machines
    run_folder.unpack(kept)
    assert run_folder.machines_of(kept) == machines
    written = json.loads((kept / "run.json").read_text())
    assert written.keys() - set(run_folder.OF_FOLDER) == on_card("", "").keys()
    assert all(run_folder.is_of_run(path.name) for path in kept.iterdir())
    assert "machines" not in load_result(tmp_path / "run").run


def test_a_run_does_not_go_on_on_another_kind_of_card(tmp_path: Path) -> None:
    more: dict[str, Any] = {"per_part": 2, "progress": False, "out": tmp_path / "run"}
    with suppress(RuntimeError):
        run_over(known_queries(), Compute(known_queries()[5].id), on_card("H100"), **more)
    before = parts(tmp_path / "run")
    with pytest.raises(TakenError, match=r"was begun on H100, and this is A100: .* choose another"):
        run_over(known_queries(), Compute(), on_card("A100"), **more)
    assert parts(tmp_path / "run") == before
    run_over(known_queries(), Compute(), on_card("H100"), **more)
    run_over(known_queries(), Compute(), on_card("A100"), **more)  # nothing is added


def test_a_folder_in_the_place_of_a_part_is_told(tmp_path: Path) -> None:
    run(tmp_path / "run", shard=(1, 6))
    (tmp_path / "run" / "frame-000002.parquet").mkdir()
    with pytest.raises(ResultError, match=r"a table in .* is damaged: .*Is a directory"):
        load_result(tmp_path / "run")
    with pytest.raises(PlaceError, match=r"cannot write .*frame-000002.parquet: Is a directory"):
        run(tmp_path / "run")


def test_what_is_no_part_is_told_and_not_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(tmp_path / "run")
    content = (tmp_path / "run" / "frame-000002.parquet").read_bytes()
    for name in ("frame-000002 copy.parquet", "frame-000012.parquet", "details-000012.parquet"):
        (tmp_path / "run" / name).write_bytes(content)
    pd.testing.assert_frame_equal(run(tmp_path / "run")["frame"], whole["frame"])
    assert "no parts of it: frame-000002 copy.parquet, frame-000012.parquet" in caplog.text


def test_a_run_that_is_refused_at_its_start_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name in ("there", "new", "deep/er"):
        with pytest.raises(UsageError):
            run(tmp_path / name, Compute("early-1", UsageError))
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["there"]


def changed_runs() -> Iterator[tuple[str, dict[str, Any]]]:
    asked = run_of(known_queries())
    yield "kind", {**asked, "kind": "back_patching"}
    yield "settings", {**asked, "settings": {"match": "substring"}}
    yield "model", {**asked, "model": {**asked["model"], "sha256": "0" * 64}}
    yield "queries", {**asked, "queries": {**asked["queries"], "sha256": "0" * 64}}


@pytest.mark.parametrize(("key", "other"), list(changed_runs()), ids=lambda each: str(each)[:8])
def test_another_run_is_refused(tmp_path: Path, key: str, other: dict[str, Any]) -> None:
    run(tmp_path / "run")
    before = parts(tmp_path / "run")
    with pytest.raises(ResultError, match=f"holds another run: its {key}.* is .*, not ") as caught:
        run_over(
            known_queries(), Compute(), other, per_part=2, out=tmp_path / "run", progress=False
        )
    assert "Choose another folder, or delete this one" in str(caught.value)
    assert parts(tmp_path / "run") == before


def test_time_and_versions_may_differ(tmp_path: Path) -> None:
    run(tmp_path / "run")
    later = {**run_of(known_queries()), "time": "2999-01-01", "versions": {"torch": "9"}}
    again = Compute()
    run_over(known_queries(), again, later, per_part=2, out=tmp_path / "run", progress=False)
    assert again.asked == []


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("ten years of work")
    for place in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(ResultError, match="is not a run folder; choose another place"):
            run(place)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QueryError, match="known is an empty query set: nothing to run"):
        run(tmp_path / "run", queries=known_queries()[:0])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_shards_make_the_whole(tmp_path: Path, order: tuple[int, int]) -> None:
    run(tmp_path / "whole")
    asked = []
    for index in order:
        compute = Compute()
        run(tmp_path / "run", compute, shard=(index, 2))
        asked.append(compute.asked)
    assert not set(asked[0]) & set(asked[1])
    assert parts(tmp_path / "run") == parts(tmp_path / "whole")
    pd.testing.assert_frame_equal(load_result(tmp_path / "run").frame, run(None)["frame"])


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6])
def test_shards_divide_the_parts(tmp_path: Path, count: int) -> None:
    asked = []
    for index in range(1, count + 1):
        compute = Compute()
        run(tmp_path / "run", compute, shard=(index, count))
        asked += compute.asked
        assert len(compute.asked) >= 2 * (N_PARTS // count)
    assert sorted(asked) == sorted(query.id for query in known_queries())


def test_a_shard_of_a_run_is_unfinished(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(run(tmp_path / "run", shard=(2, 3))["frame"]) == 4
    load_result(tmp_path / "run")
    assert "is not finished: 4 of 12 queries" in caplog.text


def test_a_shard_without_a_folder_is_told() -> None:
    with pytest.raises(UsageError, match=r"a shard needs a run folder.*give out"):
        run(None, shard=(1, 2))


@pytest.mark.parametrize("shard", [(0, 4), (5, 4), (-1, 2)])
def test_a_shard_that_does_not_exist_is_told(tmp_path: Path, shard: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="does not exist: give"):
        run(tmp_path / "run", shard=shard)
    assert not (tmp_path / "run").exists()


def test_a_shard_with_nothing_to_do_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"shard 7/7 has nothing to do: .* 6 parts"):
        run(tmp_path / "run", shard=(7, 7))


def test_back_patching_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = known_queries()
    settings: dict[str, Any] = {"cells": [(3, 0)], "max_new_tokens": 2, "progress": False}
    whole = back_patch(known_model(), queries, out=tmp_path / "whole", **settings)
    real, calls = sweep.sweep, iter(range(1000))

    def failing(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 9:  # in the third of six parts
            raise MemoryError
        return real(*args, **kwargs)

    monkeypatch.setattr("hopscope.prompting.query_prompts.sweep", failing)
    with pytest.raises(MemoryError):
        back_patch(known_model(), queries, out=tmp_path / "run", **settings)
    assert 0 < len(parts(tmp_path / "run")) < len(parts(tmp_path / "whole"))
    monkeypatch.undo()
    again = back_patch(known_model(), queries, out=tmp_path / "run", **settings)
    pd.testing.assert_frame_equal(again.frame, whole.frame)
    assert parts(tmp_path / "run") == parts(tmp_path / "whole")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the killed process has it, so that all numbers are the same to the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def kill_once_it_has_a_part(command: list[str], folder: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not list(folder.glob("frame-*.parquet")) and process.poll() is None:
        assert time.monotonic() < deadline, "no part was written in time"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors


@pytest.mark.usefixtures("one_thread")
def test_a_killed_command_goes_on(tmp_path: Path) -> None:
    many_queries().to_csv(tmp_path / "many.csv")
    command = [sys.executable, "-m", "hopscope.cli", "back-patch", "--model", "tiny-random-llama"]
    command += ["--queries", str(tmp_path / "many.csv"), "--subset", "all", "--device", "cpu"]
    command += ["--max-new-tokens", "2"]
    kill_once_it_has_a_part([*command, "--out", str(tmp_path / "run")], tmp_path / "run")
    finished = parts(tmp_path / "run")
    assert 0 < len(finished) < 40
    model = hs.load_model("tiny-random-llama", device="cpu")
    queries = replace(hs.load_queries(tmp_path / "many.csv"), name="many")
    whole, again = (
        back_patch(model, queries, out=tmp_path / name, max_new_tokens=2, progress=False)
        for name in ("whole", "run")
    )
    pd.testing.assert_frame_equal(again.frame, whole.frame)
    assert parts(tmp_path / "run") == parts(tmp_path / "whole")
    assert {name: parts(tmp_path / "run")[name] for name in finished} == finished
