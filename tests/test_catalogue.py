"""Tests that what is registered is found in the shell, in studies, reports and the docs."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Unpack

import pandas as pd
import pytest
from known import known_model, known_queries

import hopscope as hs
from hopscope import cli
from hopscope.commands import specs
from hopscope.errors import ResultError, UsageError
from hopscope.experiments import registry
from hopscope.experiments.analysis import (
    RUN_KEYWORDS,
    Analysis,
    RunKeywords,
    RunOptions,
    analysis,
    argument_texts,
    run_in_parts,
)
from hopscope.experiments.arguments import AtLeast, Edges, Heads, Layers, ListOf, Orders
from hopscope.experiments.catalogue import analyses, as_markdown
from hopscope.models.language_model import LanguageModel
from hopscope.queries.query_set import QuerySet
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.study import report
from hopscope.study.presets import Preset
from hopscope.study.readme import marked
from hopscope.study.study import run_study

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, repr=False)
class Lengths(Result):
    """How long prompts are."""

    kind = "toy_lengths"
    columns: ClassVar = {"query": "str", "unit": "str", "n": "int64"}

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"mean": self.frame.groupby("unit")["n"].mean().reset_index()}

    def findings(self) -> list[str]:
        return [f"prompts have {self.frame['n'].mean():.1f} units on average."]


@pytest.fixture
def toy() -> Iterator[Analysis]:
    """An analysis of a user's own, registered while a test runs."""

    @analysis(
        "toy-lengths",
        title="Lengths of prompts",
        question="How long are the prompts?",
        source="nowhere, 2026",
        control="none",
        subsets=("correct",),
        order=5,
        accepts={"units": ListOf(("tokens", "letters")), "least": AtLeast(0)},
    )
    def lengths(
        model: LanguageModel,
        queries: QuerySet,
        units: tuple[str, ...] = ("tokens",),
        least: int = 0,
        **run: Unpack[RunKeywords],
    ) -> Lengths:
        """Count what prompts are made of.

        Args:
            model: the model.
            queries: the queries.
            units: any of `tokens`, `letters`.
            least: shorter prompts count as so long.

        Raises:
            UsageError: for an unknown unit.
        """
        options = RunOptions(**run)

        def compute(part: QuerySet) -> Tables:
            measured = {"tokens": lambda text: len(model.encode(text)), "letters": len}
            rows = [
                {"query": each.id, "unit": unit, "n": max(least, measured[unit](each.two_hop()))}
                for each in part
                for unit in units
            ]
            details = pd.DataFrame({"query": [each.id for each in part]})
            return {"frame": Lengths.joined([pd.DataFrame(rows)]), "details": details}

        settings = {"units": list(units), "least": least, "seed": options.seed}
        return run_in_parts(Lengths, model, queries, settings, compute, options, per_part=4)

    yield registry.REGISTERED["toy_lengths"]
    del registry.REGISTERED["toy_lengths"]


