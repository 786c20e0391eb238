"""Auto-patching: a probe of the clean states decides which back-patch is made, if any.

That some cell of back-patching repairs an answer is an oracle's finding: nobody knows which one
before the answer is known. Auto-Patch (Jan et al. 2025, 2506.00483) lets a classifier of hidden
states decide whether one fixed cell is patched; here a probe chooses among all cells and none. It
is trained on one half of the queries and scored on the other, and the other way round.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

import numpy as np
import pandas as pd

from hopscope.errors import ResultError, UsageError, as_list, kind_of
from hopscope.experiments.analysis import RunKeywords, RunOptions, analysis, run_elsewhere
from hopscope.experiments.arguments import AtLeast, Cells, Flag, ListOf, OneOf
from hopscope.experiments.recipe import recipe_of
from hopscope.experiments.two_hop.back_patching import (
    CRITERIA,
    POSITIONS,
    BackPatching,
    Criterion,
    back_patch,
    cells_of,
)
from hopscope.experiments.two_hop.repairs import (
    dealt,
    halves,
    repair_gains,
    repair_rates,
)
from hopscope.models.language_model import LanguageModel
from hopscope.models.token_model import FIRST_TOKENS, TokenModel
from hopscope.prompting.capture import capture
from hopscope.queries.answers import MATCHES, Match, normalise
from hopscope.queries.query_set import QuerySet
from hopscope.results.headline import Headline
from hopscope.results.recipes import recording
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.run_record import provenance
from hopscope.results.runs import run_once
from hopscope.results.wording import points, row_where, verdict, with_interval
from hopscope.statistics import intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONTROLS = ("other",)
STATES = ("t1", "t2")
"""The positions whose clean states the probe reads."""
CELL = ["position", "source_layer", "target_layer"]
NONE = ("", -1, -1)
"""What stands for the cell where nothing is patched."""
POLICIES: Mapping[str, str] = {
    "probe": "the probe",
    "shuffled": "a probe of shuffled labels",
    "always": "always the best single cell",
    "other": "the probe with another query's state",
    "any": "any cell, by an oracle",
    "never": "never patching",
}
"""By what it is decided which cell is patched, in words."""
FOLDS = 5
"""Of the training half, by which the probe is chosen among those of `SETTINGS`."""
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, np.inf)
"""Of the probe, relative to the mean square of a state of unit variance. With an infinite one it
takes the same action for all queries: none, or the cell that is best on average."""
SETTINGS = tuple(product((None, 64, 16, 4, 1), range(len(PENALTIES))))
"""Among how many cells the probe chooses, of those that are best on average (all if None), and the
index of its penalty; from the freest to the most cautious."""


@dataclass(frozen=True, repr=False)
class AutoPatching(Result):
    """What comes of patching the cell that a probe, or a control, decides on.

    `frame` has one row a query and policy: `query, policy, position, source_layer, target_layer,
    before, hit, generation`: the cell that is patched (no position and layers of -1 if none is),
    whether the answer was right before, whether it is right then, and what is said. The policies:

    - `probe`: the cell with which the probe expects the answer most, or none.
    - `shuffled`: the same of a probe that was trained on other queries' outcomes.
    - `always`: the single cell that has most answers on the training half.
    - `other`: the probe's cells, but the state comes from another query.
    - `any`: a cell that has the answer if there is one: back-patching's oracle. None if the answer
      was right before.
    - `never`: none.

    `details` has one row a query: prompt, bridge, answer, what the unpatched prompt gives, and the
    half that the query is in; it is scored by what was trained on the other half.
    """

    kind = "auto_patching"
    rules = FIRST_TOKENS
    columns: ClassVar = {
        "query": "str",
        "policy": "str",
        "position": "str",
        "source_layer": "int64",
        "target_layer": "int64",
        "before": "bool",
        "hit": "bool",
        "generation": "str",
    }

    def rates(self, seed: int = 0) -> pd.DataFrame:
        """What each policy repairs and breaks, and how many queries it patches.

        Args:
            seed: as every summary takes one; nothing is drawn here.

        Returns:
            Columns `policy, what, n, rate, low, high`: the share of the wrong answers that are
            `repaired`, of the right ones that are `broken`, and of all queries that are `patched`,
            with Wilson 95 % intervals.
        """
        rows = self.frame[self.frame["policy"] != "never"]
        patched = rows.assign(share=rows["source_layer"] >= 0)
        shares = intervals(patched, ["policy"], "share", "rate", seed).assign(what="patched")
        found = pd.concat([repair_rates(rows, "policy", seed), shares], ignore_index=True)
        order = found["policy"].map(list(POLICIES).index)
        return found.iloc[np.argsort(order, kind="stable")].reset_index(drop=True)

    def net(self, seed: int = 0) -> pd.DataFrame:
        """How many more answers are right by a policy than by another one, query by query.

        Each is compared with never patching, and the probe with each of its controls. The net
        depends on how many of the queries were right before.

        Args:
            seed: as every summary takes one; nothing is drawn here.

        Returns:
            Columns `policy, base`, and those of `hopscope.statistics.paired`, with exact intervals.
        """
        there = [name for name in POLICIES if name in set(self.frame["policy"])]
        pairs = [(name, "never") for name in there if name != "never"]
        pairs += [("probe", name) for name in there if name in ("shuffled", "always", "other")]
        return repair_gains(self.frame, "policy", pairs, seed)

    def cells(self, policy: str = "probe") -> pd.DataFrame:
        """How often each cell is patched by a policy, and what comes of it.

        Returns:
            Columns `position, source_layer, target_layer, n, right_before, right`, the most
            frequent cell first.
        """
        rows = self.rows_with(self.frame, policy=policy)
        table = rows.groupby(CELL, sort=False).agg(
            n=("query", "size"), right_before=("before", "sum"), right=("hit", "sum")
        )
        return table.reset_index().sort_values(
            "n", ascending=False, kind="stable", ignore_index=True
        )

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"rates": self.rates(), "net": self.net(), "cells": self.cells()}

    def findings(self) -> list[str]:
        rates, net = self.rates(), self.net()
        before = self.frame.loc[self.frame["policy"] == "never", "before"]
        sentences = [
            f"of {len(before)} queries, {int((~before).sum())} wrong and {int(before.sum())} right "
            f"before, {_told('probe', rates, net)}: "
            f"{verdict(_gain(net, 'probe', 'never'), POLICIES['never'])}."
        ]
        for base in ("always", "shuffled", "other"):
            if base in set(net["policy"]):
                told, gain = _told(base, rates, net), _gain(net, "probe", base)
                difference = points(gain["difference"], gain["low"], gain["high"])
                sentences.append(
                    f"{told[0].upper()}{told[1:]}; the probe against that: {difference}."
                )
        oracle = row_where(rates, policy="any", what="repaired")
        if oracle is not None:
            share = with_interval(oracle["rate"], oracle["low"], oracle["high"])
            sentences.append(f"Some cell repairs {share} of the wrong answers, which is an oracle.")
        return sentences

    def headline(self) -> Headline | None:
        """How many more answers are right if the probe decides than without any patch."""
        gain = _gain(self.net(), "probe", "never")
        sentence = (
            "queries that are right when a probe decides what is patched: "
            f"{points(gain['difference'], gain['low'], gain['high'])} against never patching"
        )
        return Headline(f"{sentence}.", "never patching", gain["n"], gain["p"])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw what each policy repairs and breaks."""
        from hopscope.experiments.two_hop import plots

        return plots.policy_bars(self.rates(), ax, title=self.run.get("model", {}).get("name", ""))


