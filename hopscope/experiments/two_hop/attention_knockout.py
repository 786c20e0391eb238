"""Attention knockout: which edges between the question's parts carry the answer, and where.

Hopping Too Late (Biran et al. 2024), section 5, after Geva et al. 2023; beside the same number of
edges to other tokens, drawn at random.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Unpack, get_args

import numpy as np
import pandas as pd

from hopscope.display.progress import divided
from hopscope.engine.edits import Cell, Knockout
from hopscope.engine.read_out import CellOutputs, ReadOut
from hopscope.errors import QueryError
from hopscope.experiments.analysis import RunKeywords, RunOptions, analysis, run_in_parts
from hopscope.experiments.arguments import (
    AtLeast,
    Edges,
    Flag,
    Heads,
    Layers,
    ListOf,
    OneOf,
    Queries,
)
from hopscope.experiments.two_hop.chains import bridges_of
from hopscope.models.language_model import LanguageModel
from hopscope.models.token_model import FIRST_TOKENS
from hopscope.prompting.generation import answer_text, reads_one_line, same_answer, stop_at_line_end
from hopscope.prompting.query_prompts import QueryPrompts, question, with_first_tokens
from hopscope.prompting.tokenized import SPANS, TokenizedPrompt, spans_of
from hopscope.queries.answers import MATCHES, Match, matches
from hopscope.queries.query import Query
from hopscope.queries.query_set import QuerySet
from hopscope.results.headline import Headline, compared
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.wording import largest_row, points, row_where, verdict, with_interval
from hopscope.statistics import intervals, paired_intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)

Criterion = Literal["generation", "first_token"]
CRITERIA = get_args(Criterion)
Measure = Literal["changed", "prediction_change", "answer_change"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
Compare = Literal["text", "answer"]
COMPARES = get_args(Compare)
EDGES = ("t2->t1", "t2->e1", "t2->r1", "t1->e1")
"""`usual_edges` of two hops."""
PAPER_EDGES = (
    *("t2->t1", "t2->r1_word", "t2->r2_word"),
    *("t1->r1_word", "t1->r2_word", "r1_word->r2_word"),
)
"""Those of the paper's code: from the end, e1 and r1 to e1, r1 and r2, each a single token."""
CONTROLS = ("random",)
PER_PART = 4

DETAILS = [
    "query",
    "edge",
    "control",
    "prompt",
    "bridge",
    "answer",
    "answer_tokens",
    "query_tokens",
    "key_tokens",
    "clean_generation",
    "clean_rank",
    "clean_logprob",
]


