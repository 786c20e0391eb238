"""Grades a model on two-hop queries: which hop, composition and shortcut it gets right."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Unpack, get_args

import pandas as pd

from hopscope.display.progress import divided
from hopscope.engine.prefix_store import PrefixStore
from hopscope.engine.read_out import ReadOut
from hopscope.engine.sweep import generate
from hopscope.errors import QueryError, ResultError, UsageError
from hopscope.experiments.analysis import (
    RunKeywords,
    RunOptions,
    analysis,
    run_elsewhere,
    run_in_parts,
)
from hopscope.experiments.arguments import AtLeast, Flag, InstanceOf, OneOf, Queries
from hopscope.experiments.recipe import recipe_of
from hopscope.experiments.registry import REGISTERED
from hopscope.experiments.two_hop.chains import bridges_of
from hopscope.models.language_model import LanguageModel
from hopscope.prompting.generation import answer_text, reads_one_line, stop_at_line_end
from hopscope.prompting.query_prompts import question
from hopscope.prompting.tokenized import TokenizedPrompt, by_prefix
from hopscope.queries.answers import MATCHES, Match, matches
from hopscope.queries.query import CUT, HOPS, Form, forms_of
from hopscope.queries.query_set import QuerySet
from hopscope.results.recipes import recording
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables, is_run, read_run
from hopscope.results.runs import Until, calling
from hopscope.results.wording import rows_where, with_interval
from hopscope.statistics import chance_of_more, wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)

PER_PART = 128
BATCH = 128
LEAST_CHANCE = 0.5
"""Of finding enough queries of any subset that lacks some, below which no more are graded."""
SHORTCUTS = tuple(form for form, asked in forms_of(2).items() if asked.like != form)
"""Those of two hops."""
SUBSETS = ("correct", "incorrect", "inconsistent", "both")
RelationShortcut = Literal["whole", "cut"]
RELATION_SHORTCUTS = get_args(RelationShortcut)


@dataclass(frozen=True, repr=False)
class Grading(Result):
    """What a model answered to each form of each query.

    `frame` has the columns `query, form, prompt, generation, correct`.
    """

    kind = "grading"
    added_settings: ClassVar = {"relation_shortcut": "whole"}
    columns: ClassVar = {
        "query": "str",
        "form": "str",
        "prompt": "str",
        "generation": "str",
        "correct": "bool",
    }
    queries: QuerySet | None = None

    def verdicts(self) -> pd.DataFrame:
        """One row a query, one column a form, in the order of the queries: right or wrong."""
        table = self.frame.pivot_table(
            index="query", columns="form", values="correct", aggfunc="first", sort=False
        )
        return table[list(self.forms)].astype(bool)

    @property
    def forms(self) -> tuple[Form, ...]:
        """The forms that were asked, the composition first."""
        return tuple(dict.fromkeys(self.frame["form"]))

    @property
    def hops(self) -> tuple[Form, ...]:
        """The forms that ask a single hop."""
        return tuple(form for form in self.forms if form in HOPS)

    @property
    def shortcuts(self) -> tuple[Form, ...]:
        """The forms that leave something out."""
        known = forms_of(len(self.hops))
        return tuple(form for form in self.forms if known[form].like != form)

    def correct(self, queries: QuerySet | None = None) -> QuerySet:
        """The queries with the bridges and the composition right and no shortcut right.

        The bridges are right if all hops but the last one are.
        """
        return self.subset("correct", queries)

    def incorrect(self, queries: QuerySet | None = None) -> QuerySet:
        """The queries with all single hops right, the composition wrong, and no shortcut right."""
        return self.subset("incorrect", queries)

    def inconsistent(self, queries: QuerySet | None = None) -> QuerySet:
        """The queries with all hops right and the composition wrong, whatever the shortcuts.

        CaKE (2025) analyses these.
        """
        return self.subset("inconsistent", queries)

    def counts(self) -> dict[str, int]:
        """How many queries are `graded`, and in each subset; see `subset`."""
        table = self.verdicts()
        of_subset = {name: int(those.sum()) for name, those in self._subsets(table).items()}
        return {"graded": len(table), **of_subset}

    def _subsets(self, table: pd.DataFrame) -> dict[str, pd.Series[bool]]:
        """Which queries are of each subset, by verdicts."""
        whole, shortcut = table[self.forms[0]], table[list(self.shortcuts)].any(axis=1)
        bridges, hops = (table[list(each)].all(axis=1) for each in (self.hops[:-1], self.hops))
        correct, incorrect = bridges & whole & ~shortcut, hops & ~whole & ~shortcut
        return {
            "correct": correct,
            "incorrect": incorrect,
            "inconsistent": hops & ~whole,
            "both": correct | incorrect,
        }

    def subset(self, name: str, queries: QuerySet | None = None) -> QuerySet:
        """The queries that are `correct`, `incorrect`, `inconsistent`, or `both` of the first two.

        Args:
            name: of the subset.
            queries: those that were graded, for a result that was loaded.

        Raises:
            ResultError: for a loaded result without its queries.
            UsageError: for an unknown subset.
        """
        OneOf(SUBSETS).checked("subset", name, None)
        source = self.queries if queries is None else queries
        if source is None:
            raise ResultError("a loaded grading needs its queries: pass the query set it graded")
        chosen = self._subsets(self.verdicts())[name]
        kept = set(chosen.index[chosen])
        return source.filter(lambda query: query.id in kept)

    def summary(self) -> pd.DataFrame:
        """Share right for each form and share in each subset, with Wilson 95 % intervals."""
        table = self.verdicts()
        subsets = self._subsets(table)
        every = "both_hops" if len(self.hops) == 2 else "all_hops"
        table[every] = table[list(self.hops)].all(axis=1)
        table = table.assign(**{name: those for name, those in subsets.items() if name != "both"})
        rows = []
        for name in table.columns:
            right, n = int(table[name].sum()), len(table)
            rows.append((name, right, n, *wilson(right, n)))
        return pd.DataFrame(rows, columns=["what", "right", "n", "share", "low", "high"])

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"summary": self.summary()}

    def findings(self) -> list[str]:
        rows = {row["what"]: row for row in rows_where(self.summary())}
        share = {
            what: with_interval(row["share"], row["low"], row["high"]) for what, row in rows.items()
        }
        every = "both" if len(self.hops) == 2 else "all"
        hops = ", ".join(f"{share[form]} {form.replace('_', ' ')}s" for form in self.hops)
        short = [f"{shortcut_name(form)} {share[form]}" for form in self.shortcuts]
        alone = f"Shortcuts give the answer: {', '.join(short)}. Without them, " if short else ""
        return [
            f"Of {rows['correct']['n']} queries the model has {hops} and "
            f"{share[self.forms[0]]} compositions right; {every} single hops in "
            f"{share[f'{every}_hops']}.",
            f"{alone}{rows['correct']['right']} queries are answered (subset correct), and "
            f"{rows['incorrect']['right']} fail although {every} hops are known (subset "
            f"incorrect); whatever the shortcuts, {rows['inconsistent']['right']} do "
            "(subset inconsistent).",
        ]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the summary as bars."""
        from hopscope.experiments.two_hop import plots

        return plots.grading_bars(self.summary(), ax)


