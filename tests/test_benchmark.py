"""The benchmark says the same things of the same cells, and counts its floor exactly."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import agreement, back_patching, others, race  # noqa: E402
from benchmarks.floor import Work, decoding_work, prompt_work, unit_times  # noqa: E402
from benchmarks.others import left_padded, read  # noqa: E402
from benchmarks.report import report, table  # noqa: E402
from benchmarks.subjects import Pair, Subject, Task, real_subjects, sample_of  # noqa: E402
from hopscope.engine.read_out import CellOutputs  # noqa: E402

RATIOS = {
    "plain_first_token",
    "plain_generation",
    "paper_generation",
    "transformer_lens_first_token",
    "nnsight_first_token",
}
KEYS = {"ratios", "floor_ratio", "floor_ratio_generation", "agree", "seconds", "cells", "machine"}
Perturb = Callable[[CellOutputs], CellOutputs]


@pytest.fixture(scope="module")
def task() -> Task:
    return back_patching.build_task(config="tiny", batch=4, max_new_tokens=4)


def ran(task: Task) -> dict[str, Any]:
    run = race.Race(task, sample=None, rounds=2)
    run.run()
    return report(run)


@pytest.fixture(scope="module")
def result(task: Task) -> dict[str, Any]:
    return ran(task)


def test_all_agree(result: dict[str, Any]) -> None:
    assert result["failures"] == {}
    assert result["agree"] is True
    assert all(one["agree"] and one["different"] == 0 for one in result["agreement"].values())
    compared = {name: one["compared"] for name, one in result["agreement"].items()}
    assert compared == dict.fromkeys(RATIOS, 6) | {"paper_generation": 6 * 4}


def test_the_object_has_its_keys(result: dict[str, Any]) -> None:
    assert result.keys() >= KEYS
    assert result["ratios"].keys() == RATIOS
    assert all(ratio > 0 for ratio in result["ratios"].values())
    assert result["seconds"].keys() == RATIOS | {race.FIRST_TOKEN, race.GENERATION, race.BATCH}
    assert result["cells"] == 6
    assert result["measured_cells"] == dict.fromkeys(RATIOS, 6) | {"paper_generation": 16}
    assert result["scaled"] is False
    assert result["machine"]["threads"] == torch.get_num_threads()
    json.dumps(result, allow_nan=False)


def test_the_table_names_all(result: dict[str, Any]) -> None:
    assert all(name in table(result) for name in RATIOS)


@pytest.mark.parametrize("position", ["t1", "t2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_positions_and_types_agree(position: Any, dtype: str) -> None:
    task = back_patching.build_task(
        config="tiny", position=position, dtype=dtype, batch=2, max_new_tokens=3
    )
    assert ran(task)["agree"] is True


def test_a_sample_is_scaled_up(task: Task) -> None:
    run = race.Race(task, sample=2, rounds=2)
    run.run()
    result = report(run)
    assert result["scaled"] is True
    assert set(result["measured_cells"].values()) == {2}
    record = run.records["paper_generation"]
    by_round = result["seconds_by_round"]["paper_generation"]
    assert by_round == pytest.approx([seconds * 16 / 4 for seconds in record.seconds])


def shifted(outputs: CellOutputs) -> CellOutputs:
    return replace(outputs, logprob=outputs.logprob + 0.01)


def unknown(outputs: CellOutputs) -> CellOutputs:
    return replace(outputs, logprob=outputs.logprob * torch.nan)


def missed(outputs: CellOutputs) -> CellOutputs:
    hits = outputs.rank == 0
    return replace(outputs, rank=torch.where(hits, 1, 0))


def retold(outputs: CellOutputs) -> CellOutputs:
    return replace(outputs, tokens=tuple((*tokens[:-1], 1) for tokens in outputs.tokens))


def cut_short(outputs: CellOutputs) -> CellOutputs:
    return replace(outputs, tokens=(outputs.tokens[0][:-1], *outputs.tokens[1:]))


FIRST = {"plain_first_token", "transformer_lens_first_token", "nnsight_first_token"}


@pytest.mark.parametrize(
    ("perturb", "wrong"),
    [
        (shifted, FIRST),
        (unknown, FIRST),
        (missed, FIRST),
        (retold, RATIOS - FIRST),
        (cut_short, RATIOS - FIRST),
    ],
)
def test_it_notices_when_hopscope_is_wrong(
    task: Task, monkeypatch: pytest.MonkeyPatch, perturb: Perturb, wrong: set[str]
) -> None:
    true = race.run_hopscope
    monkeypatch.setattr(race, "run_hopscope", lambda *args, **kw: perturb(true(*args, **kw)))
    result = ran(task)
    assert result["agree"] is False
    assert {name for name, one in result["agreement"].items() if not one["agree"]} == wrong
    assert {name for name, ratio in result["ratios"].items() if ratio is None} == wrong


def test_a_contender_that_fails_is_null_with_its_reason(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Task) -> Any:
        raise ImportError("no such library")

    monkeypatch.setitem(others.CONTENDERS, "nnsight_first_token", broken)
    result = ran(task)
    assert result["ratios"]["nnsight_first_token"] is None
    assert result["seconds"]["nnsight_first_token"] is None
    assert result["failures"] == {"nnsight_first_token": "ImportError: no such library"}
    assert result["agree"] is True
    assert "no such library" in table(result)


def command() -> typer.Typer:
    app = typer.Typer()
    app.command()(back_patching.main)
    return app


def test_the_command_prints_one_object() -> None:
    done = CliRunner().invoke(command(), ["--config", "tiny", "--json", "--rounds=1", "--batch=2"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["agree"] is True


def test_the_command_fails_when_they_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    true = race.run_hopscope
    monkeypatch.setattr(race, "run_hopscope", lambda *args, **kw: shifted(true(*args, **kw)))
    done = CliRunner().invoke(command(), ["--config", "tiny", "--json", "--rounds=1", "--batch=2"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["agree"] is False


@pytest.mark.parametrize(
    "options",
    [
        ["--config", "llama-9b"],
        ["--config", "tiny", "--position", "t3"],
        ["--config", "tiny", "--prompt", "The capital of France is"],
        ["--prompt", "The capital of France is", "--position", "t1"],
        ["--prompt", "The capital of France is", "--position", "t1", "--first-hop", "Spain"],
        ["--prompt", "The capital of France is", "--few-shot"],
        ["--config", "tiny", "--layer-step", "9"],
    ],
)
def test_options_that_do_not_go_together_are_refused(options: list[str]) -> None:
    assert CliRunner().invoke(command(), options).exit_code == 2


def test_it_runs_as_a_script() -> None:
    script = ROOT / "benchmarks" / "back_patching.py"
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--layer-step" in done.stdout


CELLS = st.lists(
    st.tuples(st.integers(0, 4), st.lists(st.integers(0, 2), max_size=4).map(tuple)), max_size=8
)


@settings(deadline=None)
@given(CELLS)
def test_the_work_of_decoding_equals_brute_force(cells: list[tuple[int, tuple[int, ...]]]) -> None:
    n_layers, asked = 5, 4
    units, rows = set[tuple[Any, ...]](), 0
    for cell, (target, tokens) in enumerate(cells):
        for step in range(1, asked):
            if len(tokens) < step:
                break
            rows += 1
            for layer in range(n_layers):
                own = layer > target
                units.add((layer, tokens[:step], cell if own else None))
    targets, generated = [target for target, _ in cells], [tokens for _, tokens in cells]
    assert decoding_work(targets, generated, n_layers, asked) == Work(len(units), rows)


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), max_size=8), st.integers(0, 5))
def test_the_work_of_a_prompt_equals_brute_force(targets: list[int], position: int) -> None:
    n_layers, n_tokens = 5, 6
    units = {(layer, token, None) for layer in range(n_layers) for token in range(n_tokens)}
    own = {
        (layer, token, cell)
        for cell, target in enumerate(targets)
        for layer in range(target + 1, n_layers)
        for token in range(position, n_tokens)
    }
    counted = prompt_work(targets, n_layers, n_tokens, position)
    assert counted == Work(len(units) + len(own), len(targets))


def test_unit_times_are_measured(task: Task) -> None:
    unit = unit_times(task.model, rows=3, n_keys=5, repeats=2)
    assert unit.rows == 3
    assert unit.layer_token > 0
    assert unit.unembedding_row > 0
    assert prompt_work([0], 4, 5, 4).seconds(unit) > 0


def test_near_ties_are_told_from_mistakes(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(2, 0)
    mine = others.plain_generation(task)(pair)
    theirs = (mine[0], next(t for t in range(5, 99) if t != mine[1]), *mine[2:])
    assert not agreement.near_tie(task, task.subject, pair, mine, theirs)
    assert not agreement.near_tie(task, task.subject, pair, mine, mine[:2])
    monkeypatch.setitem(agreement.TOLERANCE, torch.float32, 1e9)
    assert agreement.near_tie(task, task.subject, pair, mine, theirs)


def test_the_patched_token_is_the_last_of_the_phrase(task: Task) -> None:
    model = task.model
    for few_shot in (False, True):
        (at_t1, *_), answer = real_subjects(model, "t1", few_shot, 2)
        (at_t2, *_), _ = real_subjects(model, "t2", few_shot, 2)
        assert model.decode(at_t1.ids[: at_t1.position + 1]).endswith("the Eiffel Tower")
        assert at_t2 == Subject(at_t1.ids, len(at_t1.ids) - 1)
        assert len(answer) == 1


def test_samples_are_seeded_and_dealt_once() -> None:
    cells = [Pair(a, b) for a in range(6) for b in range(a)]
    parts = sample_of(cells, 7, 3)
    assert parts == sample_of(cells, 7, 3)
    assert [len(part) for part in parts] == [3, 2, 2]
    assert len({pair for part in parts for pair in part}) == 7
    assert sorted(pair for part in sample_of(cells, None, 4) for pair in part) == sorted(cells)


def test_left_padding() -> None:
    ids, mask = left_padded([[5, 6, 7], [8]], 0, torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_the_read_out_takes_the_best_answer() -> None:
    logprob, rank = read(torch.tensor([0.0, 3.0, 2.0, 1.0]), [3, 2]).tolist()
    assert rank == 1
    assert logprob == pytest.approx(torch.tensor([0.0, 3.0, 2.0, 1.0]).log_softmax(0)[2].item())


def test_the_copy_shares_weights_and_no_modules(task: Task) -> None:
    hf = task.model.hf
    copied = others.copy_of_modules(hf)
    pairs = zip(hf.parameters(), copied.parameters(), strict=True)
    assert all(one is other for one, other in pairs)
    assert not set(hf.modules()) & set(copied.modules())
    assert next(islice(hf.parameters(), 1)).requires_grad is False
