"""Provides the decorator that registers an analysis, and the run that all analyses share.

An analysis is one module: a `Result` with its tables, findings and picture, and a function that is
registered here. Its command, its step in a study, its section in the report and its row in the
README are read off what is registered.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, get_type_hints

from hopscope.distributed.engines import compute_on, engine_of
from hopscope.distributed.ray_cluster import Ray
from hopscope.distributed.slurm import Slurm
from hopscope.documents.question_set import QuestionSet
from hopscope.errors import MAX_SEED, UsageError, did_you_mean, one_of
from hopscope.experiments.arguments import (
    AtLeast,
    Constraint,
    Flag,
    Folder,
    Loaded,
    OnEngine,
    Questions,
    Shard,
    TwoHopQueries,
    layers_of,
)
from hopscope.experiments.recipe import OF_CALL, CallRecipe, recipe_of
from hopscope.experiments.registry import REGISTERED
from hopscope.models.reference import ModelReference, reference_of
from hopscope.models.token_model import TokenModel
from hopscope.queries.query_set import QuerySet
from hopscope.results.recipes import recording
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.run_record import provenance
from hopscope.results.runs import Inputs, Until, calling, run_over, run_parts

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R", bound=Result)
S = TypeVar("S", QuerySet, QuestionSet)
Asks = Literal["subset", "queries", "documents", "models"]
"""Of what an analysis is: a graded subset of two-hop queries, queries of any kind, questions over
documents, or models that it is given or makes itself."""


DOCUMENTS = "world-docs"
"""The questions over documents that analyses ask, unless they say others."""


class RunKeywords(TypedDict, total=False):
    """The keywords that analyses have in common, as `RunOptions` describes them."""

    seed: int
    progress: bool
    max_memory: int | None
    out: str | Path | None
    shard: tuple[int, int] | None
    layer_step: int
    preset: str | None
    on: str | Ray | Slurm | None


@dataclass(frozen=True)
class RunOptions:
    """How an analysis is run, whatever it measures.

    Attributes:
        seed: of everything that is drawn at random.
        progress: show a progress bar.
        max_memory: bytes that the rows of a batch may take; measured if None.
        out: run folder; a run that was stopped there goes on.
        shard: (i, n): compute only every n-th part, from the i-th (1 to n) on; needs `out`.
        layer_step: use only every n-th layer.
        preset: the name of a paper, such as `hopping-too-late`: what is not given is as in the code
            of its authors, and prompts have no demonstrations. docs/papers.md says what differs.
        on: where parts are computed: `ray` or `slurm`, `hs.Ray(...)` or `hs.Slurm(...)`; here if
            None. The model may then be given by its name, so that the workers alone load it.
    """

    seed: int = 0
    progress: bool = True
    max_memory: int | None = None
    out: str | Path | None = None
    shard: tuple[int, int] | None = None
    layer_step: int = 1
    preset: str | None = None
    on: str | Ray | Slurm | None = None


AT_CALL = ("layer_step", "preset")
"""Keywords that are put into the analysis's own arguments as it is called."""
RUN_KEYWORDS = tuple(each.name for each in fields(RunOptions) if each.name not in AT_CALL)
WITHOUT_MEMORY = tuple(name for name in RUN_KEYWORDS if name != "max_memory")
"""The keywords of an analysis that sweeps no cells; the memory of its batches is measured."""
POSITIONAL = ("seed", "progress")
"""Those that may also be given by position, behind the analysis's own."""
_DEFAULTS = {each.name: each.default for each in fields(RunOptions)}
INPUTS: Mapping[str, Mapping[str, Constraint]] = {
    "subset": {"model": Loaded(), "queries": TwoHopQueries()},
    "queries": {"model": Loaded(), "queries": TwoHopQueries()},
    "documents": {"model": Loaded(TokenModel), "questions": Questions()},
    "models": {},
}
"""What the inputs of an analysis may be, by what it asks for. One that takes queries of more hops
says so in its `accepts`."""
COMMON: Mapping[str, Constraint] = {
    "seed": AtLeast(0, MAX_SEED),
    "progress": Flag(),
    "max_memory": AtLeast(1, optional=True),
    "out": Folder(),
    "shard": Shard(),
    "on": OnEngine(),
    "layer_step": AtLeast(1),
}
"""What the common keywords may be."""
PAPERS: Mapping[str, str] = {
    "subset": "hopping-too-late",
    "queries": "hopping-too-late",
    "documents": "masking-in-multi-hop-qa",
    "models": "masking-in-multi-hop-qa",
}
"""The paper whose setting `Analysis.parity` repeats, by what the analysis asks for."""