def shortcut_name(form: Form) -> str:
    """What a shortcut is called in a sentence."""
    words = form.replace("_", " ")
    return f"the question {words}" if words.startswith("without") else f"the {words}"


@analysis(
    "grade",
    title="What it gets right",
    question="Which hops, compositions and shortcuts does the model get right?",
    source="Hopping Too Late, section 3",
    control="both shortcuts",
    asks="queries",
    order=0,
    accepts={
        "queries": Queries(),
        "match": OneOf(MATCHES),
        "max_new_tokens": AtLeast(1),
        "relation_shortcut": OneOf(RELATION_SHORTCUTS),
        "one_line": Flag(optional=True),
    },
    parity={
        "match": "substring",
        "max_new_tokens": 10,
        "one_line": False,
        "relation_shortcut": "cut",
    },
)
def grade(
    model: LanguageModel,
    queries: QuerySet,
    *,
    match: Match = "word",
    max_new_tokens: int = 10,
    one_line: bool | None = None,
    relation_shortcut: RelationShortcut = "whole",
    **run: Unpack[RunKeywords],
) -> Grading:
    """Ask each query's single hops, all of them at once, and its shortcuts, greedily.

    Hopping Too Late, section 3. Of three and four hops the parts of the chain between are asked,
    too; `hopscope.queries.query.forms_of` names all forms. Prompts with the same demonstrations are
    one batch and share their keys and values.

    Args:
        model: the model.
        queries: what is asked.
        match: how an answer is recognised: as whole words, or (the paper) as a substring.
        max_new_tokens: how many tokens are generated.
        one_line: whether an answer is the first line only; if None, for few-shot prompts.
        relation_shortcut: the two-hop prompt without e1 as a `whole` question, or, as the authors'
            code has it, `cut` before its last four characters and without " is". Of two hops only.

    Returns:
        A `Grading`: `frame`, `summary()`, `correct()`, `incorrect()`, `inconsistent()`.

    Raises:
        UsageError: for an empty set, or a prompt that does not fit into the context.

    Example:
        >>> wrong = grade(model, load_queries("world").sample(200)).incorrect()  # doctest: +SKIP
    """
    settings = _settings(queries, match, max_new_tokens, one_line, relation_shortcut)
    return _grade(model, queries, settings, RunOptions(**run), PER_PART)