@dataclass(frozen=True, repr=False)
class Knockouts(Result):
    """What the model says when it cannot look from one part of the question to another.

    `frame` has one row a query, edge, control and layer, the middle of the window: `changed`
    (does the model say something else; see `compare` of `knockout`), `hit` (is it the answer),
    `prediction_change` and `answer_change` (nats by which the log-probability of the token that the
    clean model predicts, and of the answer's first token, changes), `answer_rank`,
    `answer_logprob`, `generation`. `details` has one row a query and edge.
    """

    kind = "knockout"
    rules = FIRST_TOKENS
    added_settings: ClassVar = {"compare": "text"}
    columns: ClassVar = {
        "query": "str",
        "edge": "str",
        "control": "str",
        "layer": "int64",
        "changed": "bool",
        "hit": "bool",
        "prediction_change": "float32",
        "answer_change": "float32",
        "answer_rank": "int64",
        "answer_logprob": "float32",
        "generation": "str",
    }

    def effect(self, measure: Measure = "changed", seed: int = 0) -> pd.DataFrame:
        """The mean of a measure over queries, by edge, control and layer.

        Args:
            measure: `changed` (a share), `prediction_change` or `answer_change` (nats).
            seed: of the bootstrap over queries.

        Returns:
            Columns `edge, control, layer, n, effect, low, high`: Wilson 95 % intervals of shares,
            bootstrap intervals of nats.
        """
        OneOf(MEASURES).checked("measure", measure, None)
        return intervals(self.frame, ["edge", "control", "layer"], measure, "effect", seed)

    def above_chance(self, seed: int = 0) -> pd.DataFrame:
        """How much oftener the answer changes than with as many random edges, query by query.

        Returns:
            Columns `edge, n, difference, low, high`: the share of layers at which the answer
            changes, less that of the control; paired bootstrap intervals, NaN as in
            `hopscope.statistics.mean_intervals`.
        """
        keys = ["query", "edge", "control"]
        shares = self.frame.groupby(keys, sort=False)["changed"].mean().unstack("control")
        shares = shares.reindex(columns=["none", "random"])
        return paired_intervals(shares.reset_index(), ["edge"], "random", "none", seed)

    def first_layers(self, edge: str = "t2->t1") -> pd.Series[float]:
        """For each query the first layer whose knockout changes the answer; NaN if none does.

        It is the middle of a window of layers, of which the last may be the one that bites.
        """
        rows = self.rows_with(self.frame, edge=edge, control="none")
        bites = rows["layer"].where(rows["changed"].astype(bool))
        return bites.groupby(rows["query"], sort=False).min()

    def tables(self) -> dict[str, pd.DataFrame]:
        effects = {measure: self.effect(measure) for measure in get_args(Measure)}
        return {**effects, "above_chance": self.above_chance()}

    def printed(self, seed: int = 0) -> dict[str, pd.DataFrame]:
        return {"effect": self.effect(seed=seed), "above_chance": self.above_chance(seed)}

    def findings(self) -> list[str]:
        effect, gains = self.effect(), self.above_chance()
        sentences = []
        for edge in dict.fromkeys(effect["edge"]):
            rows = effect[(effect["edge"] == edge) & (effect["control"] == "none")]
            worst = largest_row(rows, "effect")
            sentence = (
                f"blocking {edge.replace('->', ' → ')} changes what is said most around layer "
                f"{worst['layer']}, the largest of {len(rows)}: "
                f"{with_interval(worst['effect'], worst['low'], worst['high'])} of "
                f"{worst['n']} queries"
            )
            random = row_where(effect, edge=edge, control="random", layer=worst["layer"])
            if random is not None:
                chance = with_interval(random["effect"], random["low"], random["high"])
                sentence += f", against {chance} with as many random edges there"
            gain = row_where(gains, edge=edge)
            if gain is not None:
                difference = points(gain["difference"], gain["low"], gain["high"])
                sentence += (
                    f"; over all layers {difference} over as many random edges: {verdict(gain)}"
                )
            sentences.append(f"{sentence}.")
        return sentences

    def headline(self) -> Headline | None:
        """How much oftener blocking the first edge changes the answer than random edges do."""
        if self.frame.empty:
            return None
        edge = self.in_run("edge")
        gain = compared(self.frame[self.frame["edge"] == edge], "changed", "random")
        if gain is None:
            return None
        sentence = (
            f"layers at which blocking {edge.replace('->', ' → ')} changes what is said: "
            f"{points(gain['difference'], gain['low'], gain['high'])} against as many random edges"
        )
        return Headline(f"{sentence}.", "random edges", gain["n"], gain["p"])

    def plot(self, measure: Measure = "changed", ax: Axes | None = None) -> Axes:
        """Draw a measure by layer, a line for each edge, its control dashed."""
        from hopscope.experiments.two_hop import plots

        return plots.knockout_lines(self.effect(measure), ax, measure=measure)


