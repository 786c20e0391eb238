"""Back-patching: put a later state of a token into an earlier layer, and ask again.

Hopping Too Late (Biran et al. 2024), section 6, with what it lacks: the same cells with another
query's vector and with a random one, and the best single cell chosen on other queries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Unpack, get_args

import numpy as np
import pandas as pd
from torch import Tensor

from hopscope.display.progress import divided
from hopscope.engine.clean_run import CleanRun
from hopscope.engine.edits import Patch
from hopscope.engine.read_out import CellOutputs, ReadOut
from hopscope.errors import UsageError
from hopscope.experiments.analysis import RunKeywords, RunOptions, analysis, run_in_parts
from hopscope.experiments.arguments import AtLeast, Cells, Flag, ListOf, OneOf, Queries
from hopscope.experiments.randomness import random_like
from hopscope.experiments.two_hop.chains import bridge_at, positions_of
from hopscope.experiments.two_hop.controls import Donor, choose_donors
from hopscope.models.language_model import LanguageModel
from hopscope.models.token_model import FIRST_TOKENS
from hopscope.prompting.generation import answer_text, reads_one_line, stop_when_answered
from hopscope.prompting.query_prompts import QueryPrompts, question, with_first_tokens
from hopscope.prompting.tokenized import TokenizedPrompt
from hopscope.queries.answers import MATCHES, Match, matches
from hopscope.queries.query import POSITIONS as HOP_ENDS
from hopscope.queries.query import Query
from hopscope.queries.query_set import QuerySet
from hopscope.results.headline import Headline
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.wording import (
    CONTROL_NAMES,
    OWN,
    points,
    row_where,
    rows_where,
    verdict,
    with_interval,
)
from hopscope.statistics import intervals, mean_interval, paired

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hopscope.display.grid import Grid

Criterion = Literal["generation", "first_token"]
CRITERIA = get_args(Criterion)
CONTROLS = ("other", "random")
POSITIONS = (*HOP_ENDS, *(f"{a}->{b}" for a, b in combinations(HOP_ENDS, 2)), "e1")
PER_PART = 2


class BestCell(NamedTuple):
    """The cell that did best on one half of the queries, and its rate on the other half."""

    position: str
    source_layer: int
    target_layer: int
    rate: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, repr=False)
class BackPatching(Result):
    """What each back-patched cell made the model say.

    `frame` has one row a cell: `query, position, source_layer, target_layer, control, hit,
    answer_rank, answer_logprob, bridge_rank, bridge_logprob, generation`. Layers are 0-based
    indices of the blocks whose outputs are read and replaced; `control` is `none`, `other` or
    `random`. Ranks (from 0) and log-probabilities (nats) are those of the best next token that
    tells the answer or the bridge (that of the hop: e2 at t1, e3 at t2 of three; the last one at
    the end); where none does, the rank is the size of the vocabulary.
    `details` has one row a query and position: prompt, bridge, answer, those tokens as texts, what
    the unpatched prompt gives, and the query that lent its vectors to the control.
    """

    kind = "back_patching"
    rules = FIRST_TOKENS
    what: ClassVar = "queries that some cell of back-patching repairs"
    found: ClassVar = "at {} some cell has the answer for"
    columns: ClassVar = {
        "query": "str",
        "position": "str",
        "source_layer": "int64",
        "target_layer": "int64",
        "control": "str",
        "hit": "bool",
        "answer_rank": "int64",
        "answer_logprob": "float32",
        "bridge_rank": "int64",
        "bridge_logprob": "float32",
        "generation": "str",
    }

    def repaired(self) -> pd.DataFrame:
        """For each query, position and control: does any cell have the answer?"""
        keys = ["query", "position", "control"]
        return self.frame.groupby(keys, sort=False, observed=True)["hit"].any().reset_index()

    def success_rate(self, seed: int = 0) -> pd.DataFrame:
        """Share of queries with the answer in any cell, by position and control.

        Args:
            seed: as every summary takes one; nothing is drawn here.

        Returns:
            Columns `position, control, n, rate, low, high`: Wilson 95 % intervals.
        """
        return intervals(self.repaired(), ["position", "control"], "hit", "rate", seed)

    def cell_rate(self, seed: int = 0) -> pd.DataFrame:
        """Share of the cells that have the answer, the mean over queries.

        Of compositions that are right without a patch some cell nearly always keeps the answer, so
        that `success_rate` tells nothing of them; this tells how much a state may be replaced.

        Args:
            seed: of the bootstrap.

        Returns:
            Columns `position, control, n, rate, low, high`: bootstrap 95 % intervals.
        """
        keys = ["query", "position", "control"]
        shares = self.frame.groupby(keys, sort=False, observed=True)["hit"].mean().reset_index()
        return intervals(shares, ["position", "control"], "hit", "rate", seed)

    def above_chance(self, seed: int = 0) -> pd.DataFrame:
        """How much oftener the query's own vector repairs than a control's, query by query.

        Returns:
            Columns `position, control, n, difference, low, high`: exact paired intervals, see
            `hopscope.statistics.share_difference`.
        """
        rows = [
            {"position": position, **gain}
            for position, group in self.frame.groupby("position", sort=False)
            for gain in _over_controls(group, seed)
        ]
        return pd.DataFrame(rows, columns=["position", "control", "n", "difference", "low", "high"])

    def gains(self, seed: int = 0) -> pd.DataFrame:
        """How much oftener the query's own vector has the answer than a control's, and how surely.

        `any` cell is the paper's oracle. The `best` cell is chosen on one half of the queries, as
        in `best_cell`, and compared on the other half.

        Args:
            seed: of the halves.

        Returns:
            Columns `cells` (`any`, `best`), `position`, `control`, and those of
            `hopscope.statistics.paired`: `n, difference, low, high, better, worse, p`.
        """
        frame, rows = self.frame, []
        other_half = ~frame["query"].isin(self.choosing_half(seed))
        for position in frame["position"].unique():
            here = frame["position"] == position
            best = self.best_cell(position, seed)
            layers = frame["source_layer"] == best.source_layer
            layers &= frame["target_layer"] == best.target_layer
            for cells, chosen in (("any", here), ("best", here & layers & other_half)):
                found = _over_controls(frame[chosen], seed)
                rows += [{"cells": cells, "position": position, **gain} for gain in found]
        return pd.DataFrame(rows)

    def heatmap(self, position: str | None = None, control: str = "none") -> pd.DataFrame:
        """Share of queries that have the answer in each cell; rows target, columns source layer."""
        chosen = self.rows_with(self.frame, position=position, control=control)
        return chosen.pivot_table(
            index="target_layer", columns="source_layer", values="hit", aggfunc="mean"
        )

    def best_cell(self, position: str | None = None, seed: int = 0) -> BestCell:
        """The non-oracle figure: the cell with most hits on one half, scored on the other.

        Among equal cells the one with the higher mean log-probability of the answer is taken.

        Args:
            position: only cells there; all positions if None.
            seed: of the halves.

        Raises:
            UsageError: with fewer than two queries.
        """
        cells = self.frame[self.frame["control"] == "none"]
        if position is not None:
            cells = self.rows_with(cells, position=position)
        half = cells["query"].isin(self.choosing_half(seed))
        where = ["position", "source_layer", "target_layer"]
        scores = cells[half].groupby(where)[["hit", "answer_logprob"]].mean()
        best = scores.sort_values(["hit", "answer_logprob"], kind="stable").index[-1]
        there = cells[~half].set_index(where).loc[[best], "hit"].to_numpy()
        return BestCell(
            str(best[0]), int(best[1]), int(best[2]), *mean_interval(there, seed), n=len(there)
        )

    def choosing_half(self, seed: int = 0) -> list[str]:
        """The ids of the queries on which `best_cell` chooses; it scores on the others.

        Raises:
            UsageError: with fewer than two queries.
        """
        ids = np.array(sorted(self.frame["query"].unique()), dtype=object)
        if len(ids) < 2:
            raise UsageError("best_cell needs two queries at least: one to choose, one to score")
        mixed = np.random.default_rng(seed).permutation(ids)
        return [str(each) for each in mixed[: (len(ids) + 1) // 2]]

    def examples(self, n: int = 10, position: str | None = None) -> pd.DataFrame:
        """What was said before and after, for repaired queries first.

        Returns:
            One row a query and position: prompt, bridge, answer, what the model said `before`,
            what its best cell said `after`, that cell, and in how many cells it has the answer.
        """
        own = self.frame[self.frame["control"] == "none"]
        order = own.sort_values(["hit", "answer_logprob"], ascending=False, kind="stable")
        best = order.groupby(["query", "position"], sort=False).head(1)
        counts = own.groupby(["query", "position"])["hit"].sum().rename("cells").reset_index()
        table = self.details.merge(best, on=["query", "position"]).merge(
            counts, on=["query", "position"]
        )
        if position is not None:
            table = self.rows_with(table, position=position)
        table = table.sort_values(["hit", "cells"], ascending=False, kind="stable").head(n)
        names = {"clean_generation": "before", "generation": "after"}
        columns = "query position prompt bridge answer before after source_layer target_layer cells"
        return table.rename(columns=names)[columns.split()].reset_index(drop=True)

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"success_rate": self.success_rate(), "above_chance": self.above_chance()}

    def printed(self, seed: int = 0) -> dict[str, Any]:
        best = self.best_cell(seed=seed) if self.n_queries > 1 else None
        rates, gains = self.success_rate(seed), self.above_chance(seed)
        return {"success_rate": rates, "above_chance": gains, "best_cell": best}

    def findings(self) -> list[str]:
        rates, gains = self.success_rate(), self.above_chance()
        positions = dict.fromkeys(rates["position"])
        sentences = [_found_at(self.found, each, rates, gains) for each in positions]
        if self.n_queries > 1:
            best = self.best_cell()
            sentences.append(
                f"The best single cell, chosen on one half ({best.position}, {best.source_layer} "
                f"→ {best.target_layer}), has the answer for "
                f"{with_interval(best.rate, best.low, best.high)} of the other half."
            )
        return sentences

    def headline(self) -> Headline | None:
        """How many more queries some cell repairs than with another query's state."""
        gains = (each for each in _over_controls(self.repaired(), 0) if each["control"] == "other")
        gain = next(gains, None)
        if gain is None:
            return None
        sentence = (
            f"{self.what}: {points(gain['difference'], gain['low'], gain['high'])} "
            "against another query's state in the same cells"
        )
        return Headline(f"{sentence}.", CONTROL_NAMES["other"], gain["n"], gain["p"])

    def grid(self) -> Grid | None:
        """What the interactive heatmap shows."""
        from hopscope.experiments.two_hop.grids import BackPatchingGrid

        return BackPatchingGrid(self)

    def plot(
        self, position: str | None = None, control: str = "none", ax: Axes | None = None
    ) -> Axes:
        """Draw the source × target heatmap of one position."""
        from hopscope.plots import heatmaps

        where = self.in_run("position", position)
        title = f"{where}, {OWN if control == 'none' else control}"
        return heatmaps.layer_heatmap(self.heatmap(where, control), ax, title=title)