def grade_until(
    model: LanguageModel,
    queries: QuerySet,
    need: Mapping[str, int],
    at_least: int = PER_PART,
    *,
    match: Match = "word",
    max_new_tokens: int = 10,
    one_line: bool | None = None,
    relation_shortcut: RelationShortcut = "whole",
    **run: Unpack[RunKeywords],
) -> Grading:
    """Grade queries until there are enough of each subset, or these can hardly be found.

    Args:
        model: the model.
        queries: what is asked at most; a sample of `at_least` comes first, then the others.
        need: how many there shall be of the subsets `correct`, `incorrect` and `inconsistent`.
        at_least: how many are graded in any case.
        match, max_new_tokens, one_line, relation_shortcut: as for `grade`.
        **run: `seed`, of the sample and the order of the others, `progress`, `max_memory`, `out`,
            `on`.

    Returns:
        A `Grading` of the queries that were graded. The progress bar shows how many of each subset
        were found, and the chance that the queries that are left complete a subset; below 50 % for
        each that lacks some no more are graded, with a warning.

    Raises:
        UsageError: for an unknown subset or rule, a shard, an empty set, or a prompt that does
            not fit.

    Example:
        >>> graded = grade_until(model, load_queries("world"), {"incorrect": 16})  # doctest: +SKIP
    """
    asked: dict[str, Any] = {
        "match": match,
        "max_new_tokens": max_new_tokens,
        "one_line": one_line,
        "relation_shortcut": relation_shortcut,
    }
    here = {} if run.get("on") is not None else {"model": model}  # else it may be a name
    given = {**here, "queries": queries, **asked, **run}
    queries = REGISTERED["grading"].check(given, here.get("model"))["queries"]
    options = RunOptions(**run)
    InstanceOf(Mapping).checked("need", need, model)
    for subset, n in need.items():
        OneOf(SUBSETS).checked("subset", subset, model)
        AtLeast(0).checked(f"the need of {subset}", n, model)
    AtLeast(0).checked("at_least", at_least, model)
    if options.shard is not None:
        raise UsageError("grading until there are enough has no shards: grade all with grade()")
    if not len(queries):
        raise QueryError(f"{queries.name} is an empty query set: nothing to grade")
    ordered = _sample_first(queries, min(at_least, len(queries)), options.seed)
    wanted = {"need": dict(need), "at_least": at_least}
    settings = _settings(queries, match, max_new_tokens, one_line, relation_shortcut) | wanted

    def until(tables: Tables) -> str | None:
        found = Grading.of(tables, {}).counts()
        n, left = found["graded"], len(queries) - found["graded"]
        missing = [subset for subset in need if found[subset] < need[subset]]
        shown = ", ".join(f"{found[subset]} of {need[subset]} {subset}" for subset in need)
        chances = [chance_of_more(found[s], n, need[s] - found[s], left) for s in missing]
        chance = max(chances, default=1.0)
        if n < at_least or (missing and left and chance >= LEAST_CHANCE):
            return f"{shown}, chance {chance:.0%}"
        if missing and left:
            logger.warning(
                "%d queries are graded, with %s; the chance that the other %d complete a subset "
                "is %.0f %%, so that no more are graded",
                n,
                shown,
                left,
                100 * chance,
            )
        elif missing:
            logger.warning("all %d queries are graded, with %s", n, shown)
        return None

    given = {"model": model, "queries": queries, **wanted, **asked, **run}
    recipe = recipe_of("grade_until", __name__, given)
    if options.on is not None:
        return run_elsewhere(Grading, recipe, options, ordered)
    per_part = min(PER_PART, max(at_least, 32))
    with calling(), recording(None if options.out is None else recipe):
        return _grade(model, ordered, settings, options, per_part, until)