def _gain(net: pd.DataFrame, policy: str, base: str) -> dict[str, Any]:
    """The row of `AutoPatching.net` that compares two policies."""
    found = row_where(net, policy=policy, base=base)
    assert found is not None
    return found


def _told(policy: str, rates: pd.DataFrame, net: pd.DataFrame) -> str:
    """What a policy patches, repairs and breaks, and its net, as a part of a sentence."""
    shares = {
        what: with_interval(row["rate"], row["low"], row["high"])
        for what in ("repaired", "broken")
        if (row := row_where(rates, policy=policy, what=what)) is not None
    }
    patched, gain = row_where(rates, policy=policy, what="patched"), _gain(net, policy, "never")
    assert patched is not None
    parts = [
        f"{POLICIES[policy]} patches "
        f"{with_interval(patched['rate'], patched['low'], patched['high'])}",
        f"repairs {shares['repaired']} of the wrong ones" if "repaired" in shares else "",
        f"breaks {shares['broken']} of the right ones" if "broken" in shares else "",
    ]
    net_gain = points(gain["difference"], gain["low"], gain["high"])
    return f"{', '.join(filter(None, parts))}: {net_gain} in all"


@dataclass(frozen=True)
class Patched:
    """Results of back-patching, or their run folders; None for none."""

    def checked(self, name: str, value: Any, model: TokenModel | None) -> Any:
        if value is None:
            return None
        given = as_list(value, str | Path | BackPatching, name)
        wrong = [each for each in given if not isinstance(each, str | Path | BackPatching)]
        if wrong or not given:
            raise UsageError(
                f"{name} must be results of hs.back_patch or their run folders, not "
                f"{kind_of(wrong[0]) if wrong else 'an empty list'}"
            )
        return given