@analysis(
    "knockout",
    title="Attention knockout",
    question="Which attention edges does the answer need, and in which layers?",
    source="Hopping Too Late, section 5; Geva et al. 2023",
    control="as many random edges from the same tokens",
    subsets=("incorrect", "correct"),
    order=40,
    accepts={
        "queries": Queries(),
        "edges": Edges(SPANS, optional=True),
        "controls": ListOf(CONTROLS, empty=True),
        "window": AtLeast(0),
        "layers": Layers(),
        "heads": Heads(),
        "criterion": OneOf(CRITERIA),
        "max_new_tokens": AtLeast(1),
        "match": OneOf(MATCHES),
        "compare": OneOf(COMPARES),
        "one_line": Flag(optional=True),
    },
    parity={
        "edges": PAPER_EDGES,
        "window": 3,
        "max_new_tokens": 10,
        "match": "substring",
        "one_line": False,
        "compare": "answer",
    },
    layers=lambda layers: {"layers": layers},
    grades=("match", "max_new_tokens"),
)
def knockout(
    model: LanguageModel,
    queries: QuerySet,
    edges: Sequence[str] | None = None,
    controls: Sequence[str] = CONTROLS,
    window: int = 3,
    layers: Iterable[int] | None = None,
    heads: Sequence[int] | None = None,
    criterion: Criterion = "generation",
    max_new_tokens: int = 10,
    match: Match = "word",
    *,
    one_line: bool | None = None,
    compare: Compare = "text",
    **run: Unpack[RunKeywords],
) -> Knockouts:
    """Block attention between two parts of the question in a window of layers, for every layer.

    While the prompt is read, the tokens of the first part do not see those of the second, in the
    blocks `layer - window` to `layer + window`; then the model answers.

    Args:
        model: the model.
        queries: usually `graded.correct()`.
        edges: pairs of parts, such as `t2->t1`: the end of the prompt does not see the end of the
            first-hop phrase. Parts: `t1`, `t2`, … (one token each), `e1` (the source entity), `r1`,
            `r2`, … (what a hop's phrase adds), `r1_word`, `r2_word`, … (one token each: the end of
            the third word from the end of the template, which the paper's code takes for the
            relation), `before` (all that comes before), `few_shot` (the demonstrations). Those of
            `usual_edges` if None.
        controls: `random`: as many edges from the same tokens to other ones of the relations,
            neither e1 nor t1, drawn by seed; none where there are too few. () for no control.
        window: layers on each side of the middle one.
        layers: the middles; all if None.
        heads: only these heads; all if None.
        criterion: `generation`: the answer is the generated text; `first_token`: it is the
            likeliest next token, nothing more is generated.
        max_new_tokens: how many tokens to generate.
        match: how an answer is recognised: as whole words, or (the paper) as a substring.
        one_line: whether an answer is the first line only; if None, for few-shot prompts.
        compare: what makes an answer a changed one: another `text`, or, as the paper's code has
            it, another `answer`: another text, unless it is right before and after.

    Raises:
        UsageError: for an empty set, an unknown part, control, layer or head.
        QueryError: for an edge that looks ahead in every query, which would do nothing.

    Example:
        >>> knockout(model, graded.correct()).plot()  # doctest: +SKIP
    """
    options = RunOptions(**run)
    settings = {
        "edges": Edges(spans_of(queries.n_hops)).checked(
            "edges", usual_edges(queries) if edges is None else edges, model
        ),
        "controls": controls,
        "window": window,
        "layers": layers,
        "heads": heads,
        "criterion": criterion,
        "max_new_tokens": max_new_tokens if criterion == "generation" else 1,
        "match": match,
        "one_line": reads_one_line(queries.few_shot, one_line),
        "compare": compare,
        "seed": options.seed,
    }
    prompts = QueryPrompts.of(model, queries, max_new_tokens, max_memory=options.max_memory)
    if criterion == "first_token":
        queries = with_first_tokens(model, queries, prompts.answer_tokens)
    blocker = _Blocker(prompts, settings)
    blocker.check_edges(queries)
    return run_in_parts(
        Knockouts, model, queries, settings, blocker.tables, options, per_part=PER_PART
    )