def shell(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """What a command exits with and prints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["hopscope", *arguments])
        patch.setenv("COLUMNS", "160")
        with pytest.raises(SystemExit) as stop:
            cli.main()
    done = capsys.readouterr()
    return int(stop.value.code or 0), done.out + done.err


def test_a_new_analysis_is_a_command(toy: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = shell(capsys, "--help")
    assert code == 0
    assert re.search(r"toy-lengths +Count what prompts are made of\.", text)
    places = [text.index(f" {name} ") for name in ("grade", "toy-lengths", "back-patch")]
    assert places == sorted(places), "in its order among the others"
    code, text = shell(capsys, "toy-lengths", "--help")
    assert "How long are the prompts? (nowhere, 2026)" in text
    for option in ("--units", "--least", "--subset", "--out", "--shard", "--json"):
        assert option in text
    assert "Any of tokens, letters; separated by commas." in text


def test_its_command_checks_before_anything_is_loaded(
    toy: Analysis, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = shell(capsys, "toy-lengths", "-m", "no-such-model", "--units", "words")
    assert code == 2
    assert "unknown unit 'words': choose one of tokens, letters" in text


def test_its_command_runs_it(
    toy: Analysis, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    known_queries().to_csv(tmp_path / "known.csv")
    asked = ("-m", "tiny-random-llama", "-q", str(tmp_path / "known.csv"), "--subset", "all")
    code, text = shell(
        capsys, "toy-lengths", *asked, "--units", "letters", "-o", str(tmp_path / "r")
    )
    assert code == 0, text
    assert "letters" in text
    assert hs.load_result(tmp_path / "r").run["settings"]["units"] == ["letters"]


def test_a_study_runs_it_and_a_report_tells_it(toy: Analysis, tmp_path: Path) -> None:
    size = Preset(limit=None, most=3, layer_step=1)
    study = run_study(
        known_model(), known_queries(), tmp_path / "runs", size, ["toy_lengths"], progress=False
    )
    assert list(study.results) == ["toy_lengths.correct"]
    again = hs.load_result(tmp_path / "runs" / "toy_lengths.correct")
    assert type(again) is toy.result
    assert again.n_queries == 3
    page = report.write(study, tmp_path).read_text("utf-8")
    assert '<h2 id="toy_lengths"' in page
    assert "How long are the prompts? (nowhere, 2026)" in page
    assert "rompts have" in page
    table = pd.read_csv(tmp_path / "tables" / "toy_lengths.correct.mean.csv")
    assert list(table["unit"]) == ["tokens"]


def test_what_a_toy_leaves_is_gone() -> None:
    assert "toy_lengths" not in {each.name for each in analyses()}


def test_common_keywords_are_described_and_taken_by_position() -> None:
    signature = inspect.signature(hs.trace)
    names = list(signature.parameters)
    assert names[-len(RUN_KEYWORDS) :] == [*RUN_KEYWORDS]
    assert names.index("seed") == names.index("window") + 1
    assert "out: run folder; a run that was stopped there goes on." in (hs.trace.__doc__ or "")
    with pytest.raises(TypeError, match="unexpected keyword argument 'shards'"):
        hs.trace(None, None, shards=(1, 2))  # type: ignore[arg-type, call-arg]


@pytest.mark.parametrize("entry", analyses(), ids=lambda entry: entry.name)
def test_every_analysis_says_what_it_is(entry: Analysis) -> None:
    assert entry.title
    assert entry.question.endswith("?")
    assert entry.help.endswith(".")
    assert issubclass(entry.result, Result)
    assert getattr(hs, entry.function.__name__) is entry.function
    described = argument_texts(inspect.getdoc(entry.function) or "")
    parameters = inspect.signature(entry.function).parameters
    assert set(parameters) <= set(described), "every argument is described"
    printed = inspect.signature(entry.result.printed).parameters
    assert set(entry.accepts) <= {*parameters, *printed}, "nothing else is checked"


INVALID: dict[str, Any] = {
    "OneOf": "no such name",
    "ListOf": ["no such name"],
    "Orders": [],
    "Edges": ["no edge"],
    "TargetPrompts": ["no such prompt"],
    "Routes": ["no such route"],
    "SettingsOf": {"no such setting": 1},
    "Loaded": "smollm2-135m",
    "Queries": ["The capital of France is"],
    "Retrievers": ["bm52"],
    "Questions": ["Where was the author of Emma born?"],
}


def invalid(constraint: Any) -> Any:
    """A value that a constraint does not accept."""
    if getattr(constraint, "least", None) is not None:
        return constraint.least - 1
    return INVALID.get(type(constraint).__name__, object())


CHECKED = [
    (entry, name)
    for entry in analyses()
    for name, each in entry.accepts.items()
    if type(each).__name__ not in ("Layers", "Heads", "Cells")
]


@pytest.mark.parametrize(("entry", "name"), CHECKED, ids=lambda each: getattr(each, "name", each))
def test_an_invalid_value_is_told_for_every_parameter(entry: Analysis, name: str) -> None:
    with pytest.raises(UsageError):
        entry.check({name: invalid(entry.accepts[name])})


LISTED = [(entry, name) for entry, name in CHECKED if isinstance(entry.accepts[name], ListOf)]


@pytest.mark.parametrize(("entry", "name"), LISTED, ids=lambda each: getattr(each, "name", each))
def test_one_name_alone_is_a_list_of_one(entry: Analysis, name: str) -> None:
    for known in entry.accepts[name].known:  # type: ignore[attr-defined]
        assert entry.check({name: known}) == {name: [known]}


@pytest.mark.parametrize(
    ("constraint", "alone"),
    [(Orders(), "forward"), (Edges(), "query->key"), (Layers(), 2), (Heads(), 1)],
    ids=lambda each: type(each).__name__,
)
def test_one_order_edge_layer_or_head_alone_is_a_list_of_one(
    constraint: Any, alone: str | int
) -> None:
    assert constraint.checked("each", alone, known_model()) == [alone]


@pytest.mark.parametrize(
    ("given", "called"),
    [
        (["The capital of France is"], "a list of str"),
        (pd.DataFrame({"prompt": ["The capital of France is"]}), "a DataFrame"),
        ("world", "'world'"),
        (None, "None"),
    ],
    ids=["texts", "frame", "name", "none"],
)
def test_what_is_no_query_set_is_told_how_to_make_one(given: Any, called: str) -> None:
    calls = [
        lambda: hs.recall(known_model(), given),
        lambda: hs.grade_until(known_model(), given, {"correct": 1}),
        lambda: hs.fit_probe(known_model(), given),
        lambda: hs.permute_documents(known_model(), given),
    ]
    for call in calls:
        with pytest.raises(UsageError, match=f"must be a Que.*Set, not {called}: make one with hs"):
            call()


def test_layer_step_takes_the_layers_that_are_meant(tmp_path: Path) -> None:
    model, queries = known_model(), known_queries()[:2]
    how: dict[str, Any] = {"edges": "t2->t1", "controls": (), "progress": False}
    stepped = hs.knockout(model, queries, layer_step=2, **how)
    every = range(0, model.n_layers, 2)
    pd.testing.assert_frame_equal(
        stepped.frame, hs.knockout(model, queries, layers=every, **how).frame
    )
    assert set(stepped.frame["layer"]) == set(every) != set(range(model.n_layers))
    with pytest.raises(UsageError, match="give layers or layer_step, not both"):
        hs.knockout(model, queries, layers=[1], layer_step=2, **how)
    with pytest.raises(UsageError, match="layer_step must be 1 or more, not 0"):
        hs.knockout(model, queries, layer_step=0, **how)


def test_every_command_ends_with_an_example_that_is_one() -> None:
    from typer.main import get_command

    top: Any = get_command(cli.app)
    context = top.make_context("hopscope", [], resilient_parsing=True)
    commands = {(name,): top.get_command(context, name) for name in top.list_commands(context)}
    for name in [name for name, each in commands.items() if hasattr(each, "commands")]:
        group = commands.pop(name)
        commands |= {(*name, each): command for each, command in group.commands.items()}
    assert ("models", "list") in commands
    for name, command in commands.items():
        program, *arguments = shlex.split(command.epilog.removeprefix("Example: "))
        assert (program, *arguments[: len(name)]) == ("hopscope", *name)
        parsed = command.make_context(" ".join(name), arguments[len(name) :])
        assert not parsed.args


def test_choices_are_shown_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = shell(capsys, "back-patch", "--help")
    assert code == 0
    assert re.search(r"--match +word\|substring ", text)
    assert re.search(r"--bridge +e2\|e3\|e4 ", text)
    panels = re.findall(r"─ (\w+) ─", text)
    assert panels == ["Options", "Model", "Queries", "Analysis", "Run", "Elsewhere", "Output"]


def test_the_written_commands_are_those_of_the_catalogue() -> None:
    assert specs.WRITTEN.read_text("utf-8") == specs.as_json(), "run `make readme`"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--quiery", "world"], ["--max-new-tokens", "x"]]
)
def test_help_and_mistyped_options_import_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from hopscope.cli import main\n"
        "sys.argv = ['hopscope', 'back-patch', *sys.argv[1:]]\n"
        "try: main()\n"
        "except SystemExit as stop: print(stop.code, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"{0 if arguments == ['--help'] else 2} False"


@pytest.mark.parametrize("page", ["README.md", "docs/analyses.md"])
def test_the_table_of_analyses_is_that_of_the_catalogue(page: str) -> None:
    (table,) = marked("analyses").findall((ROOT / page).read_text("utf-8"))
    assert table == as_markdown(), "run `make readme`"


def test_run_folders_of_another_kind_are_told(toy: Analysis, tmp_path: Path) -> None:
    result = toy.function(known_model(), known_queries()[:2], progress=False)
    result.save(tmp_path / "run")
    with pytest.raises(ResultError, match="holds a result of kind 'toy_lengths'"):
        hs.BackPatching.load(tmp_path / "run")
