"""Tests that run folders and names of earlier versions go on working.

The folders in `data/runs-c08e896` were written by the calls of `CALLS` at that commit.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from first_document import FORM, first_model, first_questions
from known import known_model, known_queries

import hopscope as hs
from hopscope.compat.old_paths import RENAMED
from hopscope.errors import ResultError, TakenError
from hopscope.results.result import Result
from hopscope.results.run_record import difference

RUNS = Path(__file__).parent / "data" / "runs-c08e896"
NAMES: dict[str, list[str]] = json.loads(
    (Path(__file__).parent / "data" / "names-c08e896.json").read_text("utf-8")
)
"""Public names by module path, as commit c08e896 had them; those of commands' and a study's innards
are left out, and so are `streams.agrees_with_plain`, a probe that says what differs instead today,
`experiments.document_attention.answer_length`, which is a span today,
`experiments.description.Entity` and `experiments.probing.Target`, which are any text, and colours
and dashes of figures that are drawn otherwise (`plots.TARGET_STYLES`,
`worlds.emergence_plot.INSTRUMENTS`), and `worlds.scaling.PUBLISHED`, which the table of
`hs.references` holds today."""

TOLD_LATER = {"answer_token", "answer_tokens", "bridge_token", "bridge_tokens"} | {
    "partner_answer_token",
    "names",
    "n_answers",
    "n_in_top",
}
"""Columns of details that results of that commit lack."""

Call = Callable[..., Result]


def _known(function: Call, n: int, **settings: Any) -> Call:
    return lambda **run: function(known_model(), known_queries()[:n], **settings, **run)


def _first(function: Call, **settings: Any) -> Call:
    return lambda **run: function(
        first_model(), first_questions(), template=FORM, **settings, **run
    )


def _graphs(**run: Any) -> Result:
    world = hs.load_world("graph-search", device="cpu")
    return hs.computation_graph(world.model, world.paths(2), **run)


CALLS: Mapping[str, Call] = {
    "grading": _known(hs.grade, 99),
    "back_patching": _known(hs.back_patch, 3, cells=[(3, 1), (4, 2)]),
    "description": _known(hs.describe, 2, source_layers=[1, 3], target_layers=[0]),
    "knockout": _known(hs.knockout, 2, layers=[1, 4], window=1),
    "projection": _known(hs.project, 1),
    "patching": _known(hs.activation_patch, 99, sites=["resid_post"]),
    "tracing": _known(hs.trace, 1, sites=["resid_post"], draws=1),
    "recall": _known(hs.recall, 99),
    "stages_parts": _known(hs.stages, 2, layer_step=3),
    "permutation": _first(hs.permute_documents),
    "document_attention": _first(hs.attention_to_documents),
    "order_choice": _first(hs.best_order, k=3),
    "masked_paths": _first(hs.masked_paths, layers=[0, 1], window=0),
    "head_retrieval": _known(hs.classify_heads, 2),
    "rank_neighbours": _known(hs.rank_neighbours, 2, n_clusters=4, top=2, ranks=6),
    "circuit": lambda **run: hs.circuit([hs.load_world("two-hop-looped", device="cpu")], 4, **run),
    "computation_graph": _graphs,
    "superposition": lambda **run: hs.superposition(
        [hs.load_world("reachability", device="cpu")], 2, **run
    ),
}


def folder_of(name: str) -> Path:
    """Where the result of a call lies; stages save theirs beside the parts."""
    return RUNS / name / "stages" if name == "stages_parts" else RUNS / name


def test_every_folder_is_tested() -> None:
    assert {path.name for path in RUNS.iterdir()} == set(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_a_run_folder_loads_and_says_the_same(name: str, tmp_path: Path) -> None:
    earlier = hs.load_result(folder_of(name))
    now = CALLS[name](progress=False)
    assert type(now) is type(earlier)
    assert difference(earlier.run, now.run) is None
    saved = hs.load_result(now.save(tmp_path / "now"))
    pd.testing.assert_frame_equal(saved.frame, earlier.frame, rtol=1e-4, atol=1e-5)
    assert set(saved.details) - set(earlier.details) <= TOLD_LATER
    told = saved.details[list(earlier.details)]
    pd.testing.assert_frame_equal(told, earlier.details, rtol=1e-4, atol=1e-5)
    assert set(now.tables()) == set(earlier.tables())
    if earlier.columns:
        assert earlier.frame.dtypes.astype(str).to_dict() == dict(earlier.columns)


@pytest.mark.parametrize("name", CALLS)
def test_a_run_folder_goes_on(name: str, tmp_path: Path) -> None:
    shutil.copytree(RUNS / name, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("frame-*.parquet")}
    CALLS[name](progress=False, out=tmp_path / "run")
    after = {path: path.stat().st_mtime_ns for path in before if "stages/" not in str(path)}
    assert after == {path: before[path] for path in after}, "nothing is computed again"


FIRST_TOKENS_ARE_READ = {
    *("back_patching", "knockout", "projection", "patching", "tracing", "recall"),
    *("masked_paths", "rank_neighbours"),
}


@pytest.mark.parametrize("name", sorted(CALLS.keys() - {"stages_parts"}))
def test_what_would_mix_two_rules_does_not_go_on(name: str, tmp_path: Path) -> None:
    """Answers' first tokens are told otherwise today, so that only a whole run stays what it is."""
    folder = Path(shutil.copytree(RUNS / name, tmp_path / "run"))
    assert isinstance(hs.load_result(folder), Result)
    sorted(folder.glob("frame-*.parquet"))[-1].unlink()
    if name not in FIRST_TOKENS_ARE_READ:
        assert len(CALLS[name](progress=False, out=folder).frame)
        return
    before = sorted(folder.iterdir())
    with pytest.raises(TakenError, match=r"another rule of first tokens.*: .* load_result reads"):
        CALLS[name](progress=False, out=folder)
    assert sorted(folder.iterdir()) == before
    new = tmp_path / "new"
    assert CALLS[name](progress=False, out=new).run["rules"]["first_tokens"] == 2
    sorted(new.glob("frame-*.parquet"))[-1].unlink()
    assert len(CALLS[name](progress=False, out=new).frame)