@analysis(
    "auto-patch",
    title="Auto-patching",
    question="Can a probe tell from the clean states which back-patch repairs an answer?",
    source="Auto-Patch, Jan et al. 2025",
    control="a probe of shuffled labels, always the best single cell, another query's state, and "
    "never patching",
    usual_subset="both",
    order=17,
    keywords=("seed", "progress", "max_memory", "out", "on"),
    accepts={
        "positions": ListOf(POSITIONS),
        "controls": ListOf(CONTROLS, empty=True),
        "criterion": OneOf(CRITERIA),
        "max_new_tokens": AtLeast(1),
        "stop_early": Flag(),
        "one_line": Flag(optional=True),
        "match": OneOf(MATCHES),
        "cells": Cells(),
        "read_layers": AtLeast(1),
        "patched": Patched(),
    },
    layers=lambda layers: {"cells": cells_of(layers)},
    grades=("match", "max_new_tokens"),
    composed=True,
)
def auto_patch(
    model: LanguageModel,
    queries: QuerySet,
    positions: Sequence[str] = ("t1", "t2"),
    controls: Sequence[str] = CONTROLS,
    criterion: Criterion = "generation",
    max_new_tokens: int = 10,
    match: Match = "word",
    cells: Sequence[tuple[int, int]] | None = None,
    stop_early: bool = True,
    *,
    one_line: bool | None = None,
    read_layers: int = 5,
    patched: Sequence[BackPatching | str | Path] | None = None,
    **run: Unpack[RunKeywords],
) -> AutoPatching:
    """Let a probe of the clean states decide which cell of back-patching is patched, or none.

    All cells are patched, as `back_patch` does. Then a ridge regression of what each cell brings
    about on the clean states at t1 and t2 is trained on one half of the queries, and chooses for
    each query of the other half the cell that has the answer most surely, or to patch nothing. Its
    penalty is chosen by folds of the training half. The queries of one source entity are in the
    same half, and in the same fold.

    Args:
        model: the model.
        queries: right and wrong ones, such as `graded.subset("both")`.
        positions: `t1`, `t2`, `t1->t2` or `e1`, as for `back_patch`.
        controls: `other`: the probe's cells with another query's state; () for none.
        criterion: `generation`: the answer is in the generated text; `first_token`: a first
            token of the answer is the likeliest next token, nothing more is generated.
        max_new_tokens: how many tokens to generate.
        match: how an answer is recognised: as whole words, or as a substring.
        cells: (source layer, target layer) pairs; all with source > target if None.
        stop_early: stop a cell when its line ends (few-shot) or its answer is certain.
        one_line: whether an answer is the first line only; if None, for few-shot prompts.
        read_layers: of how many layers, evenly spaced up to the last, the probe reads the states.
        patched: results of `back_patch` with this model, or their run folders: their queries are
            taken from `queries`, and their cells are not computed again, so that nothing else but
            `read_layers` and `seed` is asked for.

    Raises:
        UsageError: for an unknown position, control, criterion or layer.
        QueryError: for fewer than four source entities.
        ResultError: if a result is of another model, of other queries or settings.

    Example:
        >>> auto_patch(model, graded.subset("both")).net()  # doctest: +SKIP
    """
    options = RunOptions(**run)
    folder = None if options.out is None else Path(options.out)
    swept: dict[str, Any] = {} if cells is None else {"cells": cells}
    if patched is None:
        found = back_patch(
            model,
            queries,
            positions,
            controls,
            criterion,
            max_new_tokens,
            match,
            stop_early=stop_early,
            one_line=one_line,
            seed=options.seed,
            progress=options.progress,
            max_memory=options.max_memory,
            layer_step=options.layer_step,
            on=options.on,
            out=None if folder is None else folder / BackPatching.kind,
            **swept,
        )
        patched = [found if folder is None else folder / BackPatching.kind]
    common: RunKeywords = {"seed": options.seed, "progress": options.progress, "on": options.on}
    common["out"] = None if folder is None else folder / AutoPatching.kind
    return auto_patch_by(model, queries, patched, read_layers, **common)


