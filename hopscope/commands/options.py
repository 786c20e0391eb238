"""Provides the options that commands share, and `with_options`, which gives them to a command.

A command takes them as its first argument, one object; its own options follow by name.
"""

from __future__ import annotations

import copy
import functools
import inspect
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Concatenate,
    Self,
    TypeVar,
    get_args,
    get_type_hints,
)

import typer
from typer.models import OptionInfo

from hopscope.commands.printing import AsJson, Full
from hopscope.errors import MAX_SEED, TakenError, UsageError, one_of
from hopscope.files import check_place
from hopscope.queries.query import ENTITIES

if TYPE_CHECKING:
    from hopscope.distributed.ray_cluster import Ray
    from hopscope.distributed.slurm import Slurm
    from hopscope.documents.orders import Order
    from hopscope.documents.question_set import QuestionSet
    from hopscope.experiments.analysis import Analysis
    from hopscope.experiments.two_hop.grading import Grading
    from hopscope.models.language_model import LanguageModel
    from hopscope.models.reference import ModelReference
    from hopscope.prompting.document_prompts import DocumentModel
    from hopscope.queries.query_set import QuerySet

WIDEST = len("<int range> [x>=1]")
"""How many characters of choices stand beside an option; more are in its help."""
SUBSETS = ("incorrect", "correct", "both", "inconsistent", "all")


def choice(known: Sequence[str], **described: Any) -> Any:
    """An option whose choices `--help` lists, whole in 80 columns, and the shell completes.

    Another value is refused where every argument is checked, with the names that are alike.

    Args:
        known: the choices.
        **described: as for `typer.Option`.
    """
    names, help = "|".join(known), str(described.pop("help", ""))
    if len(names) > WIDEST:  # names in a column of their own would be cut, or cut the help
        told = set(re.findall(r"[^\s,;:()]+", help.replace(".", " ")))
        help += "" if set(known) <= told else f" Choices: {', '.join(known)}."
        names = "<name>"
    return typer.Option(metavar=names, autocompletion=lambda: list(known), help=help, **described)