def test_another_setting_is_another_run(tmp_path: Path) -> None:
    shutil.copytree(RUNS / "tracing", tmp_path / "run")
    with pytest.raises(ResultError, match="holds another run: its settings"):
        hs.trace(known_model(), known_queries()[:1], out=tmp_path / "run", progress=False)


@pytest.mark.parametrize("module", NAMES)
def test_earlier_names_are_found(module: str) -> None:
    earlier = importlib.import_module(module)
    for name in NAMES[module]:
        assert not isinstance(getattr(earlier, name), ModuleType), name


FOLDERS = sorted(path.parent for path in RUNS.glob("*/run.json"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_every_result_has_a_summary(folder: Path) -> None:
    result = hs.load_result(folder)
    summary = result.summary()
    assert isinstance(summary, pd.DataFrame)
    printed = [each for each in result.printed().values() if isinstance(each, pd.DataFrame)]
    assert any(summary.equals(each) for each in printed or [summary])
    assert len(summary)


def test_earlier_packages_complete_their_names() -> None:
    import hopscope.trainer  # type: ignore[import-not-found]

    import hopscope.masks

    assert {"causal", "document_block", "Mask"} <= set(dir(hopscope.masks))
    assert {"Schedule", "fit"} <= set(dir(hopscope.trainer))
    names: dict[str, object] = {}
    exec("from hopscope.masks import *", names)
    assert {"causal", "document_block", "Mask"} <= set(names)


def test_every_rename_is_of_an_earlier_name() -> None:
    everything = {name for names in NAMES.values() for name in names}
    assert {name.rpartition(".")[2] for name in RENAMED} <= everything | {"Setting"}


def test_an_earlier_name_that_never_was_is_told() -> None:
    from hopscope import masks

    with pytest.raises(AttributeError, match=r"hopscope\.masks.* has no attribute 'nonsense'"):
        masks.nonsense  # noqa: B018


NOTEBOOK_IMPORTS = """
from hopscope.masks import causal, document_block, knock_out
from hopscope.experiments.document_asking import DocumentAsker
from hopscope.experiments import back_patch, combine, BackPatching
from hopscope.trainer import Schedule
from hopscope.worlds import Recipe, circuit
from hopscope.worlds.blocks import Shape
from hopscope.worlds.two_hop_facts import TwoHopFacts
from hopscope.sweep import sweep, ReadOut
from hopscope.plots import layer_heatmap, save_figure
from hopscope.results import Result, load_result
"""


def test_imports_of_earlier_notebooks_hold() -> None:
    exec(NOTEBOOK_IMPORTS, {})
