"""Options that commands share: which a command has, in which order, and what it is given."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from hopscope.commands.options import (
    CommonOptions,
    DocumentOptions,
    QueryOptions,
    SubsetOptions,
    split_commas,
    with_options,
)
from hopscope.errors import UsageError
from hopscope.models.quantization import QUANTIZATIONS


def app_of(given: list[Any], **how: Any) -> typer.Typer:
    """A command that notes what it was given."""
    app = typer.Typer()

    @app.command()
    @with_options(SubsetOptions, **how)
    def command(
        options: SubsetOptions, *, window: Annotated[int, typer.Option(min=0, help="Layers.")] = 3
    ) -> None:
        """Do something."""
        given.append((options, window))

    return app


def test_a_command_is_given_one_object_and_its_own_options() -> None:
    given: list[Any] = []
    app = app_of(given, subset="incorrect")
    assert CliRunner().invoke(app, []).exit_code == 0
    assert CliRunner().invoke(app, ["-m", "mine", "--window", "5", "--shard", "1/2"]).exit_code == 0
    assert given == [
        (SubsetOptions(subset="incorrect"), 3),
        (SubsetOptions(model="mine", shard="1/2", subset="incorrect"), 5),
    ]
    assert SubsetOptions().subset == "correct"


def test_own_options_stand_between_those_that_are_shared() -> None:
    (command,) = app_of([], without=["shard", "most"]).registered_commands
    assert command.callback is not None
    assert list(inspect.signature(command.callback).parameters) == [
        "model", "queries", "hops", "bridge", "subset", "limit", "need", "few_shot", "chat",
        "window",
        "seed", "out", "on", "workers", "jobs", "partition", "gpus_each",
        "device", "dtype", "quantization", "dry_run", "full", "as_json",
    ]  # fmt: skip
    assert command.callback.__doc__ == "Do something."


def test_options_of_documents_stand_after_a_commands_own() -> None:
    @with_options(DocumentOptions)
    def command(options: DocumentOptions, *, orders: str = "forward") -> None: ...

    names = list(inspect.signature(command).parameters)
    assert names[:6] == ["model", "questions", "limit", "few_shot", "orders", "distractors"]
    assert names[-5:] == ["dtype", "quantization", "dry_run", "full", "as_json"]


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_model_is_loaded_as_the_options_say(kind: str) -> None:
    pytest.importorskip(QUANTIZATIONS[kind])
    asked: dict[str, Any] = {"model": "tiny-random-llama", "device": "cpu", "dtype": "bfloat16"}
    plain = QueryOptions(**asked).load_model()
    model = QueryOptions(**asked, quantization=kind).load_model()
    questioned, _ = DocumentOptions(**asked, quantization=kind, limit=1).load([])
    assert plain.quantization is None
    assert questioned.quantization == model.quantization is not None
    assert {str(each.dtype) for each in (plain, model, questioned)} == {"torch.bfloat16"}


@pytest.mark.parametrize("how", [{"without": ["shrad"]}, {"limt": 3}])
def test_fields_that_there_are_not_are_told(how: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"SubsetOptions has no (shrad|limt)"):
        with_options(SubsetOptions, **how)


def test_options_that_a_command_is_without_are_unknown_to_it() -> None:
    given: list[Any] = []
    app = app_of(given, without=["shard"])
    assert CliRunner().invoke(app, ["--shard", "1/2"]).exit_code == 2
    assert CliRunner().invoke(app, []).exit_code == 0
    assert given == [(SubsetOptions(), 3)]


@pytest.mark.parametrize("options", [CommonOptions, QueryOptions, SubsetOptions, DocumentOptions])
@pytest.mark.parametrize("shard", ["3/2", "1", "a/b"])
def test_a_shard_that_is_none_is_told_before_anything_is_loaded(
    options: type[CommonOptions], shard: str
) -> None:
    with pytest.raises(UsageError, match="shard"):
        options(shard=shard)
    assert options(shard="1/2").settings()["shard"] == (1, 2)


def test_a_subset_that_is_none_is_told_before_anything_is_loaded() -> None:
    with pytest.raises(
        UsageError,
        match="unknown subset 'right': choose one of incorrect, correct, both, inconsistent, all",
    ):
        SubsetOptions(subset="right")


def test_commas_with_or_without_blanks() -> None:
    assert split_commas("t1, t2,,e1 ") == ["t1", "t2", "e1"]
    assert split_commas("") == []


@pytest.mark.parametrize(
    ("given", "precision"),
    [
        ({}, []),
        ({"dtype": "float32"}, []),
        ({"dtype": "torch.float32", "quantization": "nf4"}, ["nf4"]),
        ({"dtype": "bfloat16", "quantization": "int8"}, ["bfloat16", "int8"]),
    ],
)
def test_precision_is_what_is_not_usual(given: dict[str, str], precision: list[str]) -> None:
    assert CommonOptions(device="cpu", **given).precision == precision  # type: ignore[arg-type]


def test_float32_is_not_usual_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert CommonOptions(dtype="float32").precision == ["float32"]
    assert CommonOptions().precision == []