@dataclass(frozen=True)
class Scale:
    """How much of an analysis a study runs.

    Attributes:
        most: queries that are analysed at most; all if None.
        shuffles: orders of the documents among which one is chosen.
        probed: queries that are probed at most, graded or not.
        seed: of everything that is drawn at random.
    """

    most: int | None
    shuffles: int
    probed: int
    seed: int


@dataclass(frozen=True)
class Analysis:
    """What is registered of an analysis.

    Attributes:
        name: of its step in a study, its figure and its tables.
        command: of the shell; None if it has none.
        function: what runs it.
        result: what it returns.
        title: a heading.
        question: what it answers, in a sentence.
        source: where it was published.
        control: what stands beside it as a chance level.
        asks: of what it is.
        subsets: the subsets that a study runs it on; none if it is no part of a study.
        usual_subset: what the command analyses if nothing else is said.
        usual_questions: the questions over documents that the command and a study ask if nothing
            else is said.
        order: its place among the others.
        accepts: what its parameters may be.
        keywords: which of the keywords of `RunOptions` it takes.
        layers: turns layers into arguments; the analysis then also takes `layer_step`.
        in_study: further arguments in a study.
        chosen: the inputs that a study analyses, of those that it has.
        parity: the arguments that repeat the setting of the paper's own code; the analysis then
            also takes `preset`, whose name follows from what it asks for.
        grades: the parameters that also hold when queries are graded for it.
        parts: the analyses whose results `combine` puts together, in a study.
        combine: makes a result of those of `parts`.
        composed: whether it is made of runs, each of which is computed where `on` says; one with
            `combine` is, too.
        estimated: whether what it costs can be told before; of what trains it cannot.
    """

    name: str
    command: str | None
    function: Callable[..., Any]
    result: type[Result]
    title: str
    question: str
    source: str = ""
    control: str = ""
    asks: Asks = "subset"
    subsets: tuple[str, ...] = ()
    usual_subset: str = "correct"
    usual_questions: str = DOCUMENTS
    order: int = 1000
    accepts: Mapping[str, Constraint] = field(default_factory=dict)
    keywords: Sequence[str] = RUN_KEYWORDS
    layers: Callable[[range], Mapping[str, Any]] | None = None
    in_study: Callable[[Scale], Mapping[str, Any]] | None = None
    chosen: Callable[[Any, Scale], Any] | None = None
    parity: Mapping[str, Any] = field(default_factory=dict)
    grades: Sequence[str] = ()
    parts: tuple[str, ...] = ()
    combine: Callable[..., Result] | None = None
    composed: bool = False
    estimated: bool = True

    @property
    def question_with_source(self) -> str:
        """The question, and where its answer was published."""
        return f"{self.question} ({self.source})" if self.source else self.question

    @property
    def help(self) -> str:
        """The first sentence of its docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def own_parameters(self) -> dict[str, inspect.Parameter]:
        """Its parameters but for its inputs and the keywords that all analyses take."""
        signature = inspect.signature(self.function, eval_str=True)
        inputs = 1 if self.asks == "models" else 2
        own = list(signature.parameters.values())[inputs:]
        common = (*RUN_KEYWORDS, "preset")
        return {each.name: each for each in own if each.name not in common}

    @property
    def preset(self) -> str | None:
        """The name under which `parity` is asked for; None if there is none."""
        return PAPERS[self.asks] if self.parity else None

    def with_parity(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments, with those of `parity` where they say nothing; also within mappings.

        Args:
            given: arguments by name.
        """
        inner = {
            name: {**value, **given[name]}
            for name, value in self.parity.items()
            if isinstance(value, Mapping) and isinstance(given.get(name), Mapping)
        }
        return {**self.parity, **given, **inner}

    def check(self, given: Mapping[str, Any], model: TokenModel | None = None) -> dict[str, Any]:
        """Arguments as the analysis wants them.

        Args:
            given: arguments by name; some may be missing.
            model: the model; None before it is loaded, and what depends on it is not checked.

        Raises:
            UsageError: for the first that the analysis cannot do.
        """
        return {
            name: self.accepts[name].checked(name, value, model) if name in self.accepts else value
            for name, value in given.items()
        }

    def at_layers(self, model: TokenModel, step: int) -> Mapping[str, Any]:
        """The arguments for every `step`-th layer of a model; none if all layers are meant."""
        if self.layers is None or step == 1:
            return {}
        return self.layers(range(0, layers_of(model), step))

    def arguments(self, call: inspect.BoundArguments) -> dict[str, Any]:
        """The arguments of a call, checked; `layer_step` is put into layers.

        Raises:
            UsageError: for an argument that the analysis cannot do, or layers beside a step.
        """
        named = set(call.arguments)
        preset = call.arguments.pop("preset", None)
        if preset is not None:
            call.arguments = self._at_preset(preset, call.arguments)
        call.apply_defaults()
        call.arguments.pop("preset", None)
        if call.arguments.get("on") is not None and not is_loaded(call.arguments):
            return self._by_name(call.arguments)
        arguments = self.check(call.arguments, call.arguments.get("model"))
        if self.layers is not None:
            of_layers = self.at_layers(arguments["model"], arguments.pop("layer_step"))
            for name in named & set(of_layers):
                raise UsageError(f"give {name} or layer_step, not both")
            arguments |= self.check(of_layers, arguments["model"])
        return arguments

    def _by_name(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call whose model is loaded elsewhere, as far as they can be checked.

        Raises:
            UsageError: for an argument that the analysis cannot do.
        """
        if self.combine is not None and given.get("layer_step", 1) != 1:
            raise UsageError(
                "layer_step needs a model that is loaded here: load it, or give the layers"
            )
        others = {name: value for name, value in given.items() if name != "model"}
        reference = reference_of(given["model"])
        arguments = {"model": reference, **self.check(others)}
        if self.combine is not None:
            arguments.pop("layer_step", None)
        return arguments

    def _at_preset(self, preset: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call under a preset: what was not given, and no demonstrations.

        Raises:
            UsageError: for an unknown preset, or inputs that are none.
        """
        one_of("preset", preset, [str(self.preset)])
        asked = self.check({name: given[name] for name in [*INPUTS[self.asks]][1:]})
        zero_shot = {
            name: each.with_few_shot(0, each.few_shot_seed) for name, each in asked.items()
        }
        return self.with_parity({**given, **zero_shot})


def analysis(command: str | None, *, name: str = "", **described: Any) -> Callable[[F], F]:
    """Register an analysis.

    The function takes its inputs and its own parameters, and the common keywords as
    `**run: Unpack[RunKeywords]`. As it is called, its arguments are checked by `accepts`, `seed`
    and `progress` may also be given by position, and its docstring describes the common keywords.

    Args:
        command: of the shell; None for none.
        name: of its step, figure and tables; the kind of its result if empty.
        **described: the other fields of `Analysis`.

    Example:
        >>> @analysis("margin", title="Margins", question="How sure is the model?")
        ... def margin(model, queries, top: int = 2, **run: Unpack[RunKeywords]) -> Margins:
        ...     '''Measure how far the likeliest token is ahead.'''  # doctest: +SKIP
    """

    def register(function: F) -> F:
        result = get_type_hints(function)["return"]
        keywords = described.get("keywords", RUN_KEYWORDS)
        stepped = ("layer_step",) if described.get("layers") else ()
        named = ("preset",) if described.get("parity") else ()
        taken = (*stepped, *keywords, *named)
        common = {name: COMMON[name] for name in taken if name in COMMON}
        signature = _with_keywords(inspect.signature(function, eval_str=True), taken)

        @functools.wraps(function)
        def called(*args: Any, **given: Any) -> Any:
            with calling():
                try:
                    call = signature.bind(*args, **given)
                except TypeError as error:
                    known = signature.parameters
                    near = next(
                        (did_you_mean(each, known) for each in given if each not in known), ""
                    )
                    raise TypeError(f"{function.__name__}() {error}{near}") from None
                return _made(entry, function, call)

        called.__signature__ = signature  # type: ignore[attr-defined]
        called.__doc__ = _documented(inspect.getdoc(function) or "", taken)
        inputs, own = INPUTS[described.get("asks", "subset")], described.get("accepts", {})
        told = described | {"accepts": {**inputs, **own, **common}}
        entry = Analysis(name or result.kind, command, called, result, **told)
        REGISTERED[entry.name] = entry
        return called  # type: ignore[return-value]

    return register


def is_loaded(given: Mapping[str, Any]) -> bool:
    """Whether the model of a call is loaded, and not named."""
    return not isinstance(given.get("model"), str | Path | ModelReference)


def _where(given: Mapping[str, Any]) -> RunOptions:
    """Where a call is made."""
    return RunOptions(**{name: given[name] for name in OF_CALL if name in given})


def run_elsewhere(kind: type[R], recipe: CallRecipe, options: RunOptions, inputs: Any) -> R:
    """Compute the parts of a call by the engine that is asked for, and read the result.

    Args:
        kind: of the result.
        recipe: the call.
        options: the engine, where the run folder is, and whether a bar is shown.
        inputs: what the result keeps as its `queries`, if it does.

    Raises:
        UsageError: for a shard, or a call that cannot be made in another process.
        EngineError: if parts failed.
    """
    if options.shard is not None:
        raise UsageError("the engine shares the parts out: leave out either on or shard")

    def read(folder: Path) -> R:
        result = kind.load(folder)
        return replace(result, queries=inputs) if "queries" in vars(result) else result  # type: ignore[call-arg]

    return compute_on(
        options.on,
        recipe.told(),
        recipe.files,
        read,
        out=options.out,
        progress=options.progress,
    )


def _made(entry: Analysis, function: Callable[..., Any], call: inspect.BoundArguments) -> Any:
    """The result of a call of an analysis, computed here or where `on` says."""
    recipe = None
    if entry.asks != "models":
        recipe = recipe_of(entry.name, function.__module__, call.arguments)
    options = _where(call.arguments)
    arguments = entry.arguments(call)
    if options.on is None or recipe is None:
        with recording(None if options.out is None else recipe):
            return function(**arguments)
    if entry.composed or entry.combine is not None:
        with engine_of(options.on).held():
            return function(**arguments)
    inputs = arguments[[*INPUTS[entry.asks]][1]]
    return run_elsewhere(entry.result, recipe, options, inputs)


def _with_keywords(own: inspect.Signature, keywords: Sequence[str]) -> inspect.Signature:
    """A signature with the common keywords in place of `**run`."""
    parameters = list(own.parameters.values())
    positional = [each for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    named = [each for each in parameters if each.kind is each.KEYWORD_ONLY]
    hints = get_type_hints(RunOptions)
    for keyword in keywords:
        kind: Any = inspect.Parameter.KEYWORD_ONLY
        if keyword in POSITIONAL:
            kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        default, hint = _DEFAULTS[keyword], hints[keyword]
        added = inspect.Parameter(keyword, kind, default=default, annotation=hint)
        (positional if keyword in POSITIONAL else named).append(added)
    return own.replace(parameters=[*positional, *named])


def _documented(doc: str, keywords: Sequence[str]) -> str:
    """A docstring whose `Args` end with the common keywords, as `RunOptions` describes them."""
    described = argument_texts(inspect.getdoc(RunOptions) or "", "Attributes")
    lines = "".join(f"\n    {name}: {described[name]}" for name in keywords)
    return re.sub(
        r"(\nArgs:\n(?:[ ]+[^\n]*\n?)+)", lambda m: m[1].rstrip() + lines + "\n", doc, count=1
    )


def argument_texts(doc: str, section: str = "Args") -> dict[str, str]:
    """What a Google-style docstring says of each argument, in one line each."""
    found = re.search(rf"^{section}:\n((?:[ ]+[^\n]*\n?)+)", doc, re.MULTILINE)
    texts: dict[str, str] = {}
    for line in found[1].splitlines() if found else ():
        start = re.match(r"    ([\w, ]+): (.*)", line)
        if start:
            names = [name.strip() for name in start[1].split(",")]
            texts |= dict.fromkeys(names, start[2])
        elif texts:
            texts |= {name: f"{texts[name]} {line.strip()}" for name in names}
    return texts


def limited(inputs: S, limit: int | None, seed: int = 0) -> S:
    """At most `limit` of the inputs, drawn by seed."""
    return inputs if limit is None or limit >= len(inputs) else inputs.sample(limit, seed)


def run_in_parts(
    kind: type[R],
    model: TokenModel,
    inputs: Inputs,
    settings: Mapping[str, Any],
    compute: Callable[[Any], Tables],
    options: RunOptions,
    *,
    per_part: int,
    until: Until | None = None,
) -> R:
    """Compute the tables of all inputs, part by part, and make a result of them.

    Args:
        kind: of the result.
        model: the model.
        inputs: queries or questions.
        settings: what was asked, for the run's record.
        compute: gives the tables of some of the inputs; must not depend on which others there are.
        options: where the run folder is, which shard is computed, and whether a bar is shown.
        per_part: inputs in a part.
        until: looks at the tables after each part, and may end the run.
    """
    run = provenance(model, inputs, kind.kind, settings, rules=kind.rules)
    tables = run_over(
        inputs,
        compute,
        run,
        per_part=per_part,
        out=options.out,
        shard=options.shard,
        progress=options.progress,
        until=until,
    )
    return kind.of(tables, run)


def run_numbered(
    kind: type[R],
    n: int,
    compute: Callable[[int], Tables],
    run: Mapping[str, Any],
    options: RunOptions,
    *,
    unit: str,
) -> R:
    """Compute the tables of numbered parts, such as worlds or seeds, and make a result of them.

    Args:
        kind: of the result.
        n: how many parts there are.
        compute: gives the tables of a part, numbered from 0.
        run: the run's record.
        options: where the run folder is, which shard is computed, and whether a bar is shown.
        unit: what a part is, for the bar.
    """
    tables = run_parts(
        n,
        compute,
        run,
        out=options.out,
        shard=options.shard,
        description=f"{unit}s",
        unit=unit,
        progress=options.progress,
    )
    return kind.of(tables, run)
