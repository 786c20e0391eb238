"""Provides the options that commands share, and `taking`, which gives them to a command.

A command takes them as its first argument, one object; its own options follow by name.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, TypeVar, get_type_hints

import typer

from hopscope.commands.printing import AsJson
from hopscope.errors import UsageError

if TYPE_CHECKING:
    from hopscope.documents import QuestionSet
    from hopscope.models import EncoderDecoder, LanguageModel
    from hopscope.queries import QuerySet

SUBSETS = ("incorrect", "correct", "all")

Model = Annotated[
    str, typer.Option("--model", "-m", help="Zoo name, hub id, folder or .gguf file.")
]
Queries = Annotated[
    str, typer.Option("--queries", "-q", help="Bundled set, .csv/.parquet/.jsonl, or hub id.")
]
Questions = Annotated[
    str,
    typer.Option("--questions", "-q", help="world-docs, world-docs-real, a file, or a hub id."),
]
Subset = Annotated[str, typer.Option(help="incorrect or correct (graded first), or all.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Ask only this many, drawn by seed.")]
Most = Annotated[int | None, typer.Option(min=1, help="Run at most this many of the subset.")]
FewShot = Annotated[
    int | None,
    typer.Option(
        "--few-shot", min=0, help="Demonstrations in a prompt; the set's own if not given."
    ),
]
Masks = Annotated[
    str | None,
    typer.Option(
        help="Of causal, prefix_bidirectional, document_bidirectional, document_block, "
        "document_block_instruction; with commas. The model's usual one if not given."
    ),
]
Distractors = Annotated[
    int, typer.Option(min=0, help="Documents beside the gold ones, in the bundled sets.")
]
PromptTemplate = Annotated[
    str | None,
    typer.Option("--template", help="answer_only, cot, plain or chat; what suits the set."),
]
DocumentLabel = Annotated[
    str, typer.Option("--label", help="Numbers of documents: position, fixed or none.")
]
SkipImpossible = Annotated[
    bool, typer.Option(help="Leave out questions that cannot have one of the orders.")
]
AnswerTokens = Annotated[
    int | None, typer.Option("--max-new-tokens", min=1, help="The template's if not given.")
]
Tokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Tokens to generate.")]
Match = Annotated[str, typer.Option(help="word, or substring (the paper's).")]
Criterion = Annotated[str, typer.Option(help="generation or first_token.")]
Positions = Annotated[str, typer.Option(help="Of t1, t2, e1; with commas.")]
Control = Annotated[bool, typer.Option(help="Run the control, too.")]
Step = Annotated[int, typer.Option("--layer-step", min=1, help="Only every so many layers.")]
Seed = Annotated[int, typer.Option(help="Seed of all that is drawn.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Run folder; a run that was stopped there goes on."),
]
Shard = Annotated[str | None, typer.Option(help="i/n: only every n-th part of the queries.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; a GPU if there is one.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, ...")]
Size = Annotated[str, typer.Option("--preset", help="quick (minutes) or paper (everything).")]


@dataclass(frozen=True)
class Asked:
    """Which model is asked which two-hop queries, and where results go."""

    model: Model = "smollm2-135m"
    queries: Queries = "world"
    limit: Limit = None
    few_shot: FewShot = None
    seed: Seed = 0
    out: Out = None
    device: Device = None
    dtype: Dtype = None
    as_json: AsJson = False

    def load_model(self) -> LanguageModel:
        """The model, where and as what it was asked for."""
        return load_model(self.model, self.device, self.dtype)

    def load_queries(self) -> QuerySet:
        """The queries, as many and with as many demonstrations as were asked for."""
        return load_queries(self.queries, self.few_shot, self.limit, self.seed)


@dataclass(frozen=True)
class Graded(Asked):
    """The same, of queries that are graded first, of which a subset is chosen."""

    subset: Subset = "correct"
    most: Most = None

    def __post_init__(self) -> None:
        if self.subset not in SUBSETS:
            raise UsageError(f"unknown subset {self.subset!r}: choose {', '.join(SUBSETS)}")

    def load(self, match: str = "word", max_new_tokens: int = 10) -> tuple[LanguageModel, QuerySet]:
        """The model, and the chosen queries, graded into a folder beside `out`."""
        from hopscope.experiments import grade
        from hopscope.study import limited

        queries, model = self.load_queries(), self.load_model()
        if self.subset != "all":
            graded = grade(
                model,
                queries,
                match=match,  # type: ignore[arg-type]  # grade checks it
                max_new_tokens=max_new_tokens,
                out=None if self.out is None else self.out.with_name(f"{self.out.name}.grading"),
            )
            queries = graded.incorrect() if self.subset == "incorrect" else graded.correct()
        return model, limited(queries, self.most, self.seed)


@dataclass(frozen=True)
class Sharded(Graded):
    """The same, of which a shard can be run."""

    shard: Shard = None

    def __post_init__(self) -> None:
        super().__post_init__()
        part_of(self.shard)  # a mistake is told before anything is loaded

    def settings(self) -> dict[str, Any]:
        """What every experiment is told besides."""
        return {"seed": self.seed, "out": self.out, "shard": part_of(self.shard)}


@dataclass(frozen=True)
class Documents:
    """Which model is asked which questions over documents, how these are written, and the rest."""

    model: Model = "smollm2-135m"
    questions: Questions = "world-docs"
    masks: Masks = None
    limit: Limit = None
    distractors: Distractors = 4
    few_shot: FewShot = None
    template: PromptTemplate = None
    label: DocumentLabel = "position"
    max_new_tokens: AnswerTokens = None
    skip_impossible: SkipImpossible = False
    seed: Seed = 0
    out: Out = None
    shard: Shard = None
    device: Device = None
    dtype: Dtype = None
    as_json: AsJson = False

    def __post_init__(self) -> None:
        part_of(self.shard)

    def load(self, orders: list[str]) -> tuple[LanguageModel | EncoderDecoder, QuestionSet]:
        """The model and the questions, of which those that cannot have the orders may be left out.

        Args:
            orders: of the documents.
        """
        from hopscope.documents import load_questions
        from hopscope.models import load_any
        from hopscope.orders import that_allow
        from hopscope.study import limited

        loaded = load_questions(self.questions, distractors=self.distractors, seed=self.seed)
        shots = loaded.few_shot if self.few_shot is None else self.few_shot
        loaded = loaded.with_few_shot(shots, self.seed)
        chosen = that_allow(loaded, orders) if self.skip_impossible else loaded
        questions = limited(chosen, self.limit, self.seed)
        return load_any(self.model, device=self.device, dtype=self.dtype), questions

    def settings(self) -> dict[str, Any]:
        """What every experiment over documents is told besides."""
        return {
            "masks": None if self.masks is None else listed(self.masks),
            "template": self.template,
            "label": self.label,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
            "out": self.out,
            "shard": part_of(self.shard),
        }


_BY_NAME = inspect.Parameter.KEYWORD_ONLY
Options = TypeVar("Options")
Command = Callable[Concatenate[Options, ...], None]


def taking(
    options: type[Options], **defaults: Any
) -> Callable[[Command[Options]], Callable[..., None]]:
    """Give a command the options of a dataclass, which it gets as its first argument.

    Args:
        options: whose fields are options.
        **defaults: of this command, where they are others.

    Example:
        >>> @app.command("recall")                          # doctest: +SKIP
        ... @taking(Sharded, subset="all")
        ... def recall_command(options, *, sites: str = "z") -> None: ...
    """
    shared = _parameters(options, defaults)

    def give(command: Command[Options]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

        @functools.wraps(command)
        def called(**given: Any) -> None:
            command(options(**{each.name: given.pop(each.name) for each in shared}), **given)

        # typer reads these two, not the arguments of `called`.
        called.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
        called.__annotations__ = {each.name: each.annotation for each in (*own, *shared)}
        return called

    return give


def _parameters(options: type, defaults: dict[str, Any]) -> list[inspect.Parameter]:
    """The fields of a dataclass as parameters by name."""
    hints = get_type_hints(options, include_extras=True)
    values = {each.name: each.default for each in fields(options)} | defaults
    return [
        inspect.Parameter(name, _BY_NAME, default=value, annotation=hints[name])
        for name, value in values.items()
    ]


def load_model(name: str, device: str | None, dtype: str | None) -> LanguageModel:
    """A model that generates from left to right."""
    from hopscope.models import load_model

    return load_model(name, device=device, dtype=dtype)


def load_queries(source: str, few_shot: int | None, limit: int | None, seed: int) -> QuerySet:
    """Queries with so many demonstrations, at most so many."""
    from hopscope.queries import load_queries
    from hopscope.study import limited

    loaded = load_queries(source, few_shot=few_shot)
    return limited(loaded.with_few_shot(loaded.few_shot, seed), limit, seed)


def listed(text: str) -> list[str]:
    """What stands between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def numbers(text: str | None, what: str) -> list[int] | None:
    """Numbers with commas between.

    Raises:
        UsageError: for what is no number.
    """
    if text is None:
        return None
    try:
        return [int(number) for number in listed(text)]
    except ValueError:
        raise UsageError(f"{what} are numbers with commas between, not {text!r}") from None


def part_of(shard: str | None) -> tuple[int, int] | None:
    """Which shard, of how many.

    Raises:
        UsageError: for a shard that is not of the form i/n.
    """
    from hopscope.results import parse_shard

    return None if shard is None else parse_shard(shard)