def needed(
    need: Mapping[str, int], limit: int | None, folder: Path | None = None
) -> dict[str, int]:
    """Until how many there are of each subset more than `limit` queries are graded.

    Args:
        need: how many are wanted of each.
        limit: how many queries are graded in any case; all if None.
        folder: of the grading; one that was begun with a fixed number there stays so.

    Returns:
        `need`, for `grade_until`; nothing if `grade` does.
    """
    begun = folder is not None and is_run(folder) and "need" not in read_run(folder)["settings"]
    return {} if begun or limit is None else {name: n for name, n in need.items() if n > 0}


def _settings(
    queries: QuerySet,
    match: Match,
    max_new_tokens: int,
    one_line: bool | None,
    relation_shortcut: RelationShortcut,
) -> dict[str, Any]:
    """What says how answers are made and recognised, for the run's record."""
    return {
        "match": match,
        "max_new_tokens": max_new_tokens,
        "one_line": reads_one_line(queries.few_shot, one_line),
        "relation_shortcut": relation_shortcut,
    }


def _sample_first(queries: QuerySet, n: int, seed: int) -> QuerySet:
    """All queries, those of `queries.sample(n, seed)` first, and then the others by chance."""
    first = list(queries.sample(n, seed))
    chosen = {query.id for query in first}
    others = [query for query in queries if query.id not in chosen]
    random.Random(seed).shuffle(others)
    return replace(queries, queries=(*first, *others))


def _grade(
    model: LanguageModel,
    queries: QuerySet,
    settings: Mapping[str, Any],
    options: RunOptions,
    per_part: int,
    until: Until | None = None,
) -> Grading:
    """Grade queries, part by part."""
    match, line = settings["match"], settings["one_line"]
    store = PrefixStore(model, most=64)

    def compute(part: QuerySet) -> Tables:
        generations = _generations(model, part, store, settings, options.max_memory)
        return {"frame": _verdicts(part, generations, match, line), "details": _answers(part)}

    graded = run_in_parts(
        Grading, model, queries, settings, compute, options, per_part=per_part, until=until
    )
    return replace(graded, queries=queries)


def _generations(
    model: LanguageModel,
    queries: QuerySet,
    store: PrefixStore,
    settings: Mapping[str, Any],
    max_memory: int | None,
) -> dict[tuple[str, Form], tuple[str, str]]:
    """Prompt and generation of each query and form."""
    n_new, cut = settings["max_new_tokens"], settings["relation_shortcut"] == "cut"
    written = {CUT: "relation_shortcut"} if cut and "relation_shortcut" in queries.forms else {}
    asked = [form for form in queries.forms if form not in written.values()] + list(written)
    prompts = [
        TokenizedPrompt.of(model, prompt, room=n_new)
        for form in asked
        for prompt in queries.prompts(form)
    ]
    stop = stop_at_line_end(model) if settings["one_line"] else None
    read_out = ReadOut(max_new_tokens=n_new, stop=stop)
    found: dict[tuple[str, Form], tuple[str, str]] = {}
    for group in divided(by_prefix(prompts, BATCH)):
        rows = [prompts[index] for index in group]
        shared = store.get(rows[0].shared)
        outputs = generate(
            model, [row.ids for row in rows], read_out, shared=shared, max_memory=max_memory
        )
        for row, tokens in zip(rows, outputs.tokens, strict=True):
            form = written.get(row.prompt.form, row.prompt.form)
            found[row.prompt.query_id, form] = question(row), model.decode(tokens)
    return found


def _verdicts(
    queries: QuerySet,
    generations: dict[tuple[str, Form], tuple[str, str]],
    match: Match,
    one_line: bool,
) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for query in queries:
        for form in query.forms:
            prompt, generation = generations[query.id, form]
            names = query.names(forms_of(query.n_hops)[form].answer)
            rows.append(
                {
                    "query": query.id,
                    "form": form,
                    "prompt": prompt,
                    "generation": generation,
                    "correct": matches(answer_text(generation, one_line), names, match),
                }
            )
    return pd.DataFrame(rows)


def _answers(queries: QuerySet) -> pd.DataFrame:
    rows = [(query.id, query.labels[0], bridges_of(query), query.labels[-1]) for query in queries]
    return pd.DataFrame(rows, columns=["query", "source", "bridge", "answer"])
