"""Provides explore(): a widget to type a two-hop query and see the analyses of it as they run."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal

import pandas as pd
import traitlets

from hopscope.display.grid import (
    Grid,
    Json,
    all_chosen,
    first_choice,
    key_of,
    slice_json,
    spec_of,
)
from hopscope.display.notebook import png
from hopscope.display.static_files import module, static
from hopscope.display.widgets import View
from hopscope.engine.prefix_store import PrefixStore
from hopscope.engine.read_out import ReadOut
from hopscope.engine.sweep import generate
from hopscope.errors import HopscopeError, ModelError, QueryError, UsageError, of_type
from hopscope.experiments.two_hop.back_patching import BackPatching, Criterion, back_patch
from hopscope.experiments.two_hop.grids import HIT, BackPatchingGrid
from hopscope.models.language_model import LanguageModel
from hopscope.prompting.generation import answer_text, stop_at_line_end
from hopscope.prompting.query_prompts import QueryPrompts, question
from hopscope.queries.answers import exact_match, matches
from hopscope.queries.load import load_queries
from hopscope.queries.query import Form, Query
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import TwoHopQuery
from hopscope.results.run_record import summary_of
from hopscope.views.lens_grid import ENTITIES, LensGrid

EXAMPLES = 30
"""Number of example queries that the widget offers."""
MOST_LAYERS = 12
"""Approximate number of source and target layers; by default the layer step is chosen to match."""
AT_ONCE = 24
"""Cells of back-patching between two updates of the view."""
UNKNOWN = "?"
"""Label of an entity whose name was not given."""
UNCHECKED = "the model's own answer, unchecked"
"""What is said of an entity whose name was not given."""
HOPS: tuple[tuple[Form, Literal["e2", "e3"]], ...] = (
    ("first_hop", "e2"),
    ("second_hop", "e3"),
    ("two_hop", "e3"),
)
CELL = ["query", "position", "source_layer", "target_layer", "control"]
IN_ORDER = ["position", "control", "source_layer", "target_layer"]
"""The order in which back-patching has the cells of a query."""
NEW_TOKENS = 10
LETTERS = 120
"""Letters of a line above the picture."""
_BRACKETS = re.compile(
    r"(?P<a>[^][]*)\[(?P<b>[^][]*)\[(?P<e1>[^][]+)\](?P<c>[^][]*)\](?P<d>[^][]*)"
)


class PromptExplorer(View):
    """A widget for a typed two-hop query: its spans, both hops, logit lens and back-patching.

    Attributes:
        query: the query as typed: text, bridge and answer.
        warnings: what to bear in mind about the last query, in sentences.
        result: the back-patching of the last query, with all cells whose answers have been
            generated so far; None while there are none.
    """

    kind = "explorer"
    _esm = module("grid.js", "explorer.js", render="renderExplorer")
    _css = static("view.css")
    query = traitlets.Dict().tag(sync=True)
    examples: traitlets.List[Any] = traitlets.List().tag(sync=True)
    status = traitlets.Unicode("Mark the first hop and its entity with brackets.").tag(sync=True)
    failed = traitlets.Bool(False).tag(sync=True)
    busy = traitlets.Bool(False).tag(sync=True)
    tokens: traitlets.List[Any] = traitlets.List().tag(sync=True)
    answers: traitlets.List[Any] = traitlets.List().tag(sync=True)
    warnings: traitlets.List[str] = traitlets.List().tag(sync=True)
    lens = traitlets.Dict().tag(sync=True)
    patches = traitlets.Dict().tag(sync=True)

    def __init__(self, model: LanguageModel, queries: QuerySet, layer_step: int | None) -> None:
        self.result: BackPatching | None = None
        self._lens: LensGrid | None = None
        self._own: list[Literal["e2", "e3"]] = []  # entities that are named as the model names them
        self._untold: list[Literal["e2", "e3"]] = []  # that no first token tells from the other
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
            bridge, answer: names of the entity, separated by |; if empty, the model's own answer
                to the single hop, which nothing is checked against.

        Returns:
            The back-patching of the query.

        Raises:
            QueryError: if the brackets are missing.
        """
        try:
            return self._analyse(text, bridge, answer)
        except KeyboardInterrupt:
            self._set_status(f"stopped; {self._finished()}", failed=True)
            raise
        except Exception as error:
            name = "" if isinstance(error, HopscopeError) else f"{type(error).__name__}: "
            self._set_status(f"{name}{error}", failed=True)
            raise
        finally:
            self.renew_outputs()

    def _analyse(self, text: str, bridge: str, answer: str) -> BackPatching:
        self.query = {"text": text, "bridge": bridge, "answer": answer}
        self.result = self._lens = None
        self.answers, self.warnings, self.tokens, self.lens, self.patches = [], [], [], {}, {}
        query = parse_query(text, bridge, answer)
        self._own = [entity for entity in ENTITIES if UNKNOWN in query.names(entity)]
        single = replace(self._queries, queries=(query,), name="typed")
        lens_error = ""
        if not self._own:  # draw the lens before the model generates anything
            lens_error = self._draw_lens(single)
        self._set_status("asking both hops")
        single = self._answer_hops(single)
        self._untold = _untold(self._model, single)
        self.warnings = _warnings(single[0], self._own, self._untold)
        if self._own:
            lens_error = self._draw_lens(single)
        result = self._back_patch(single)
        if lens_error:
            self._set_status(f"{self.status}; no lens: {lens_error}")
        return result

    @property
    def caption(self) -> str:
        text = self.query.get("text", "")
        return f"{self._model.name}: {text}" if text else repr(self)

    def made(self) -> Mapping[str, str]:
        """Return how the back-patching was made."""
        return {} if self.result is None else summary_of(self.result.run)

    def to_html(self, path: str | Path) -> Path:
        """Write what was found of the last query as one HTML file that opens without a kernel.

        The file asks nothing outside; a cell can be linked to, as in that of `View.to_html`.

        Args:
            path: the file, which is replaced if it is there; its folder must be there.

        Returns:
            The path.

        Raises:
            UsageError: if no query has been asked.
            PlaceError, WriteError: if the file cannot be written.
        """
        if not self.answers and not self.lens:
            raise UsageError("nothing has been explored yet: ask() a query before to_html()")
        return super().to_html(path)

    def picture(self) -> str | None:
        """Return logit lens and back-patching, as far as there are, as PNG in base64, or None."""
        if self._lens is None and self.result is None:
            return None
        lines = [self.caption, *map(_in_words, self.answers), *self.warnings]
        return _picture(lines, self._lens, self.result)

    def _finished(self) -> str:
        """Return what has been finished of the last query, in words."""
        said = 0 if self.result is None else len(self.result.run["settings"]["cells"])
        parts = {
            "the logit lens": bool(self.lens),
            f"{len(self.answers)} of {len(HOPS)} prompts": bool(self.answers),
            "the next token of every cell": bool(self.patches) and "e3" not in self._untold,
            f"what {said} of {len(self._pairs)} cells a position say, in .result": said > 0,
        }
        finished = [part for part, is_there in parts.items() if is_there]
        return f"finished: {', '.join(finished)}" if finished else "nothing was finished"

    def _answer_hops(self, single: QuerySet) -> QuerySet:
        """Let the model answer the single hops and the whole query of a set of one query.

        Returns:
            The set, in which an entity without a name is named after the model's answer.
        """
        for form, entity in HOPS:
            prompt, says = self._answer(single, form)
            is_own = entity in self._own
            answer = {
                "form": form,
                "prompt": prompt,
                "says": says,
                "correct": None if is_own else matches(says, single[0].names(entity)),
                "note": UNCHECKED if is_own else "",
            }
            self.answers = [*self.answers, answer]
            if is_own and form != "two_hop":
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
        """Back-patch: first the next token in all cells, then the generated answers in parts.

        Where no next token tells the answer, there are only the parts.
        """
        frames = []
        if "e3" not in self._untold:
            next_tokens = self._cells(single, self._pairs, "first_token")
            self._draw(next_tokens)
            frames.append(next_tokens.frame)
        for start in range(0, len(self._pairs), AT_ONCE):
            self._set_status(f"what each cell says: {start} of {len(self._pairs)} a position")
            part = self._cells(single, self._pairs[start : start + AT_ONCE], "generation")
            frames.append(part.frame)
            frame = pd.concat(frames).drop_duplicates(CELL, keep="last")
            frame = frame.sort_values(IN_ORDER, ignore_index=True)
            self._draw(BackPatching(frame, part.details, part.run))
            generated = self._pairs[: start + AT_ONCE]
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
        self._lens = lens
        self.tokens, self.lens = list(lens.tokens), _state(lens)
        return ""

    def _draw(self, result: BackPatching) -> None:
        """Draw back-patching without what no token tells; the model's own answers are unchecked."""
        details = result.details
        unread = [f"{ENTITIES[e]}_{each}" for e in self._untold for each in ("rank", "logprob")]
        own = {ENTITIES[e]: details[ENTITIES[e]] + f" ({UNCHECKED})" for e in self._own}
        hit = HIT._replace(label="says " + UNCHECKED) if "e3" in self._own else HIT
        frame = result.frame.drop(columns=unread)
        told = replace(result, frame=frame, details=details.assign(**own))
        self.patches = _state(BackPatchingGrid(told, hit))

    def _set_status(self, status: str, failed: bool = False) -> None:
        self.status, self.failed = status, failed

    def _on_message(self, _: Any, message: Any, __: Any) -> None:
        if message.get("type") != "ask":
            return
        self.busy = True
        try:
            with suppress(HopscopeError, KeyboardInterrupt):  # the status says it
                self.ask(**message["query"])
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
        A widget. Its `result` is the back-patching of the last query; `ask(text)` analyses another,
        and `to_html(path)` writes what was found as a file that opens without a kernel.

    Example:
        >>> explorer = hs.explore(model)                                            # doctest: +SKIP
        >>> explorer.ask("The spouse of [the performer of [Imagine]] is")           # doctest: +SKIP
    """
    of_type("model", model, LanguageModel, "load one with hs.load_model")
    return PromptExplorer(model, load_queries(queries), layer_step)


def parse_query(text: str, bridge: str = "", answer: str = "") -> Query:
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


def _untold(model: LanguageModel, single: QuerySet) -> list[Literal["e2", "e3"]]:
    """Return the entities of the only query in a set that no next token tells from the other."""
    prompts, query = QueryPrompts.of(model, single), single[0]
    tokens = {"e2": prompts.bridge_tokens(query), "e3": prompts.answer_tokens(query)}
    return [entity for entity in ENTITIES if not tokens[entity]]


def _warnings(
    query: Query,
    own: Sequence[Literal["e2", "e3"]],
    untold: Sequence[Literal["e2", "e3"]],
) -> list[str]:
    """Return what to bear in mind about a query, in sentences.

    Args:
        query: the query, in which entities without a given name are called as the model says.
        own: those entities.
        untold: entities that no next token tells from the other one.
    """
    found = []
    if own:
        named = _named(query, own)
        found.append(
            f"{named[0].upper()}{named[1:]}: {UNCHECKED}. What is looked for below is what the "
            "single hop says, right or wrong; give names to check it."
        )
    for one, label, other, names in (
        ("bridge", query.label("e2"), "entity", query.names("e1")),
        ("answer", query.label("e3"), "bridge", query.names("e2")),
    ):
        if label != UNKNOWN and exact_match(label, names):
            found.append(f"The {one} equals the {other}, “{label}”: a hop that leads nowhere.")
    if untold:
        found.append(
            f"No next token identifies {_named(query, untold)} (the other entity begins with it, "
            "or many names do): rank and probability are not shown; what the model says is."
        )
    return found


def _named(query: Query, entities: Sequence[Literal["e2", "e3"]]) -> str:
    """Return entities of a query with their names."""
    return " and ".join(f"the {ENTITIES[each]} “{query.names(each)[0]}”" for each in entities)


def _picture(lines: Sequence[str], lens: LensGrid | None, result: BackPatching | None) -> str:
    """Return the logit lens above the back-patching of each position, as PNG in base64.

    Args:
        lines: the text above them.
        lens, result: what there is to draw, of which there must be one.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from hopscope.plots.style import PAGE, figure_style

    lines = [part for line in lines for part in wrap(line, LETTERS)]
    positions = [] if result is None else list(result.frame["position"].unique())
    rows = [(lens is not None, 3.4, ["lens"] * max(1, len(positions)))]
    rows.append((bool(positions), 2.7, positions))
    drawn = [(height, row) for is_there, height, row in rows if is_there]
    heights, places = zip(*drawn, strict=True)
    # Dollar signs in names are no formulas, and tokens may be characters that no font has.
    with figure_style(), mpl.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        size = (PAGE, sum(heights) + 0.16 * len(lines))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplot_mosaic(list(places), height_ratios=heights)
        title = "\n".join(lines)
        figure.suptitle(title, x=0.01, ha="left")
        if lens is not None:
            lens.plot(axes["lens"])
        for position in positions:
            assert result is not None
            result.plot(position, ax=axes[position])
        return png(figure)


def _in_words(answer: Mapping[str, Any]) -> str:
    """Return an answer of the model as a line of text."""
    verdict = {True: "correct", False: "wrong", None: answer["note"]}[answer["correct"]]
    return f"{answer['prompt']} → {answer['says']} ({verdict})"


def _as_typed(query: Query) -> dict[str, str]:
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