def auto_patch_by(
    model: LanguageModel,
    queries: QuerySet,
    patched: Sequence[BackPatching | str | Path],
    read_layers: int,
    **run: Unpack[RunKeywords],
) -> AutoPatching:
    """What `auto_patch` makes of results of back-patching, as a run of one part.

    Args:
        model, queries, read_layers: as for `auto_patch`.
        patched: the results, or their run folders.
        **run: `seed`, `progress`, `out` and `on`.

    Raises:
        QueryError, ResultError: as `auto_patch`.
    """
    options = RunOptions(**run)
    results = [each if isinstance(each, BackPatching) else Path(each).resolve() for each in patched]
    with tempfile.TemporaryDirectory(prefix="hopscope-") as beside:
        if options.on is not None and options.out is None:  # the workers are on this machine
            results = [
                each.save(Path(beside) / str(number)) if isinstance(each, BackPatching) else each
                for number, each in enumerate(results)
            ]
        given = {"model": model, "queries": queries, "patched": results, "read_layers": read_layers}
        recipe = recipe_of("auto_patch_by", __name__, {**given, **run})
        if options.on is not None:
            return run_elsewhere(AutoPatching, recipe, options, queries)
        with recording(None if options.out is None else recipe):
            return _by_states(model, queries, results, read_layers, options)


def _by_states(
    model: LanguageModel,
    queries: QuerySet,
    patched: Sequence[BackPatching | Path],
    read_layers: int,
    options: RunOptions,
) -> AutoPatching:
    """The cells that a probe of the states chooses among those that were patched."""
    found, asked = _joined(patched, model, queries)
    entities = [normalise(query.labels[0]) for query in asked]
    halves(_before(found), entities, options.seed)  # refuses too few before states are read
    layers = evenly(model.n_layers, read_layers)
    settings = {**found.run["settings"], "seed": options.seed, "read_layers": layers}
    record = provenance(model, asked, AutoPatching.kind, settings, rules=AutoPatching.rules)

    def compute() -> Tables:
        acts = capture(
            model, asked.prompts(), positions=STATES, device="cpu", progress=options.progress
        )
        states = acts["resid_post"][:, :, layers].flatten(1).double().numpy()
        frame, details = decide(found, states, entities, options.seed)
        return {"frame": frame, "details": details}

    return AutoPatching.of(run_once(compute, record, options.out), record)