Model = Annotated[
    str, typer.Option("--model", "-m", help="Zoo name, hub id, folder or .gguf file.")
]
Queries = Annotated[
    str, typer.Option("--queries", "-q", help="Bundled set, .csv/.parquet/.jsonl, or hub id.")
]
Questions = Annotated[
    str,
    typer.Option(
        "--questions",
        "-q",
        help="world-docs, world-docs-shared, a file, or a hub id.",
    ),
]
Subset = Annotated[
    str,
    choice(
        SUBSETS,
        help="Queries whose two hops are answered wrong or right, graded first; inconsistent: "
        "wrong, whatever the shortcuts.",
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Use a random sample of this size.")]
Most = Annotated[
    int | None, typer.Option(min=1, help="Analyse at most this many queries of the subset.")
]
Need = Annotated[
    int,
    typer.Option(
        min=0,
        help="Keep grading beyond --limit until the subset has this many queries; 0: do not.",
    ),
]
FewShot = Annotated[
    int | None,
    typer.Option(
        "--few-shot",
        min=0,
        help="Demonstrations per prompt; by default the number of the query set.",
    ),
]
Hops = Annotated[
    int | None,
    typer.Option(min=2, max=4, help="Keep queries of so many hops, of a file that has several."),
]
Bridge = Annotated[
    str | None,
    choice(ENTITIES[1:-1], help="Ask longer chains as two hops, divided at this entity."),
]
InChat = Annotated[
    bool, typer.Option("--chat", help="Ask in the turns of the model's own chat template.")
]
Distractors = Annotated[
    int, typer.Option(min=0, help="Documents beside the gold ones, in the bundled sets.")
]
SkipImpossible = Annotated[
    bool,
    typer.Option(
        "--skip-impossible",
        help="Skip questions whose documents cannot be put into one of the orders.",
    ),
]
Tokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Tokens to generate.")]
Match = Annotated[
    str,
    choice(("word", "substring"), help="How an answer is recognised; substring is the paper's."),
]
Parity = Annotated[
    bool,
    typer.Option("--parity", help="The setting of the paper's own code, with no demonstrations."),
]
Step = Annotated[int, typer.Option("--layer-step", min=1, help="Use only every n-th layer.")]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Random seed.")]


def folder_option(path: Path | None) -> Path | None:
    """Check an option that names a folder to write to, before anything is loaded."""
    if path is not None:
        check_place(path)
    return path


def file_option(path: Path | None) -> Path | None:
    """Check an option that names a file to write, before anything is loaded."""
    if path is not None and os.path.isdir(path):
        raise UsageError(f"{path} is a folder; give the name of a file in it")
    if path is not None:
        check_place(path.parent)
    return path


def run_option(path: Path | None) -> Path | None:
    """Check an option that names a run folder, or one of several runs.

    A run that is there may be finished, and its folder be read-only.
    """
    from hopscope.results.run_folder import RECORD, is_run, is_taken

    if path is None or is_run(path):
        return path
    if is_taken(path, RECORD) and not any(path.glob(f"*/{RECORD}")):
        raise TakenError(f"{path} is there and is not a run folder; choose another place")
    return folder_option(path)


Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        help="Run folder; if it holds an interrupted run, that is continued.",
        callback=run_option,
    ),
]
Shard = Annotated[
    str | None, typer.Option(help="i/n: compute only the i-th of n shares of the queries.")
]
On = Annotated[
    str | None,
    choice(("ray", "slurm"), help="Compute the parts of runs by Ray or by jobs of Slurm."),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Workers of Ray; by default one for each GPU of the cluster."),
]
Jobs = Annotated[int | None, typer.Option(min=1, help="Jobs of Slurm; 1 by default.")]
Partition = Annotated[str | None, typer.Option(help="The partition of the jobs of Slurm.")]
GpusEach = Annotated[
    int | None, typer.Option("--gpus-each", min=0, help="GPUs of each worker or job.")
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, ...; by default a GPU if there is one.")
]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, ...")]
Quantization = Annotated[
    str | None,
    choice(("nf4", "int8", "fp8"), help="Quantise weights while the model is loaded."),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Only say what it would cost, measured on a few queries; write nothing."
    ),
]
Preset = Annotated[
    str,
    choice(
        ("quick", "paper", "hopping-too-late"),
        help="Minutes, or everything; hopping-too-late: in the setting of that paper's code.",
    ),
]