def cells_of(layers: Iterable[int]) -> list[tuple[int, int]]:
    """All (source, target) pairs of some layers with source > target."""
    layers = list(layers)
    return [(a, b) for a in layers for b in layers if a > b]


def _over_controls(rows: pd.DataFrame, seed: int) -> Iterator[dict[str, Any]]:
    """How much oftener own vectors have the answer in some of the rows than each control's."""
    wide = rows.pivot_table(index="query", columns="control", values="hit", aggfunc="any")
    for control in (name for name in CONTROLS if name in wide):
        pairs = wide[["none", control]].dropna()
        gain = paired(pairs[control].to_numpy(), pairs["none"].to_numpy(), seed)
        yield {"control": control, **gain}


def _found_at(found: str, position: str, rates: pd.DataFrame, gains: pd.DataFrame) -> str:
    """How many queries are repaired at one position, beside the controls, in a sentence."""
    own = row_where(rates, position=position, control="none")
    assert own is not None
    controls = [
        f"{with_interval(row['rate'], row['low'], row['high'])} with {label}"
        for control, label in CONTROL_NAMES.items()
        for row in rows_where(rates, position=position, control=control)
    ]
    share = with_interval(own["rate"], own["low"], own["high"])
    sentence = f"{found.format(position)} {share} of the queries"
    if controls:
        sentence += f", against {' and '.join(controls)}"
    for gain in rows_where(gains, position=position, control="other"):
        difference = points(gain["difference"], gain["low"], gain["high"])
        sentence += f"; {difference} over another query's state: {verdict(gain)}"
    return f"{sentence}."


