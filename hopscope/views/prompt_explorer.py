"""Provides explore(): a widget to type a two-hop query and see the analyses of it as they run."""

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
from hopscope.probes.logit_lens import rank_among
from hopscope.prompting.capture import capture
from hopscope.prompting.generation import answer_text, stop_at_line_end
from hopscope.prompting.query_prompts import QueryPrompts, question
from hopscope.prompting.tokenized import TokenizedPrompt
from hopscope.queries.answers import matches
from hopscope.queries.load import load_queries
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import Form, TwoHopQuery

EXAMPLES = 30
"""Number of example queries that the widget offers."""
MOST_LAYERS = 12
"""Approximate number of source and target layers; by default the layer step is chosen to match."""
AT_ONCE = 24
"""Cells of back-patching between two updates of the view."""
UNKNOWN = "?"
"""Label of an entity whose name was not given."""
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
    """A widget for a typed two-hop query: its spans, both hops, logit lens and back-patching.

    Attributes:
        query: the query as typed: text, bridge and answer.
        result: the back-patching of the last query, with all cells whose answers have been
            generated so far; None while there are none.
    """

    _esm = module("grid.js", "explorer.js", render="renderExplorer")
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
        super().__init__(examples=[_as_typed(each) for each in shown])
        self.on_msg(self._on_message)

    def ask(self, text: str, bridge: str = "", answer: str = "") -> BackPatching:
        """Analyse a query, as the button of the widget does.

        Args:
            text: the query with its first hop and entity in brackets, such as "The spouse of [the
                performer of [Imagine]] is".
            bridge, answer: names of the entity, separated by |; if empty, the model's answer to
                the single hop.

        Returns:
            The back-patching of the query.

        Raises:
            QueryError: if the brackets are missing.
        """
        try:
            return self._analyse(text, bridge, answer)
        finally:
            self.renew_outputs()

    def _analyse(self, text: str, bridge: str, answer: str) -> BackPatching:
        self.query = {"text": text, "bridge": bridge, "answer": answer}
        self.result = None
        self.answers, self.tokens, self.lens, self.patches = [], [], {}, {}
        query = parse_query(text, bridge, answer)
        single = replace(self._queries, queries=(query,), name="typed")
        lens_error = ""
        has_names = UNKNOWN not in (query.e2_label, query.e3_label)
        if has_names:  # draw the lens before the model generates anything
            lens_error = self._draw_lens(single)
        self._set_status("asking both hops")
        single = self._answer_hops(single)
        if not has_names:
            lens_error = self._draw_lens(single)
        result = self._back_patch(single)
        if lens_error:
            self._set_status(f"{self.status}; no lens: {lens_error}")
        return result

    def picture(self) -> str | None:
        """Return the plot of the last back-patching as PNG in base64; None if there is none."""
        return None if self.result is None else picture_of(self.result)

    def _answer_hops(self, single: QuerySet) -> QuerySet:
        """Let the model answer the single hops and the whole query of a set of one query.

        Returns:
            The set, in which an entity without a name is named after the model's answer.
        """
        for form, entity in HOPS:
            names = [name for name in single[0].names(entity) if name != UNKNOWN]
            prompt, says = self._answer(single, form)
            correct = matches(says, names) if names else None
            answer = {"form": form, "prompt": prompt, "says": says, "correct": correct}
            self.answers = [*self.answers, answer]
            if not names:
                label: dict[str, Any] = {f"{entity}_label": says.rstrip(".") or UNKNOWN}
                single = replace(single, queries=(replace(single[0], **label),))
        return single

    def _answer(self, single: QuerySet, form: Form) -> tuple[str, str]:
        """Return a prompt without its demonstrations, and the model's answer."""
        prompts = QueryPrompts.of(self._model, single, NEW_TOKENS, form)
        prompt, line = prompts.prompt(single[0]), single.few_shot > 0
        stop = stop_at_line_end(self._model) if line else None
        read_out = ReadOut(max_new_tokens=NEW_TOKENS, stop=stop)
        shared = self._store.get(prompt.shared)
        outputs = generate(self._model, [prompt.ids], read_out, shared=shared)
        return question(prompt), answer_text(self._model.decode(outputs.tokens[0]), line).strip()

    def _back_patch(self, single: QuerySet) -> BackPatching:
        """Back-patch: first the next token in all cells, then the generated answers in parts."""
        next_tokens = self._cells(single, self._pairs, "first_token")
        self._draw(next_tokens)
        cells, done = next_tokens.frame.set_index(CELL), 0
        for start in range(0, len(self._pairs), AT_ONCE):
            self._set_status(f"what each cell says: {start} of {len(self._pairs)} a position")
            part = self._cells(single, self._pairs[start : start + AT_ONCE], "generation")
            cells.update(part.frame.set_index(CELL))
            frame = cells.reset_index().astype(next_tokens.frame.dtypes.to_dict())
            frame = frame[list(next_tokens.frame)]
            self._draw(BackPatching(frame, part.details, part.run))
            done += AT_ONCE
            generated = self._pairs[:done]
            settings = {**part.run["settings"], "cells": generated}
            pairs = zip(frame["source_layer"], frame["target_layer"], strict=True)
            finished = frame[[pair in set(generated) for pair in pairs]].reset_index(drop=True)
            self.result = BackPatching(finished, part.details, {**part.run, "settings": settings})
        self._set_status("done; .result has the back-patching")
        assert self.result is not None
        return self.result

    def _cells(
        self, single: QuerySet, cells: list[tuple[int, int]], criterion: Criterion
    ) -> BackPatching:
        """Back-patch some pairs of a source and a target layer."""
        return back_patch(
            self._model,
            single,
            controls=("random",),
            criterion=criterion,
            cells=cells,
            progress=False,
        )

    def _draw_lens(self, single: QuerySet) -> str:
        """Draw the logit lens; return the reason if the model has none, or an empty string."""
        self._set_status("reading the states")
        try:
            lens = LensGrid.of(self._model, single)
        except ModelError as error:
            return str(error)
        self.tokens, self.lens = list(lens.tokens), _state(lens)
        return ""

    def _draw(self, result: BackPatching) -> None:
        self.patches = _state(BackPatchingGrid(result))

    def _set_status(self, status: str, failed: bool = False) -> None:
        self.status, self.failed = status, failed

    def _on_message(self, _: Any, message: Any, __: Any) -> None:
        if message.get("type") != "ask":
            return
        self.busy = True
        try:
            self.ask(**message["query"])
        except HopscopeError as error:
            self._set_status(str(error), failed=True)
        except KeyboardInterrupt:
            finished = "nothing was finished" if self.result is None else ".result has what was"
            self._set_status(f"stopped; {finished}", failed=True)
        except Exception as error:
            self._set_status(f"{type(error).__name__}: {error}", failed=True)
            raise
        finally:
            self.busy = False


