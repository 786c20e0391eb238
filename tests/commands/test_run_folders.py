"""Tests of `hopscope runs`, and of the options that say where runs are computed."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import loaded
from known import many_queries, parts
from transformers import AutoModelForCausalLM

import hopscope as hs
from hopscope import cli
from hopscope.commands.options import CommonOptions, QueryOptions
from hopscope.errors import UsageError
from hopscope.models.tiny import build_tiny
from hopscope.results.claims import TRIES, note_failure
from hopscope.results.run_folder import RECORD, read_run
from hopscope.study import study

BACK: dict[str, Any] = {"positions": ["t1"], "max_new_tokens": 2, "progress": False}


def shell(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """What a command exits with and prints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["hopscope", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    done = capsys.readouterr()
    return int(stop.value.code or 0), done.out, done.err


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    hs.back_patch(loaded("tiny-random-llama"), many_queries()[:8], out=folder, **BACK)
    return folder


@pytest.fixture
def half(whole: Path, tmp_path: Path) -> Path:
    """The run with two of its four parts."""
    left_out = shutil.ignore_patterns("*-000002.parquet", "*-000006.parquet")
    return Path(shutil.copytree(whole, tmp_path / "half", ignore=left_out))


def test_status_says_what_is_done_and_what_failed(
    half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(TRIES):
        note_failure(half, 2, "RuntimeError: out of luck")
    code, out, _ = shell(capsys, "runs", "status", half, "--json")
    told = json.loads(out)
    (run,) = told["runs"]
    assert code == 0
    assert (run["kind"], run["parts"], run["done"], run["failed"]) == ("back_patching", 4, 2, 1)
    assert run["minutes_left"] >= 0
    assert told["failed"][0]["error"] == "RuntimeError: out of luck"
    code, out, _ = shell(capsys, "runs", "status", half.parent)
    assert "back_patching" in out
    assert "out of luck" in out


def test_work_computes_what_is_missing_and_retry_what_failed(
    whole: Path, half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(TRIES):
        note_failure(half, 2, "RuntimeError: out of luck")
    code, _, err = shell(capsys, "runs", "work", half, "--device", "cpu", "--threads", 1)
    assert code == 1
    assert "part 2: RuntimeError: out of luck" in err
    assert len(parts(half)) == 6
    code, _, _ = shell(capsys, "runs", "retry", half, "--device", "cpu", "--threads", 1)
    assert code == 0
    assert parts(half) == parts(whole)
    assert {path.name.partition("-")[0] for path in half.glob("[!df]*")} == {
        RECORD,
        "inputs",
        "machine",
    }


def test_work_leaves_results_alone_that_were_saved_among_runs(
    whole: Path, half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hs.load_result(whole).save(half.parent / "saved")
    assert shell(capsys, "runs", "work", half.parent, "--device", "cpu", "--threads", 1)[0] == 0
    assert parts(half) == parts(whole)
    assert len(parts(half.parent / "saved")) == 2


def test_merge_puts_parts_of_two_machines_together(
    whole: Path, half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(whole, tmp_path / "other"))
    (other / "frame-000000.parquet").unlink()
    code, out, _ = shell(capsys, "runs", "merge", tmp_path / "all", half, other)
    assert (code, out) == (0, f"4 parts were added to {tmp_path / 'all'}\n")
    assert parts(tmp_path / "all") == parts(whole)
    assert shell(capsys, "runs", "work", tmp_path / "all", "--device", "cpu")[0] == 0
    hs.back_patch(
        loaded("tiny-random-llama"),
        many_queries()[:8],
        out=tmp_path / "strange",
        **BACK | {"seed": 1},
    )
    code, _, err = shell(capsys, "runs", "merge", tmp_path / "all", tmp_path / "strange")
    assert code == 2
    assert "settings seed" in err


def test_a_folder_without_runs_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("status", "work", "retry"):
        code, _, err = shell(capsys, "runs", command, tmp_path)
        assert code == 2
        assert "is no run folder, and holds none" in err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--on", "spark"], "unknown engine 'spark'"),
        (["--workers", "2"], "--workers goes with --on ray"),
        (["--jobs", "2", "--on", "ray"], "--jobs goes with --on slurm"),
        (["--on", "ray", "--workers", "2", "--shard", "1/2", "-o", "x"], "either on or shard"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    given: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["-m", "no-such-model", "--subset", "all", "--limit", "4", *given]
    code, _, err = shell(capsys, "back-patch", *asked)
    assert code == 2
    assert told in err


TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def test_who_asks_for_a_study_reads_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the model that workers load the tokenizer is read, for the turns of its chat."""
    hf, tokenizer = build_tiny("tiny-random-llama")
    tokenizer.chat_template = TURNS
    hf.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    asked = list[Any]()

    def run_study(*given: Any, on: Any, **_: Any) -> None:
        asked.extend([*given[:2], on])
        raise UsageError("asked")

    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("the weights are read")

    with monkeypatch.context() as patch:
        patch.setattr(study, "run_study", run_study)
        patch.setattr(AutoModelForCausalLM, "from_pretrained", read)
        given = ["-m", tmp_path / "model", "--chat", "--on", "slurm", "-o", tmp_path / "study"]
        code, _, err = shell(capsys, "study", *given)
    assert (code, "asked" in err) == (2, True), err
    reference, queries, on = asked
    assert (reference.source, on) == (str(tmp_path / "model"), hs.Slurm())
    model = hs.load_model(tmp_path / "model", device="cpu")
    loaded_here = hs.load_queries("world").with_chat(model)
    assert queries.fingerprint == loaded_here.fingerprint
    assert queries.prompts()[0] == loaded_here.prompts()[0]


def test_a_probe_is_computed_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(CommonOptions, "engine", hs.Slurm(cluster="debug"))
    asked = ["-m", "tiny-random-llama", "--few-shot", 0, "--limit", 60, "--device", "cpu"]
    asked += ["--target", "e2_type", "--folds", 2, "--layer-step", 2]
    code, _, err = shell(capsys, "probe", *asked, "--on", "slurm", "--save", "x.safetensors")
    assert (code, "leave out --save or --on" in err) == (2, True), err
    with monkeypatch.context() as patch:
        patch.setattr(QueryOptions, "load_model", None)  # workers load it
        assert shell(capsys, "probe", *asked, "--on", "slurm", "-o", tmp_path / "two")[0] == 0
    monkeypatch.setattr(CommonOptions, "engine", None)
    assert shell(capsys, "probe", *asked, "-o", tmp_path / "one")[0] == 0
    assert parts(tmp_path / "two") == parts(tmp_path / "one") != {}
    assert read_run(tmp_path / "one")["settings"] == read_run(tmp_path / "two")["settings"]


def test_the_commands_say_where_runs_may_be_computed(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("back-patch", "auto-patch", "probe", "grade", "permute", "study"):
        _, out, _ = shell(capsys, command, "--help")
        assert "--on" in out
        assert "--workers" in out
    _, out, _ = shell(capsys, "back-attention", "--help")
    assert "--on " not in out
    assert "--workers" not in out