@analysis(
    "back-patch",
    title="Back-patching",
    question="Does copying a later state of a token into an earlier layer repair the answer?",
    source="Hopping Too Late, section 6",
    control="another query's state, and a random vector of the same norm, in the same cells",
    subsets=("incorrect", "correct"),
    usual_subset="incorrect",
    order=10,
    accepts={
        "queries": Queries(),
        "positions": ListOf(POSITIONS, optional=True),
        "controls": ListOf(CONTROLS, empty=True),
        "criterion": OneOf(CRITERIA),
        "max_new_tokens": AtLeast(1),
        "stop_early": Flag(),
        "one_line": Flag(optional=True),
        "match": OneOf(MATCHES),
        "cells": Cells(),
    },
    layers=lambda layers: {"cells": cells_of(layers)},
    parity={"match": "substring", "stop_early": False},
    grades=("match", "max_new_tokens"),
)
def back_patch(
    model: LanguageModel,
    queries: QuerySet,
    positions: Sequence[str] | None = None,
    controls: Sequence[str] = ("other", "random"),
    criterion: Criterion = "generation",
    max_new_tokens: int = 10,
    match: Match = "word",
    cells: Iterable[tuple[int, int]] | None = None,
    stop_early: bool = True,
    *,
    one_line: bool | None = None,
    **run: Unpack[RunKeywords],
) -> BackPatching:
    """Replace the output of an earlier block by that of a later one, and let the model answer.

    For each query, position and cell (a, b): the clean `resid_post[a]` replaces `resid_post[b]`
    at the same token while the prompt is read; then the model answers greedily. A query counts
    as repaired if any cell has its answer, which needs a chance level: with `other` the vectors
    come from another query with another answer and the same last relation, with `random` they
    are Gaussian with the norms of the query's own.

    Args:
        model: the model.
        queries: usually `graded.incorrect()` or `graded.correct()`.
        positions: `t1` (end of the first-hop phrase), `t2` (end of the prompt, of two hops), and so
            on; `e1`; or `t1->t2`, which reads at t1 and replaces at t2 (cross-patching, CaKE 2025).
            The end of each hop if None.
        controls: any of `other`, `random`; () for none.
        criterion: `generation`: the answer is in the generated text; `first_token`: a first
            token of the answer is the likeliest next token, nothing more is generated.
        max_new_tokens: how many tokens to generate.
        match: how an answer is recognised: as whole words, or (the paper) as a substring.
        cells: (source layer, target layer) pairs; all with source > target if None.
        stop_early: stop a cell when its line ends (few-shot) or its answer is certain.
        one_line: whether an answer is the first line only; if None, for few-shot prompts.

    Raises:
        UsageError: for an empty set, an unknown position, control, criterion or layer, or a
            prompt that does not fit into the context.

    Example:
        >>> result = back_patch(model, graded.incorrect())  # doctest: +SKIP
        >>> result.success_rate()  # doctest: +SKIP
    """
    options = RunOptions(**run)
    settings = {
        "positions": positions_of(queries, positions, POSITIONS),
        "cells": "source > target" if cells is None else cells,
        **cell_settings(
            queries, controls, criterion, max_new_tokens, match, stop_early, one_line, options
        ),
    }
    room = settings["max_new_tokens"]
    prompts = QueryPrompts.of(model, queries, room, max_memory=options.max_memory)
    if criterion == "first_token":
        queries = with_first_tokens(model, queries, prompts.answer_tokens)
    patcher = _BackPatcher(
        cells_of(range(model.n_layers)) if cells is None else list(cells),
        settings,
        prompts,
        choose_donors(queries, options.seed) if "other" in controls else {},
    )
    return run_in_parts(
        BackPatching, model, queries, settings, patcher.tables, options, per_part=PER_PART
    )


