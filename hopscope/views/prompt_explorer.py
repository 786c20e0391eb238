"""Provides explore(): type a two-hop query, see what the model makes of it while it is computed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd
import torch
import traitlets
from jaxtyping import Float
from torch import Tensor

from hopscope.display.grid import (
    Axis,
    Choice,
    Grid,
    Json,
    Measure,
    Slice,
    all_chosen,
    first_choice,
    key_of,
    slice_json,
    spec_of,
)
from hopscope.display.notebook import picture_of
from hopscope.display.static_files import module, static
from hopscope.display.widgets import View
from hopscope.engine.logit_lens import logit_lens
from hopscope.engine.prefix_store import PrefixStore
from hopscope.engine.read_out import ReadOut
from hopscope.engine.sweep import generate
from hopscope.errors import HopscopeError, ModelError, QueryError
from hopscope.experiments.two_hop.back_patching import BackPatching, Criterion, back_patch
from hopscope.experiments.two_hop.grids import BackPatchingGrid
from hopscope.models.language_model import LanguageModel
from hopscope.prompting.capture import capture
from hopscope.prompting.generation import at_line_end, said
from hopscope.prompting.query_prompts import Asker, question
from hopscope.prompting.tokenized import TokenizedPrompt
from hopscope.queries.answers import matches
from hopscope.queries.load import load_queries
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import Form, TwoHopQuery

EXAMPLES = 30
MOST_LAYERS = 12
"""Sources and targets of the back-patching that is shown: every so many layers, about as many."""
AT_ONCE = 24
"""Cells between two updates of the picture."""
UNKNOWN = "?"
ENTITIES: tuple[Literal["e2", "e3"], ...] = ("e2", "e3")
HOPS: tuple[tuple[Form, Literal["e2", "e3"]], ...] = (
    ("first_hop", "e2"),
    ("second_hop", "e3"),
    ("two_hop", "e3"),
)
CELL = ["query", "position", "source_layer", "target_layer", "control"]
NEW_TOKENS = 10
_BRACKETS = re.compile(
    r"(?P<a>[^][]*)\[(?P<b>[^][]*)\[(?P<e1>[^][]+)\](?P<c>[^][]*)\](?P<d>[^][]*)"
)


class PromptExplorer(View):
    """A two-hop query typed by hand: spans, both hops, logit lens, back-patching as it runs.

    Attributes:
        query: what was typed: text, bridge and answer.
        result: the back-patching of the last query: the cells whose answers are generated. None
            while there are none.
    """

    _esm = module("dom.js", "grid.js", "explorer.js", render="renderExplorer")
    _css = static("view.css")
    query = traitlets.Dict().tag(sync=True)
    examples: traitlets.List[Any] = traitlets.List().tag(sync=True)
    status = traitlets.Unicode("Mark the first hop and its entity with brackets.").tag(sync=True)
    failed = traitlets.Bool(False).tag(sync=True)
    busy = traitlets.Bool(False).tag(sync=True)
    tokens: traitlets.List[Any] = traitlets.List().tag(sync=True)
    answers: traitlets.List[Any] = traitlets.List().tag(sync=True)
    lens = traitlets.Dict().tag(sync=True)
    patches = traitlets.Dict().tag(sync=True)

    def __init__(self, model: LanguageModel, queries: QuerySet, layer_step: int | None) -> None:
        self.result: BackPatching | None = None
        self._model, self._queries, self._store = model, queries, PrefixStore(model)
        step = layer_step or -(-model.n_layers // MOST_LAYERS)
        layers = range(0, model.n_layers, step)
        self._pairs = [(a, b) for b in layers for a in layers if a > b]
        shown = queries.sample(min(EXAMPLES, len(queries))) if len(queries) else queries
        super().__init__(examples=[_typed(each) for each in shown])
        self.on_msg(self._on_message)

    def ask(self, text: str, bridge: str = "", answer: str = "") -> BackPatching:
        """Ask a query, as the button does.

        Args:
            text: with the first hop and its entity in brackets: "The spouse of [the performer of
                [Imagine]] is".
            bridge, answer: names, with | between; if empty, what the model says to the single
                hops.

        Raises:
            QueryError: if the brackets are not there.
        """
        self.query = {"text": text, "bridge": bridge, "answer": answer}
        self.result = None
        self.answers, self.tokens, self.lens, self.patches = [], [], {}, {}
        query = parse_query(text, bridge, answer)
        asked = replace(self._queries, queries=(query,), name="typed")
        without = ""
        named = UNKNOWN not in (query.e2_label, query.e3_label)
        if named:  # the first picture stands before anything is asked
            without = self._draw_lens(asked)
        self._tell("asking both hops")
        asked = self._asked(asked)
        if not named:
            without = self._draw_lens(asked)
        result = self._patched(asked)
        if without:
            self._tell(f"{self.status}; no lens: {without}")
        return result

    def picture(self) -> str | None:
        """The back-patching of the last query, drawn."""
        return None if self.result is None else picture_of(self.result)

    def _asked(self, asked: QuerySet) -> QuerySet:
        """A set of one query, once it has been asked.

        What the model says to a single hop stands for a name that was not given.
        """
        for form, entity in HOPS:
            names = [name for name in asked[0].names(entity) if name != UNKNOWN]
            prompt, says = self._say(asked, form)
            correct = matches(says, names) if names else None
            told = {"form": form, "prompt": prompt, "says": says, "correct": correct}
            self.answers = [*self.answers, told]
            if not names:
                named: dict[str, Any] = {f"{entity}_label": says.rstrip(".") or UNKNOWN}
                asked = replace(asked, queries=(replace(asked[0], **named),))
        return asked

    def _say(self, asked: QuerySet, form: Form) -> tuple[str, str]:
        """A question without its demonstrations, and the answer to it."""
        asker = Asker.of(self._model, asked, NEW_TOKENS, form)
        prompt, line = asker.prompt(asked[0]), asked.few_shot > 0
        what = ReadOut(max_new_tokens=NEW_TOKENS, stop=at_line_end(self._model) if line else None)
        shared = self._store.get(prompt.ids[: prompt.n_shared])
        outputs = generate(self._model, [prompt.ids], what, shared=shared)
        return question(prompt), said(self._model.decode(outputs.tokens[0]), line).strip()

    def _patched(self, asked: QuerySet) -> BackPatching:
        """Back-patch: the next token in all cells at once, then what each of them says."""
        next_tokens = self._cells(asked, self._pairs, "first_token")
        self._draw(next_tokens)
        found, done = next_tokens.frame.set_index(CELL), 0
        for start in range(0, len(self._pairs), AT_ONCE):
            self._tell(f"what each cell says: {start} of {len(self._pairs)} a position")
            some = self._cells(asked, self._pairs[start : start + AT_ONCE], "generation")
            found.update(some.frame.set_index(CELL))
            frame = found.reset_index().astype(next_tokens.frame.dtypes.to_dict())
            frame = frame[list(next_tokens.frame)]
            self._draw(BackPatching(frame, some.details, some.run))
            done += AT_ONCE
            said = self._pairs[:done]
            settings = {**some.run["settings"], "cells": said}
            pairs = zip(frame["source_layer"], frame["target_layer"], strict=True)
            finished = frame[[pair in set(said) for pair in pairs]].reset_index(drop=True)
            self.result = BackPatching(finished, some.details, {**some.run, "settings": settings})
        self._tell("done; .result has the back-patching")
        assert self.result is not None
        return self.result

    def _cells(
        self, asked: QuerySet, cells: list[tuple[int, int]], criterion: Criterion
    ) -> BackPatching:
        return back_patch(
            self._model,
            asked,
            controls=("random",),
            criterion=criterion,
            cells=cells,
            progress=False,
        )

    def _draw_lens(self, asked: QuerySet) -> str:
        """Draw the lens; why there is none if so. Back-patching goes on without it."""
        self._tell("reading the states")
        try:
            lens = LensGrid.of(self._model, asked)
        except ModelError as error:
            return str(error)
        self.tokens, self.lens = list(lens.tokens), _state(lens)
        return ""

    def _draw(self, result: BackPatching) -> None:
        self.patches = _state(BackPatchingGrid(result))

    def _tell(self, status: str, failed: bool = False) -> None:
        self.status, self.failed = status, failed

    def _on_message(self, _: Any, message: Any, __: Any) -> None:
        if message.get("type") != "ask":
            return
        self.busy = True
        try:
            self.ask(**message["query"])
        except HopscopeError as error:
            self._tell(str(error), failed=True)
        except KeyboardInterrupt:
            left = "nothing was finished" if self.result is None else ".result has what was"
            self._tell(f"stopped; {left}", failed=True)
        except Exception as error:
            self._tell(f"{type(error).__name__}: {error}", failed=True)
            raise
        finally:
            self.busy = False


def explore(
    model: LanguageModel,
    queries: QuerySet | str = "world",
    *,
    layer_step: int | None = None,
) -> PromptExplorer:
    """Type a two-hop query in a notebook and watch the model answer it.

    Args:
        model: the model.
        queries: give the demonstrations in front of the query, and examples to begin with.
        layer_step: back-patch every so many layers; about twelve of them if None.

    Returns:
        A widget; its `result` is the back-patching of the last query, `ask(text)` asks another.

    Example:
        >>> explorer = hs.explore(model)                                            # doctest: +SKIP
        >>> explorer.ask("The spouse of [the performer of [Imagine]] is")           # doctest: +SKIP
    """
    return PromptExplorer(model, load_queries(queries), layer_step)


def parse_query(text: str, bridge: str = "", answer: str = "") -> TwoHopQuery:
    """A two-hop query written in a line, its first hop and its entity in brackets.

    Args:
        text: the query.
        bridge, answer: names, with | between.

    Raises:
        QueryError: if the brackets are not there.

    Example:
        >>> parse_query("The spouse of [the performer of [Imagine]] is").first_hop()
        'The performer of Imagine is'
    """
    found = _BRACKETS.fullmatch(text.strip())
    if found is None:
        raise QueryError(
            "write the query with its first hop and the entity in brackets, such as: The spouse of "
            "[the performer of [Imagine]] is"
        )
    first = f"{found['b']}{{}}{found['c']}"
    bridges, answers = (
        [name.strip() for name in names.split("|") if name.strip()] or [UNKNOWN]
        for names in (bridge, answer)
    )
    ending = " is" if found["d"].endswith(" is") else ""
    rest = found["d"].removesuffix(" is") if ending else found["d"]
    return TwoHopQuery(
        id="typed",
        e1_label=found["e1"].strip(),
        e2_label=bridges[0],
        e3_label=answers[0],
        e2_aliases=tuple(bridges[1:]),
        e3_aliases=tuple(answers[1:]),
        r1_template=first[:1].upper() + first[1:],
        r2_template=f"{found['a']}{{}}{rest}",
        r2_ending=ending,
    )


def _typed(query: TwoHopQuery) -> dict[str, str]:
    """A query as `parse_query` reads it."""
    text, spans = query.compose("two_hop")
    (a, b), (c, d) = spans["r1e1"], spans["e1"]
    marked = f"{text[:a]}[{text[a:c]}[{text[c:d]}]{text[d:b]}]{text[b:]}"
    bridge, answer = (" | ".join(query.names(entity)) for entity in ENTITIES)
    return {"text": marked, "bridge": bridge, "answer": answer}


def _state(grid: Grid) -> Json:
    """A grid with all its slices, for a view inside a view."""
    slices = {key_of(grid, each): slice_json(grid, each) for each in all_chosen(grid.choices)}
    return {"spec": spec_of(grid), "slices": slices, "chosen": first_choice(grid)}


@dataclass(frozen=True)
class LensGrid:
    """The logit lens of one prompt: tokens × layers, what each state would say next.

    Attributes:
        tokens: the prompt's tokens after its demonstrations, and which part each belongs to.
        states: one row a layer and token: the likeliest next token, ranks and probabilities.
        measures: those of its columns that are numbers.
        title: of the grid.
    """

    tokens: tuple[dict[str, str], ...]
    states: pd.DataFrame
    measures: tuple[Measure, ...]
    title: str

    @classmethod
    @torch.no_grad()
    def of(cls, model: LanguageModel, asked: QuerySet) -> LensGrid:
        """Read the residual stream of a set's only query through the model's own unembedding."""
        query, prompt = asked[0], asked.prompts()[0]
        tokens = TokenizedPrompt.of(model, prompt)
        shown = range(tokens.n_shared, len(tokens.ids))
        states = capture(model, [prompt], positions=list(shown))["resid_post"][0]
        lens = logit_lens(model)
        first: dict[str, Sequence[int]] = {
            entity: model.first_tokens(query.names(entity)) for entity in ENTITIES
        }
        # A token at a time: with a large vocabulary all logits would take gigabytes.
        by_token = [_read_off(lens(state).float(), first) for state in states]
        read = {name: torch.stack([each[name] for each in by_token], dim=1) for name in by_token[0]}
        columns = {name: table.flatten().cpu().numpy() for name, table in read.items()}
        words = [_visible(model.decode([token])) for token in columns.pop("token").tolist()]
        places = pd.MultiIndex.from_product([range(model.n_layers), range(len(shown))])
        return cls(
            tuple(_named(tokens, each) for each in shown),
            pd.DataFrame({**columns, "word": words}, index=places),
            _lens_measures(),
            f"Logit lens: {model.name}",
        )

    @property
    def x(self) -> Axis:
        names = tuple(each["text"] for each in self.tokens)
        return Axis("token", tuple(range(len(names))), names)

    @property
    def y(self) -> Axis:
        return Axis("layer", tuple(self.states.index.unique(0)))

    @property
    def choices(self) -> tuple[Choice, ...]:
        return ()

    def slice(self, _: Mapping[str, str]) -> Slice:
        """All there is."""
        return Slice(self.states, self.measures, {"likeliest": "word"}, inside="likeliest")


def _lens_measures() -> tuple[Measure, ...]:
    """What the lens tells of each state, in the order in which it is offered."""
    measures = [Measure("top", "P(likeliest)", "probability")]
    for entity, name in zip(ENTITIES, ("bridge", "answer"), strict=True):
        measures.append(Measure(f"{entity}_rank", f"rank of the {name}, from 0", "rank"))
        measures.append(Measure(f"{entity}_p", f"P({name})", "probability"))
    return tuple(measures)


def _read_off(
    logits: Float[Tensor, "layer vocab"], first: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """The likeliest token of each layer, the measures of `_lens_measures`; each of shape (layer,).

    Args:
        logits: of one token's states.
        first: the first tokens of each entity's names.
    """
    logprobs = torch.log_softmax(logits, dim=-1)
    likeliest = logprobs.max(dim=-1)
    read = {"token": likeliest.indices, "top": likeliest.values.exp()}
    for entity, tokens in first.items():
        best = logprobs[:, list(tokens)].amax(dim=-1)
        read[f"{entity}_rank"] = (logprobs > best[:, None]).sum(dim=-1)
        read[f"{entity}_p"] = best.exp()
    return read


def _visible(word: str) -> str:
    """A token's text, or marks where it is nothing but white."""
    return word if word.strip() else word.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")


def _named(tokens: TokenizedPrompt, index: int) -> dict[str, str]:
    """A token of a prompt, the part it belongs to, and its name if it has one."""
    start, end = tokens.offsets[index]
    parts = [part for part in ("e1", "r1", "r2") if index in tokens.tokens(part)]
    names = [name for name in ("t1", "t2") if index == tokens.position(name)]
    text = tokens.prompt.text[start:end]
    return {"text": text, "part": parts[0] if parts else "r2", "name": ", ".join(names)}