def given_options(context: typer.Context) -> set[str]:
    """The names of the options of a command that the shell was given."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}


@dataclass(frozen=True)
class CommonOptions:
    """Which model is run on how much, and where results go.

    Raises:
        UsageError: for a shard that is not of the form i/n.
    """

    model: Model = "smollm2-135m"
    limit: Limit = None
    few_shot: FewShot = None
    seed: Seed = 0
    out: Out = None
    shard: Shard = None
    on: On = None
    workers: Workers = None
    jobs: Jobs = None
    partition: Partition = None
    gpus_each: GpusEach = None
    device: Device = None
    dtype: Dtype = None
    quantization: Quantization = None
    dry_run: DryRun = False
    full: Full = False
    as_json: AsJson = False

    def __post_init__(self) -> None:
        _ = self.part, self.engine  # report what cannot be before loading anything

    @property
    def part(self) -> tuple[int, int] | None:
        """Which shard, of how many."""
        from hopscope.results.runs import parse_shard

        return None if self.shard is None else parse_shard(self.shard)

    @property
    def engine(self) -> Ray | Slurm | None:
        """What computes the parts of runs.

        Raises:
            UsageError: for an option of another engine.
        """
        if self.on is not None:
            one_of("engine", self.on, ("ray", "slurm"))
        goes_with = {
            "workers": ("ray",),
            "jobs": ("slurm",),
            "partition": ("slurm",),
            "gpus_each": ("ray", "slurm"),
        }
        for name, engines in goes_with.items():
            if getattr(self, name) is not None and self.on not in engines:
                needed = " or --on ".join(engines)
                raise UsageError(f"--{name.replace('_', '-')} goes with --on {needed}")
        if self.on is None:
            return None
        from hopscope.distributed.ray_cluster import Ray
        from hopscope.distributed.slurm import Slurm

        if self.on == "ray":
            return Ray(self.workers, self.gpus_each)
        return Slurm(self.partition, self.gpus_each, jobs=self.jobs or 1)

    def holding(self) -> AbstractContextManager[None]:
        """Keep the workers of the engine from one run to the next while the context is open."""
        engine = None if self.dry_run else self.engine
        return nullcontext() if engine is None else engine.held()

    @property
    def is_elsewhere(self) -> bool:
        """Whether the model need not be loaded here, since workers load it."""
        return self.on is not None and not self.dry_run

    def reference(self) -> ModelReference:
        """What workers load the model by."""
        from hopscope.models.reference import ModelReference

        return ModelReference.of(self.model, dtype=self.dtype, quantization=self.quantization)

    @property
    def loading(self) -> dict[str, Any]:
        """The arguments of the functions that load a model: device, dtype and quantization."""
        return {"device": self.device, "dtype": self.dtype, "quantization": self.quantization}

    @property
    def precision(self) -> list[str]:
        """The dtype and the quantization that were asked for, where they are not the usual ones."""
        from hopscope.models.load import device_of

        usual = (None, "float32") if device_of(self.device).type == "cpu" else (None,)
        dtype = self.dtype and self.dtype.removeprefix("torch.")
        return [each for each in (None if dtype in usual else dtype, self.quantization) if each]

    def at_parity(
        self, entry: Analysis, context: typer.Context, arguments: Mapping[str, Any], **names: str
    ) -> tuple[Self, dict[str, Any]]:
        """The options and arguments of a command in the setting of a paper.

        Args:
            entry: the analysis.
            context: of the command; what the shell was given wins.
            arguments: of the analysis, by name.
            **names: the name of an argument's option, where it is another one.

        Raises:
            UsageError: if demonstrations were asked for.
        """
        said = given_options(context)
        own = {each: arguments[each] for each in arguments if names.get(each, each) in said}
        return self.zero_shot(), {**arguments, **entry.with_parity(own)}

    def zero_shot(self) -> Self:
        """The same with no demonstrations, as the papers' settings have it.

        Raises:
            UsageError: if some were asked for.
        """
        if self.few_shot:
            raise UsageError(
                f"the setting of the paper has no demonstrations: leave out --few-shot "
                f"{self.few_shot}, or give the paper's other settings one by one"
            )
        return replace(self, few_shot=0)

    def settings(self) -> dict[str, Any]:
        """The arguments that every experiment takes: seed, out, shard and on."""
        on = None if self.dry_run else self.engine
        return {"seed": self.seed, "out": self.out, "shard": self.part, "on": on}


@dataclass(frozen=True)
class QueryOptions(CommonOptions):
    """Which model is asked which queries."""

    queries: Queries = "world"
    hops: Hops = None
    bridge: Bridge = None
    chat: InChat = False

    def load_model(self) -> LanguageModel:
        """The model, which generates from left to right."""
        from hopscope.loading import load_model

        return load_model(self.model, **self.loading)

    def load_queries(self) -> QuerySet:
        """The queries, as many and with as many demonstrations as were asked for."""
        from hopscope.experiments.analysis import limited
        from hopscope.loading import load_queries

        loaded = load_queries(self.queries, few_shot=self.few_shot, hops=self.hops)
        if self.bridge is not None:
            loaded = loaded.as_two_hop(self.bridge)
        return limited(loaded.with_few_shot(loaded.few_shot, self.seed), self.limit, self.seed)

    def asked(self, model: LanguageModel, queries: QuerySet) -> QuerySet:
        """The queries as the model is asked them: in a chat, or as plain text."""
        return queries.with_chat(model) if self.chat else queries

    def asked_elsewhere(self, queries: QuerySet) -> QuerySet:
        """The same of a model that workers load: of it the tokenizer is enough."""
        if not self.chat:
            return queries
        from hopscope.models.load import load_tokenizer
        from hopscope.queries.chat import Chat

        return replace(queries, chat=Chat(load_tokenizer(self.reference())))

    def load_both(self) -> tuple[LanguageModel, QuerySet]:
        """The model, or what workers load it by, and the queries as it is asked them."""
        return self.load_for(self.load_queries())  # first, to report mistakes before a model loads

    def load_for(self, queries: QuerySet) -> tuple[LanguageModel, QuerySet]:
        """The model, or what workers load it by, and queries as it is asked them."""
        if self.is_elsewhere:
            return self.reference(), self.asked_elsewhere(queries)  # type: ignore[return-value]
        model = self.load_model()
        return model, self.asked(model, queries)


@dataclass(frozen=True)
class SubsetOptions(QueryOptions):
    """As `QueryOptions`; the queries are graded first, and a subset of them is analysed.

    Raises:
        UsageError: for an unknown subset.
    """

    subset: Subset = "correct"
    most: Most = None
    need: Need = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("subset", self.subset, SUBSETS)

    def load(self, **rule: Any) -> tuple[LanguageModel, QuerySet]:
        """The model and the subset, graded into a folder beside `out`.

        Args:
            **rule: how it is graded: settings of `hopscope.grade`.
        """
        from hopscope.experiments.analysis import limited

        model, queries = self.load_candidates()
        if self.subset != "all":
            queries = self.grade(model, queries, **rule).subset(self.subset)
        return model, limited(queries, self.most, self.seed)

    def load_candidates(self) -> tuple[LanguageModel, QuerySet]:
        """The model, and the queries of which all are graded, or as many as are needed."""
        return (replace(self, limit=None) if self.goes_on else self).load_both()

    @property
    def goes_on(self) -> bool:
        """Whether queries are graded beyond `limit`, until there are enough."""
        return bool(self.needed)

    @property
    def needed(self) -> dict[str, int]:
        """Until how many there are of the subset queries are graded; none if all are graded."""
        from hopscope.experiments.two_hop.grading import needed

        enough = self.need if self.most is None else min(self.need, self.most)
        need = {} if self.subset == "all" else {self.subset: enough}
        return needed(need, self.limit, self._beside("grading"))

    def grade(self, model: LanguageModel, queries: QuerySet, **rule: Any) -> Grading:
        """Grade queries into a folder beside `out`."""
        from hopscope.experiments.two_hop.grading import grade, grade_until

        rule |= {} if self.dry_run else {"on": self.engine}
        if not self.goes_on:
            return grade(model, queries, out=self._beside("grading"), **rule)
        out, at_least = self._beside("graded"), self.limit or 0
        return grade_until(model, queries, self.needed, at_least, seed=self.seed, out=out, **rule)

    def _beside(self, name: str) -> Path | None:
        """A run folder beside `out`; None if there is none."""
        return None if self.out is None else self.out.with_name(f"{self.out.name}.{name}")


@dataclass(frozen=True)
class DocumentOptions(CommonOptions):
    """Which model is asked which questions over documents, and how these are written."""

    questions: Questions = "world-docs"
    distractors: Distractors = 4
    skip_impossible: SkipImpossible = False

    def load(self, orders: Sequence[Order]) -> tuple[DocumentModel, QuestionSet]:
        """The model and the questions, of which those that cannot have the orders may be left out.

        Args:
            orders: of the documents.
        """
        from hopscope.documents.orders import that_allow
        from hopscope.experiments.analysis import limited
        from hopscope.loading import load_any, load_questions

        loaded = load_questions(self.questions, distractors=self.distractors, seed=self.seed)
        shots = loaded.few_shot if self.few_shot is None else self.few_shot
        loaded = loaded.with_few_shot(shots, self.seed)
        chosen = that_allow(loaded, orders) if self.skip_impossible else loaded
        questions = limited(chosen, self.limit, self.seed)
        if self.is_elsewhere:
            return self.reference(), questions  # type: ignore[return-value]
        return load_any(self.model, **self.loading), questions


ENGINE = ("on", "workers", "jobs", "partition", "gpus_each")
"""Options that say where the parts of runs are computed."""
FIRST = (
    *("model", "queries", "hops", "bridge", "questions", "subset", "limit", "need", "most"),
    *("few_shot", "chat"),
)
LAST = (
    *("seed", "out", "shard", *ENGINE),
    *("device", "dtype", "quantization", "dry_run", "full", "as_json"),
)
"""Options that `--help` lists first and last; a command's own come in between, and then others."""
PANELS = {
    "Model": ("model", "device", "dtype", "quantization"),
    "Queries": (
        *("queries", "hops", "bridge", "questions", "subset", "limit", "need", "most"),
        *("few_shot", "chat"),
        *("distractors", "skip_impossible"),
    ),
    "Run": ("preset", "seed", "out", "runs", "from_runs", "shard", "dry_run", "check", "tolerance"),
    "Elsewhere": ENGINE,
    "Output": ("scripts", "rendered", "save", "full", "as_json"),
}
"""The groups in which `--help` lists options; those that are in none are of the analysis."""
PANEL_OF = {name: panel for panel, names in PANELS.items() for name in names}
Options = TypeVar("Options")
Command = Callable[Concatenate[Options, ...], None]