def cell_settings(
    queries: QuerySet,
    controls: Sequence[str],
    criterion: Criterion,
    max_new_tokens: int,
    match: Match,
    stop_early: bool,
    one_line: bool | None,
    options: RunOptions,
) -> dict[str, Any]:
    """What a `CellPatcher` goes by, for the run's record; arguments are those of `back_patch`."""
    return {
        "controls": controls,
        "criterion": criterion,
        "max_new_tokens": max_new_tokens if criterion == "generation" else 1,
        "match": match,
        "stop_early": stop_early,
        "one_line": reads_one_line(queries.few_shot, one_line),
        "seed": options.seed,
    }


@dataclass(frozen=True)
class Vectors:
    """What is put into one token of a prompt, layer by layer, and who is asked for.

    Attributes:
        prompt: the prompt.
        clean: its unedited run.
        token: the index of the token whose state is replaced.
        states: by control, a state for each layer, of shape (layer, width).
        asked: the query whose answer counts.
        donor: who lent the states of the control `other`.
        told: what else the details say.
        bridge: the bridge whose rank is read, too.
    """

    prompt: TokenizedPrompt
    clean: CleanRun
    token: int
    states: Mapping[str, Tensor]
    asked: Query
    donor: Donor | None
    told: Mapping[str, Any] = field(default_factory=dict)
    bridge: str = "e2"