def explore(
    model: LanguageModel,
    queries: QuerySet | str = "world",
    *,
    layer_step: int | None = None,
) -> PromptExplorer:
    """Show a widget to type a two-hop query and watch its analyses as they run.

    Args:
        model: the model.
        queries: the query set that provides demonstrations for the prompt, and example queries.
        layer_step: step between the layers that are back-patched; None for about twelve layers.

    Returns:
        A widget. Its `result` is the back-patching of the last query; `ask(text)` analyses another.

    Example:
        >>> explorer = hs.explore(model)                                            # doctest: +SKIP
        >>> explorer.ask("The spouse of [the performer of [Imagine]] is")           # doctest: +SKIP
    """
    return PromptExplorer(model, load_queries(queries), layer_step)


def parse_query(text: str, bridge: str = "", answer: str = "") -> TwoHopQuery:
    """Parse a two-hop query that is written in one line, with first hop and entity in brackets.

    Args:
        text: the query.
        bridge, answer: names of the entity, separated by |.

    Raises:
        QueryError: if the brackets are missing.

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


def _as_typed(query: TwoHopQuery) -> dict[str, str]:
    """Return a query in the form that `parse_query` reads."""
    text, spans = query.compose("two_hop")
    (a, b), (c, d) = spans["r1e1"], spans["e1"]
    marked = f"{text[:a]}[{text[a:c]}[{text[c:d]}]{text[d:b]}]{text[b:]}"
    bridge, answer = (" | ".join(query.names(entity)) for entity in ENTITIES)
    return {"text": marked, "bridge": bridge, "answer": answer}


def _state(grid: Grid) -> Json:
    """Return a grid with all its slices, for a view inside another view."""
    slices = {key_of(grid, each): slice_json(grid, each) for each in all_chosen(grid.choices)}
    return {"spec": spec_of(grid), "slices": slices, "chosen": first_choice(grid)}


@dataclass(frozen=True)
class LensGrid:
    """The logit lens of one prompt: tokens × layers, with the next token that each state predicts.

    Attributes:
        tokens: the tokens of the prompt after its demonstrations, with the part of each token.
        states: one row for each layer and token: the most likely next token, ranks and
            probabilities.
        measures: the numeric columns of `states`.
        title: title of the grid.
    """

    tokens: tuple[dict[str, str], ...]
    states: pd.DataFrame
    measures: tuple[Measure, ...]
    title: str

    @classmethod
    @torch.no_grad()
    def of(cls, model: LanguageModel, single: QuerySet) -> LensGrid:
        """Apply the logit lens to the residual stream of the only query in a set."""
        query, prompt = single[0], single.prompts()[0]
        tokens = TokenizedPrompt.of(model, prompt)
        shown = range(tokens.n_shared, len(tokens.ids))
        states = capture(model, [prompt], positions=list(shown))["resid_post"][0]
        lens = logit_lens(model)
        first: dict[str, Sequence[int]] = {
            entity: model.first_tokens(query.names(entity), required=False, after=prompt.end)
            for entity in ENTITIES
        }
        # One token at a time: with a large vocabulary, all logits would take gigabytes.
        by_token = [_predictions(lens(state).float(), first) for state in states]
        read = {name: torch.stack([each[name] for each in by_token], dim=1) for name in by_token[0]}
        columns = {name: table.flatten().cpu().numpy() for name, table in read.items()}
        words = [_printable(model.decode([token])) for token in columns.pop("token").tolist()]
        places = pd.MultiIndex.from_product([range(model.n_layers), range(len(shown))])
        return cls(
            tuple(_described(tokens, each) for each in shown),
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
        """Return the only slice."""
        return Slice(self.states, self.measures, {"likeliest": "word"}, inside="likeliest")


def _lens_measures() -> tuple[Measure, ...]:
    """Return the measures of the lens, in the order in which the view offers them."""
    measures = [Measure("top", "P(likeliest)", "probability")]
    for entity, name in zip(ENTITIES, ("bridge", "answer"), strict=True):
        measures.append(Measure(f"{entity}_rank", f"rank of the {name}, from 0", "rank"))
        measures.append(Measure(f"{entity}_p", f"P({name})", "probability"))
    return tuple(measures)


def _predictions(
    logits: Float[Tensor, "layer vocab"], first: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """Return the most likely token and the measures of `_lens_measures`, each of shape (layer,).

    Args:
        logits: logits of the states of one token.
        first: first tokens of the names of each entity; one without any is not ranked (NaN).
    """
    logprobs = torch.log_softmax(logits, dim=-1)
    likeliest = logprobs.max(dim=-1)
    read = {"token": likeliest.indices, "top": likeliest.values.exp()}
    for entity, tokens in first.items():
        if not tokens:
            nowhere = torch.full_like(likeliest.values, torch.nan)
            read |= {f"{entity}_rank": nowhere, f"{entity}_p": nowhere}
            continue
        best = logprobs[:, list(tokens)].amax(dim=-1)
        read[f"{entity}_rank"] = rank_among(logprobs, best)
        read[f"{entity}_p"] = best.exp()
    return read


def _printable(word: str) -> str:
    """Return the text of a token, with visible symbols if it is only white space."""
    return word if word.strip() else word.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")


def _described(tokens: TokenizedPrompt, index: int) -> dict[str, str]:
    """Return the text of a token, its part of the prompt, and the name of its position if any."""
    start, end = tokens.offsets[index]
    parts = [part for part in ("e1", "r1", "r2") if index in tokens.tokens(part)]
    names = [name for name in ("t1", "t2") if index == tokens.position(name)]
    text = tokens.prompt.text[start:end]
    return {"text": text, "part": parts[0] if parts else "r2", "name": ", ".join(names)}