def with_options(
    options: type[Options], without: Collection[str] = (), **defaults: Any
) -> Callable[[Command[Options]], Callable[..., None]]:
    """Give a command the options of a dataclass, which it gets as its first argument.

    Args:
        options: whose fields are options, each with a default.
        without: fields that are no options of this command.
        **defaults: of this command, where they are others.

    Returns:
        A decorator, whose result typer can read.

    Raises:
        TypeError: for an unknown field.

    Example:
        >>> @app.command("patch")                              # doctest: +SKIP
        ... @with_options(Graded, subset="all")
        ... def patch_command(options: Graded, *, sites: Sites = "z") -> None: ...
    """
    hints = get_type_hints(options, include_extras=True)
    unknown = {*without, *defaults} - set(hints)
    if unknown:
        raise TypeError(f"{options.__name__} has no {', '.join(sorted(unknown))}")
    values = {each.name: each.default for each in fields(options)} | defaults  # type: ignore[arg-type]
    shared = {
        name: inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=hints[name]
        )
        for name, value in values.items()
        if name not in without
    }

    def give(command: Command[Options]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

        @functools.wraps(command)
        def called(**given: Any) -> None:
            command(options(**{name: given.pop(name) for name in shared}), **given)

        first, last = ([shared[name] for name in ends if name in shared] for ends in (FIRST, LAST))
        others = [each for name, each in shared.items() if name not in FIRST + LAST]
        every = [_in_panel(each) for each in (*first, *own, *others, *last)]
        # typer reads these two, not the arguments of `called`.
        called.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        called.__annotations__ = {each.name: each.annotation for each in every}
        return called

    return give


def _in_panel(parameter: inspect.Parameter) -> inspect.Parameter:
    """An option in its group of `--help`; an argument as it is."""
    hint, *described = get_args(parameter.annotation) or (parameter.annotation,)
    if not (described and isinstance(described[0], OptionInfo)):
        return parameter
    info = copy.copy(described[0])
    info.rich_help_panel = PANEL_OF.get(parameter.name, "Analysis")
    return parameter.replace(annotation=Annotated[hint, info])


def example(arguments: str) -> str:
    """The end of a command's help: one call of it."""
    return f"Example: hopscope {arguments}"


def split_commas(text: str) -> list[str]:
    """The names between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]