def usual_edges(queries: QuerySet) -> list[str]:
    """The edges that are blocked if none is named.

    From the end of each hop's phrase to those before it, from the end of the prompt to the source
    and the first relation, and from the end of the first phrase to the source.
    """
    ends = queries.positions
    if len(ends) == 1:  # of a question in its own words, whose source alone can be told
        return [f"{ends[0]}->e1"]
    between = [f"{later}->{earlier}" for earlier, later in combinations(ends, 2)]
    return [*reversed(between), f"{ends[-1]}->e1", f"{ends[-1]}->r1", f"{ends[0]}->e1"]


def _tokens(prompt: TokenizedPrompt, part: str) -> tuple[int, ...]:
    """The tokens of a part; none of a source that a question in its own words does not name."""
    unnamed = part == "e1" and part not in prompt.prompt.spans
    return () if unnamed else prompt.tokens(part)


@dataclass(frozen=True)
class _Edge:
    """The tokens of one edge of a prompt, with its control or without."""

    name: str
    control: str
    queries: tuple[int, ...]
    keys: tuple[int, ...]


@dataclass(frozen=True)
class _Blocker:
    """Knocks out the edges of one query after the other."""

    prompts: QueryPrompts
    settings: Mapping[str, Any]

    def check_edges(self, queries: QuerySet) -> None:
        """Check that no edge looks ahead in every query that has both its ends.

        Raises:
            QueryError: for one that does, and would do nothing.
        """
        for name in self.settings["edges"]:
            asking, _, keys = name.partition("->")
            ahead = (self._looks_ahead(query, asking, keys) for query in queries)
            known = (each for each in ahead if each is not None)
            if next(known, False) and all(known):
                raise QueryError(
                    f"the edge {name} cannot be blocked: {keys} does not come before {asking} in "
                    "any query, and attention looks back only. Leave it out"
                )

    def _looks_ahead(self, query: Query, asking: str, keys: str) -> bool | None:
        """Whether an edge leads to what comes later, or to itself; None without both its ends."""
        prompt = self.prompts.prompt(query)
        ends = _tokens(prompt, asking), _tokens(prompt, keys)
        if not all(ends):
            return None
        return min(ends[1]) > max(ends[0]) or (asking == keys and len(ends[0]) == 1)

    def tables(self, queries: QuerySet) -> Tables:
        """Frame and details of some queries."""
        tables = Knockouts.gathered(self._query(query) for query in divided(queries))
        return {**tables, "details": tables["details"].reindex(columns=DETAILS)}

    def _query(self, query: Query) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
        prompt = self.prompts.prompt(query)
        edges = self._edges(query, prompt)
        layers, k = self.settings["layers"], self.settings["window"]
        last = self.prompts.model.n_layers - 1
        windows = [range(max(0, layer - k), min(last, layer + k) + 1) for layer in layers]
        cells: list[Cell] = [
            [Knockout(window, edge.queries, edge.keys, self.settings["heads"])]
            for edge in edges
            for window in windows
        ]
        clean = self.prompts.clean(prompt)
        first = self.prompts.sweep(prompt.ids, [[]], ReadOut(top_k=1), clean).top_tokens.flatten()
        read_out = self._read_out(query, int(first[0]))
        outputs = self.prompts.sweep(prompt.ids, [[], *cells], read_out, clean)
        frame = self._frame(query, edges, outputs)
        rows = [self._details(query, prompt, edge, outputs) for edge in edges]
        return frame, rows or [{"query": query.id, "prompt": question(prompt)}]

    def _edges(self, query: Query, prompt: TokenizedPrompt) -> list[_Edge]:
        edges = []
        for name in self.settings["edges"]:
            queries, keys = (_tokens(prompt, part) for part in name.split("->"))
            keys = tuple(key for key in keys if any(key < query for query in queries))
            if not queries or not any(key < query for query in queries for key in keys):
                logger.info("query %s has no edge %s", query.id, name)
                continue
            edges.append(_Edge(name, "none", queries, keys))
            others = self._others(query, prompt, name, queries, keys)
            if "random" in self.settings["controls"] and others is not None:
                edges.append(_Edge(name, "random", queries, others))
        return edges

    def _others(
        self,
        query: Query,
        prompt: TokenizedPrompt,
        name: str,
        queries: tuple[int, ...],
        keys: tuple[int, ...],
    ) -> tuple[int, ...] | None:
        """As many other tokens of the relations, all seen by the first of the queries."""
        ends = (prompt.tokens(position) for position in query.positions[:-1])
        taken = {*keys, *queries, *_tokens(prompt, "e1"), *chain.from_iterable(ends)}
        pool = [t for t in prompt.question if t not in taken and t < min(queries)]
        if len(pool) < len(keys):
            return None
        draw = random.Random(f"{self.settings['seed']} {query.id} {name}")
        return tuple(sorted(draw.sample(pool, len(keys))))

    def _read_out(self, query: Query, predicted: int) -> ReadOut:
        model, generates = self.prompts.model, self.settings["criterion"] == "generation"
        return ReadOut(
            answer_tokens=self.prompts.answer_tokens(query),
            max_new_tokens=self.settings["max_new_tokens"] if generates else 0,
            stop=stop_at_line_end(model) if self.settings["one_line"] else None,
            top_k=1,
            track=(predicted,),
        )

    def _frame(self, query: Query, edges: Sequence[_Edge], outputs: CellOutputs) -> pd.DataFrame:
        layers, line = self.settings["layers"], self.settings["one_line"]
        texts = self._texts(outputs)
        names, match = query.names(query.answer), self.settings["match"]
        hits = {text: matches(answer_text(text, line), names, match) for text in set(texts)}
        last = self.prompts.model.vocab_size  # of a name that no first token identifies
        rank, logprob = np.where(outputs.rank < 0, last, outputs.rank), outputs.logprob.numpy()
        predicted = outputs.tracked[:, 0].numpy()
        right = [self._hit(hits[text], r) for text, r in zip(texts, rank, strict=True)]
        same = [
            self._same(text, texts[0], hit and right[0])
            for text, hit in zip(texts, right, strict=True)
        ]
        return pd.DataFrame(
            {
                "query": query.id,
                "edge": [edge.name for edge in edges for _ in layers],
                "control": [edge.control for edge in edges for _ in layers],
                "layer": [layer for _ in edges for layer in layers],
                "changed": [not each for each in same[1:]],
                "hit": right[1:],
                "prediction_change": predicted[1:] - predicted[0],
                "answer_change": logprob[1:] - logprob[0],
                "answer_rank": rank[1:],
                "answer_logprob": logprob[1:],
                "generation": texts[1:],
            }
        )

    def _texts(self, outputs: CellOutputs) -> list[str]:
        if self.settings["criterion"] == "generation":
            return [self.prompts.model.decode(tokens) for tokens in outputs.tokens]
        return [self.prompts.model.decode([token]) for token in outputs.top_tokens[:, 0].tolist()]

    def _hit(self, names_answer: bool, rank: int) -> bool:
        return bool(rank == 0) if self.settings["criterion"] == "first_token" else names_answer

    def _same(self, text: str, clean: str, both_right: bool) -> bool:
        """Whether an answer is unchanged."""
        line = self.settings["one_line"]
        if self.settings["compare"] == "text":
            return same_answer(text, clean, line)
        answers = (answer_text(each, line).strip().replace("\n", " ") for each in (text, clean))
        return both_right or len(set(answers)) == 1

    def _details(
        self, query: Query, prompt: TokenizedPrompt, edge: _Edge, outputs: CellOutputs
    ) -> dict[str, Any]:
        return {
            "query": query.id,
            "edge": edge.name,
            "control": edge.control,
            "prompt": question(prompt),
            "bridge": bridges_of(query),
            "answer": query.labels[-1],
            "answer_tokens": self.prompts.model.texts_of(self.prompts.answer_tokens(query)),
            "query_tokens": str(list(edge.queries)),
            "key_tokens": str(list(edge.keys)),
            "clean_generation": self._texts(outputs)[0],
            "clean_rank": int(outputs.rank[0]),
            "clean_logprob": float(outputs.logprob[0]),
        }