def evenly(n_layers: int, n: int) -> list[int]:
    """At most `n` layers, evenly spaced, the last one included.

    Example:
        >>> evenly(30, 3), evenly(30, 1), evenly(2, 5)
        ([0, 14, 29], [29], [0, 1])
    """
    return sorted({round(each) for each in np.linspace(n_layers - 1, 0, n).tolist()})


def _queries_of(result: BackPatching, queries: QuerySet) -> QuerySet:
    """The queries of a result, taken from a set that has them, in their order."""
    ids = dict.fromkeys(result.details["query"])
    return replace(queries, queries=tuple(queries.by_id(each) for each in ids))


def _joined(
    patched: Sequence[BackPatching | str | Path], model: LanguageModel, queries: QuerySet
) -> tuple[BackPatching, QuerySet]:
    """Several results of back-patching as one, and their queries.

    Raises:
        ResultError: if one is of another model, of other queries, or of other settings.
    """
    results = [
        each if isinstance(each, BackPatching) else BackPatching.load(each) for each in patched
    ]
    first = results[0].run
    for result in results:
        asked, run = _queries_of(result, queries), result.run
        if run["model"]["sha256"] != model.fingerprint:
            raise ResultError(
                f"{result!r} is of another model than {model.name}, or of one in another dtype "
                f"({run['model']['dtype']}): give the one that it was made with"
            )
        if run["queries"]["sha256"] != asked.fingerprint:
            raise ResultError(
                f"{result!r} is of other queries, or not finished: give the set that its queries "
                "were chosen from, with as many demonstrations"
            )
        if run["settings"] != first["settings"]:
            raise ResultError("the results differ in their settings: make them alike")
    frame, details = (
        pd.concat([getattr(each, name) for each in results], ignore_index=True)
        for name in ("frame", "details")
    )
    joined = BackPatching(frame, details, first)
    return joined, _queries_of(joined, queries)


def _before(patched: BackPatching) -> np.ndarray:
    """Whether each query is right by itself, in the order of the result."""
    return patched.details.drop_duplicates("query")["clean_hit"].to_numpy(dtype=bool)