@dataclass(frozen=True)
class CellPatcher(ABC):
    """Puts the states of one query after the other into cells; keeps nothing but prefixes.

    Attributes:
        pairs: source and target layers.
        settings: what is patched and how answers are read, for the run's record, too.
    """

    pairs: Sequence[tuple[int, int]]
    settings: Mapping[str, Any]

    @abstractmethod
    def vectors(self, query: Query) -> Iterator[tuple[str, QueryPrompts, Vectors]]:
        """What is patched for a query: by position, the prompts to ask, and the vectors."""

    def tables(self, queries: QuerySet) -> Tables:
        """Frame and details of some queries."""
        return BackPatching.gathered(self._query(query) for query in divided(queries))

    def _query(self, query: Query) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
        frames, details = [], []
        for position, prompts, given in self.vectors(query):
            cells = [
                [Patch(b, given.token, states[a])]
                for states in given.states.values()
                for a, b in self.pairs
            ]
            read_out = self._read_out(prompts, given)
            outputs = prompts.sweep(given.prompt.ids, [[], *cells], read_out, given.clean)
            frame = self._frame(prompts.model, given, outputs)
            frame = frame.assign(query=query.id, position=position)
            frames.append(frame.iloc[1:])
            told = {"query": query.id, "position": position}
            details.append(told | self._details(prompts, given, frame.iloc[0]))
        return pd.concat(frames, ignore_index=True), details

    def _read_out(self, prompts: QueryPrompts, given: Vectors) -> ReadOut:
        match, line = self.settings["match"], self.settings["one_line"]
        names = given.asked.names(given.asked.answer)
        return ReadOut(
            answer_tokens=prompts.tokens_of(given.prompt.prompt, given.asked, given.asked.answer),
            also_rank=prompts.tokens_of(given.prompt.prompt, given.asked, given.bridge),
            max_new_tokens=self.settings["max_new_tokens"],
            stop=stop_when_answered(prompts.model, names, match, line)
            if self.settings["stop_early"]
            else None,
        )

    def _frame(self, model: LanguageModel, given: Vectors, outputs: CellOutputs) -> pd.DataFrame:
        """The rows of one query and position; the first is the clean prompt's."""
        n, texts = len(self.pairs), [model.decode(tokens) for tokens in outputs.tokens]
        last = model.vocab_size  # of a name that no first token identifies
        rank, bridge = (
            np.where(each < 0, last, each) for each in (outputs.rank, outputs.also_rank)
        )
        return pd.DataFrame(
            {
                "source_layer": [-1, *[a for a, _ in self.pairs] * len(given.states)],
                "target_layer": [-1, *[b for _, b in self.pairs] * len(given.states)],
                "control": ["clean", *(name for name in given.states for _ in range(n))],
                "hit": self._hits(given.asked, texts, rank),
                "answer_rank": rank,
                "answer_logprob": outputs.logprob.numpy(),
                "bridge_rank": bridge,
                "bridge_logprob": outputs.also_logprob.numpy(),
                "generation": texts,
            }
        )

    def _hits(self, asked: Query, texts: Sequence[str], rank: np.ndarray) -> list[bool]:
        if self.settings["criterion"] == "first_token":
            return [bool(each == 0) for each in rank]
        names, match, line = (
            asked.names(asked.answer),
            self.settings["match"],
            self.settings["one_line"],
        )
        verdicts = {text: matches(answer_text(text, line), names, match) for text in set(texts)}
        return [verdicts[text] for text in texts]

    def _details(
        self, prompts: QueryPrompts, given: Vectors, clean: pd.Series[Any]
    ) -> dict[str, Any]:
        asked, donor, texts_of = given.asked, given.donor, prompts.model.texts_of
        return {
            "prompt": question(given.prompt),
            "bridge": asked.label(given.bridge),
            "answer": asked.label(asked.answer),
            "answer_tokens": texts_of(prompts.tokens_of(given.prompt.prompt, asked, asked.answer)),
            "bridge_tokens": texts_of(prompts.tokens_of(given.prompt.prompt, asked, given.bridge)),
            **given.told,
            "clean_generation": clean["generation"],
            "clean_hit": bool(clean["hit"]),
            "clean_rank": int(clean["answer_rank"]),
            "clean_logprob": float(clean["answer_logprob"]),
            "clean_bridge_rank": int(clean["bridge_rank"]),
            "clean_bridge_logprob": float(clean["bridge_logprob"]),
            "donor": None if donor is None else donor.query.id,
            "donor_same_relation": None if donor is None else donor.same_relation,
        }


@dataclass(frozen=True)
class _BackPatcher(CellPatcher):
    """Puts the states of a query's own prompt back into it.

    Attributes:
        prompts: of the queries.
        donors: who lends states to the control `other`, by query id.
    """

    prompts: QueryPrompts
    donors: Mapping[str, Donor]

    def vectors(self, query: Query) -> Iterator[tuple[str, QueryPrompts, Vectors]]:
        prompt = self.prompts.prompt(query)
        clean = self.prompts.clean(prompt)
        donor = self.donors.get(query.id)
        lent = None if donor is None else self.prompts.prompt(donor.query)
        lending = None if lent is None else self.prompts.clean(lent)
        for position in divided(self.settings["positions"]):
            read, _, write = position.partition("->")
            states = {"none": clean.state(prompt.position(read))}
            if lent is not None and lending is not None:
                states["other"] = lending.state(lent.position(read))
            if "random" in self.settings["controls"]:
                named = (query.id, position)
                states["random"] = random_like(states["none"], self.settings["seed"], *named)
            token = prompt.position(write or read)
            told = {"token": prompt.position(read)}
            bridge = bridge_at(query, read)
            given = Vectors(prompt, clean, token, states, query, donor, told, bridge)
            yield position, self.prompts, given