def decide(
    patched: BackPatching, states: np.ndarray, entities: Sequence[str], seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Frame and details of an `AutoPatching`.

    Args:
        patched: what each cell brings about.
        states: what the probe reads, shape (query, width), in the order of the result's queries.
        entities: the source entity of each query.
        seed: of the halves, the folds and the shuffled labels.

    Raises:
        QueryError: if one half has fewer than two source entities.
    """
    details = patched.details.drop_duplicates("query").set_index("query", drop=False)
    own = patched.frame[patched.frame["control"] == "none"]
    hits = own.pivot(index="query", columns=CELL, values="hit").reindex(details.index)
    before = _before(patched)
    outcomes = np.column_stack([before, hits.to_numpy(dtype=bool)])
    groups = np.unique(np.asarray(entities), return_inverse=True)[1]
    half = halves(before, entities, seed)
    shuffled = np.random.default_rng(seed)
    chosen = {name: np.zeros(len(details), dtype=int) for name in POLICIES if name != "other"}
    for part in (0, 1):
        train, test = half != part, half == part
        known, mixed = outcomes[train], shuffled.permutation(outcomes[train])
        asked = {"states": states[train], "asked": states[test], "groups": groups[train]}
        chosen["probe"][test] = choose(outcomes=known, seed=seed, **asked)
        chosen["shuffled"][test] = choose(outcomes=mixed, seed=seed, **asked)
        chosen["always"][test] = 1 + known[:, 1:].mean(axis=0).argmax()
    chosen["any"] = outcomes.argmax(axis=1)
    if (patched.frame["control"] == "other").any():
        chosen["other"] = chosen["probe"]
    cells = [NONE, *hits.columns]
    frames = [
        _frame(patched, details, name, [cells[action] for action in actions])
        for name, actions in chosen.items()
    ]
    columns = ["query", "prompt", "bridge", "answer", "clean_generation", "clean_hit"]
    told = details[columns].assign(half=half).reset_index(drop=True)
    return AutoPatching.joined(frames), told


def choose(
    states: np.ndarray, outcomes: np.ndarray, asked: np.ndarray, groups: np.ndarray, seed: int
) -> np.ndarray:
    """The action of which a probe expects most for each query that is asked.

    Of the settings the probe takes the one with which it fares best on folds of its own training
    queries, and the most cautious one of several.

    Args:
        states: of the training queries, shape (query, width).
        outcomes: whether each action gives them the answer, shape (query, action). Action 0 is to
            patch nothing.
        asked: states of the queries to decide on, shape (query, width).
        groups: of the training queries, shape (query,); those of a group are in the same fold.
        seed: of the folds.

    Returns:
        The index of an action for each query that is asked.
    """
    folds = dealt(outcomes[:, 0], FOLDS, groups, seed)
    tried = np.zeros((len(SETTINGS), len(outcomes)), dtype=int)
    for fold in set(folds.tolist()):
        held = folds == fold
        tried[:, held] = _decisions(states[~held], outcomes[~held], states[held])
    fared = outcomes[np.arange(len(outcomes)), tried].mean(axis=1)
    best = len(SETTINGS) - 1 - fared[::-1].argmax()
    chosen: np.ndarray = _decisions(states, outcomes, asked)[best]
    return chosen


def _decisions(states: np.ndarray, outcomes: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The actions in each of `SETTINGS`, shape (setting, query); arguments as of `choose`."""
    predicted = ridge(states, outcomes.astype(float), asked)
    order = 1 + np.argsort(-outcomes[:, 1:].mean(axis=0), kind="stable")
    decisions = []
    for n_cells, penalty in SETTINGS:
        actions = np.array([0, *order[:n_cells]])
        decisions.append(actions[predicted[penalty][:, actions].argmax(axis=1)])
    return np.stack(decisions)


def ridge(states: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Ridge regression of several values on standardised states, for each of `PENALTIES`.

    Args:
        states: shape (query, width).
        values: shape (query, value).
        asked: states for which the values are predicted, shape (query, width).

    Returns:
        Predictions, shape (penalty, query that is asked, value).
    """
    center, scale = states.mean(axis=0), states.std(axis=0)
    scale[scale <= 1e-6 * np.abs(states).max(axis=0)] = 1.0
    own, new = ((each - center) / scale / np.sqrt(states.shape[1]) for each in (states, asked))
    spread, axes = np.linalg.eigh(own @ own.T)
    mean, parts = values.mean(axis=0), axes.T @ (values - values.mean(axis=0))
    seen = new @ own.T @ axes
    return np.stack([mean + seen / (spread.clip(0) + each) @ parts for each in PENALTIES])


def _frame(
    patched: BackPatching, details: pd.DataFrame, policy: str, cells: Sequence[tuple[Any, ...]]
) -> pd.DataFrame:
    """What comes of patching a cell of each query, by one policy."""
    table = pd.DataFrame(cells, columns=CELL).assign(query=details.index)
    control = "other" if policy == "other" else "none"
    rows = patched.frame[patched.frame["control"] == control]
    table = table.merge(rows[["query", *CELL, "hit", "generation"]], how="left", validate="1:1")
    none = (table["source_layer"] < 0).to_numpy()
    for name, clean in (("hit", "clean_hit"), ("generation", "clean_generation")):
        table[name] = np.where(none, details[clean], table[name])
    table = table.assign(policy=policy, before=details["clean_hit"].to_numpy(dtype=bool))
    return table.dropna(subset=["hit"]).astype({"hit": bool})  # some queries have no donor
