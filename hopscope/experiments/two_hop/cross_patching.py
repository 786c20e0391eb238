"""Cross-patching: put a state into another prompt, or another layer of the same one.

The state of t1 at the placeholder of r2(x), and that of a relation in "the x of r1(e1)", as in the
code of Hopping Too Late (Biran et al. 2024) after Patchscopes (Ghandeharioun et al. 2024); and the
interchange of an entity's or a relation's state with that of another query over all pairs of
layers (CaKE, Yao et al. 2025). Beside each stands the same cell with a state from yet another
query, and with a random one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, ClassVar, Literal, Unpack

from torch import Tensor

from hopscope.display.progress import divided
from hopscope.engine.clean_run import CleanRun
from hopscope.errors import QueryError, UsageError, one_of
from hopscope.experiments.analysis import RunKeywords, RunOptions, analysis, run_in_parts
from hopscope.experiments.arguments import AtLeast, Flag, Layers, ListOf, OneOf
from hopscope.experiments.randomness import random_like
from hopscope.experiments.two_hop.back_patching import (
    CONTROLS,
    CRITERIA,
    BackPatching,
    CellPatcher,
    Criterion,
    Vectors,
    cell_settings,
)
from hopscope.experiments.two_hop.controls import Donor, choose_donors, first_relation
from hopscope.experiments.two_hop.partners import (
    OTHER_FIRST_RELATION,
    OTHER_SECOND_RELATION,
    OTHER_SOURCE,
    Pair,
    fingerprint,
    pair_up,
)
from hopscope.models.language_model import LanguageModel
from hopscope.models.token_model import TokenModel
from hopscope.prompting.query_prompts import QueryPrompts, question
from hopscope.prompting.tokenized import TokenizedPrompt
from hopscope.queries.answers import MATCHES, Match
from hopscope.queries.prompts import Prompt
from hopscope.queries.query import Form, Query, Span, relation_only
from hopscope.queries.query_set import QuerySet
from hopscope.queries.two_hop_query import FORMS

Placeholder = Literal["", "e1", "e2", "r2"]
PLACEHOLDERS: tuple[Placeholder, ...] = ("", "e1", "e2", "r2")
POSITIONS = ("e1", "e2", "r1", "r2", "t1", "t2")
PARTNERS = {
    "own": None,
    "source": OTHER_SOURCE,
    "first relation": OTHER_FIRST_RELATION,
    "second relation": OTHER_SECOND_RELATION,
}
"""Whose state is read: the query's own, or that of a partner which differs in this."""
X = "x"
PER_PART = 2


@dataclass(frozen=True)
class Place:
    """A token of one prompt of a query.

    Attributes:
        form: of the prompt, such as `two_hop` or `second_hop`.
        position: `e1`, `e2` (last tokens of entities), `r1`, `r2` (last tokens of the noun of a
            relation, such as "capital"), `t1` or `t2`.
        placeholder: the entity in whose place "x" stands; `r2` for "the x of r1(e1)".

    Raises:
        UsageError: for an unknown form, position or placeholder.
    """

    form: Form
    position: str
    placeholder: Placeholder = ""

    def __post_init__(self) -> None:
        one_of("form", self.form, FORMS)
        one_of("position", self.position, POSITIONS)
        one_of("placeholder", self.placeholder, PLACEHOLDERS)

    def prompt(self, base: Prompt, query: Query) -> Prompt:
        """The prompt of a query with what stands before and after the question of another one."""
        if self.placeholder == "r2":
            query = replace(query, r2_template=f"the {X} of {{}}", r2_ending=" is")
        elif self.placeholder == "e1":
            query = replace(query, e1_label=X)
        elif self.placeholder == "e2":
            query = replace(query, e2_label=X)
        prompt = base.with_question(query)
        return replace(prompt, spans={**_relation_spans(prompt, query), **prompt.spans})


@dataclass(frozen=True)
class Route:
    """From where to where a state goes.

    Attributes:
        source: where it is read.
        target: where it is written: into the query's own prompt.
        whose: whose prompt is read, and whose answer is expected: `own`, or that of a partner,
            which asks the same with another source entity (`source`), another first relation
            (`first relation`), or of the same bridge another second relation (`second relation`).

    Raises:
        UsageError: for an unknown partner.

    Example:
        >>> Route(Place("two_hop", "t1"), Place("second_hop", "e2", placeholder="e2")).whose
        'own'
    """

    source: Place
    target: Place
    whose: str = "own"

    def __post_init__(self) -> None:
        one_of("whose", self.whose, PARTNERS)

    @property
    def places(self) -> tuple[Place, Place]:
        """Where it begins and ends."""
        return self.source, self.target

    def donors(self, queries: QuerySet, seed: int) -> dict[str, Donor]:
        """Who lends its states to the control: of a relation's state, who asks another one."""
        if self.source.position == "r1":
            return choose_donors(queries, seed, first_relation, same=False)
        return choose_donors(queries, seed, same=self.source.position != "r2")

    @property
    def record(self) -> dict[str, Any]:
        """What a run's record says of it."""
        source, target = ([p.form, p.position, p.placeholder] for p in self.places)
        return {"source": source, "target": target, "whose": self.whose}


ROUTES: Mapping[str, Route] = {
    "t1->r2(x)": Route(Place("two_hop", "t1"), Place("second_hop", "e2", "e2")),
    "t1->r2(r1(x))": Route(Place("two_hop", "t1"), Place("two_hop", "e1", "e1")),
    "r2->x(r1(e1))": Route(Place("two_hop", "r2"), Place("two_hop", "r2", "r2")),
    "e1<->e1": Route(Place("two_hop", "e1"), Place("two_hop", "e1"), "source"),
    "r1<->r1": Route(Place("two_hop", "r1"), Place("two_hop", "r1"), "first relation"),
    "r2<->r2": Route(Place("two_hop", "r2"), Place("two_hop", "r2"), "second relation"),
    "other e2->t2": Route(Place("second_hop", "e2"), Place("two_hop", "t2"), "source"),
    "other r2->t2": Route(Place("second_hop", "r2"), Place("two_hop", "t2"), "second relation"),
}
"""The routes of the papers: the first three of Hopping Too Late, the others of CaKE."""
OF_HOPPING = ("t1->r2(x)", "t1->r2(r1(x))", "r2->x(r1(e1))")


class CrossPatching(BackPatching):
    """What each cross-patched cell made the model say.

    As a `BackPatching`, with the route in the column `position`, and all pairs of layers. `hit`,
    the ranks and the log-probabilities are of the answer and the bridge that the state should
    bring: the query's own, or those of its partner. `details` has also the prompt that the state
    was read from, `source_prompt`, and the query that it belongs to, `partner`.
    """

    kind = "cross_patching"
    what: ClassVar = "queries in which some cell of cross-patching brings the expected answer"
    found: ClassVar = "by {} some cell brings the expected answer for"


@dataclass(frozen=True)
class Routes:
    """Routes by name.

    Attributes:
        known: the names.
    """

    known: Sequence[str] = tuple(ROUTES)

    def checked(
        self, name: str, value: Sequence[str] | Mapping[str, Route], model: TokenModel | None
    ) -> Mapping[str, Route]:
        """The routes by name."""
        if not isinstance(value, Mapping):
            return {
                each: ROUTES[each] for each in ListOf(tuple(ROUTES)).checked(name, value, model)
            }
        wrong = next((each for each in value.values() if not isinstance(each, Route)), None)
        if wrong is not None or not value:
            raise UsageError(
                f"routes are names, or hs.Route(source, target) by names of your own, not {wrong!r}"
                if value
                else "give at least one route"
            )
        return dict(value)


@analysis(
    "cross-patch",
    title="Cross-patching",
    question="What does a state bring along into another prompt or layer?",
    source="Hopping Too Late; Patchscopes; CaKE",
    control="another query's state, and a random vector of the same norm, in the same cells",
    order=15,
    accepts={
        "routes": Routes(),
        "controls": ListOf(CONTROLS, empty=True),
        "source_layers": Layers(),
        "target_layers": Layers(),
        "criterion": OneOf(CRITERIA),
        "max_new_tokens": AtLeast(1),
        "stop_early": Flag(),
        "one_line": Flag(optional=True),
        "match": OneOf(MATCHES),
    },
    layers=lambda layers: {"source_layers": layers, "target_layers": layers},
    parity={"routes": OF_HOPPING, "match": "substring", "stop_early": False},
    grades=("match", "max_new_tokens"),
)
def cross_patch(
    model: LanguageModel,
    queries: QuerySet,
    routes: Sequence[str] | Mapping[str, Route] = ("t1->r2(x)", "e1<->e1"),
    controls: Sequence[str] = ("other", "random"),
    source_layers: Iterable[int] | None = None,
    target_layers: Iterable[int] | None = None,
    criterion: Criterion = "generation",
    max_new_tokens: int = 10,
    match: Match = "word",
    stop_early: bool = True,
    *,
    one_line: bool | None = None,
    **run: Unpack[RunKeywords],
) -> CrossPatching:
    """Put a state of one prompt into another prompt, from any layer into any, and let it answer.

    For each query, route and cell (a, b): the clean `resid_post[a]` at the source replaces the
    output of block b at the target while that prompt is read; then the model answers greedily.

    Args:
        model: the model.
        queries: usually `graded.correct()`; partners come from the set it was chosen from.
        routes: any of `t1->r2(x)`, `t1->r2(r1(x))`, `r2->x(r1(e1))`, `e1<->e1`, `r1<->r1`,
            `r2<->r2`, `other e2->t2`, `other r2->t2`, or `hs.Route` by names of your own.
        controls: any of `other`, `random`; () for none.
        source_layers: blocks whose outputs are read; all if None.
        target_layers: blocks whose outputs are replaced; all if None.
        criterion: `generation`: the answer is in the generated text; `first_token`: a first
            token of the answer is the likeliest next token, nothing more is generated.
        max_new_tokens: how many tokens to generate.
        match: how an answer is recognised: as whole words, or (the papers) as a substring.
        stop_early: stop a cell when its line ends (few-shot) or its answer is certain.
        one_line: whether an answer is the first line only; if None, for few-shot prompts.

    Raises:
        UsageError: for an empty set, an unknown route, control, criterion or layer, or if no
            query has a partner for a route.

    Example:
        >>> cross_patch(model, graded.correct()).success_rate()  # doctest: +SKIP
    """
    assert isinstance(routes, Mapping)  # `accepts` has looked up the names
    options = RunOptions(**run)
    alike = {route.whose: PARTNERS[route.whose] for route in routes.values()}
    pairs = {
        whose: {} if each is None else pair_up(model, queries, options.seed, each)
        for whose, each in alike.items()
    }
    kept = queries.filter(
        lambda query: all(query.id in pairs[name] for name, each in alike.items() if each)
    )
    if len(queries) and not len(kept):
        raise QueryError(
            f"no query of {queries.name} has a partner for each of the routes "
            f"{', '.join(routes)}; run one alone, or give a larger set"
        )
    bound = {
        name: _Bound.of(route, kept, pairs[route.whose], options.seed, "other" in controls)
        for name, route in routes.items()
    }
    others = (query for each in bound.values() for query in each.asked.values())
    asking = replace(queries, queries=tuple({q.id: q for q in (*kept, *others)}.values()))
    forms = dict.fromkeys(place.form for each in routes.values() for place in each.places)
    settings = {
        "routes": {name: route.record for name, route in routes.items()},
        "source_layers": source_layers,
        "target_layers": target_layers,
        **cell_settings(
            queries, controls, criterion, max_new_tokens, match, stop_early, one_line, options
        ),
        "partners": {whose: fingerprint(each) for whose, each in pairs.items() if each},
    }
    room = settings["max_new_tokens"]
    patcher = _CrossPatcher(
        list(product(source_layers or (), target_layers or ())),
        settings,
        bound,
        {form: QueryPrompts.of(model, asking, room, form, options.max_memory) for form in forms},
    )
    return run_in_parts(
        CrossPatching, model, kept, settings, patcher.tables, options, per_part=PER_PART
    )


@dataclass(frozen=True)
class _Bound:
    """A route, with whose states go along it.

    Attributes:
        route: the route.
        asked: by query id, the query whose state is read and whose answer is expected.
        donors: who lends states to the control `other`, by the id of the query that is asked.
    """

    route: Route
    asked: Mapping[str, Query]
    donors: Mapping[str, Donor]

    @classmethod
    def of(
        cls, route: Route, queries: QuerySet, pairs: Mapping[str, Pair], seed: int, lent: bool
    ) -> _Bound:
        """A route for some queries and their partners; own states if there are no partners."""
        asked = {q.id: pairs[q.id].partner if pairs else q for q in queries}
        lending = replace(queries, queries=tuple({q.id: q for q in asked.values()}.values()))
        return cls(route, asked, route.donors(lending, seed) if lent else {})


@dataclass(frozen=True)
class _CrossPatcher(CellPatcher):
    """Puts states into the prompts of one query after the other.

    Attributes:
        routes: from where to where, by name.
        prompts: of all queries, by form.
    """

    routes: Mapping[str, _Bound]
    prompts: Mapping[str, QueryPrompts]

    def vectors(self, query: Query) -> Iterator[tuple[str, QueryPrompts, Vectors]]:
        runs: dict[tuple[int, ...], CleanRun] = {}  # several routes read or write one prompt

        def clean(place: Place, prompt: TokenizedPrompt) -> CleanRun:
            if prompt.ids not in runs:
                runs[prompt.ids] = self.prompts[place.form].clean(prompt)
            return runs[prompt.ids]

        def state(place: Place, prompt: TokenizedPrompt) -> Tensor:
            return clean(place, prompt).state(prompt.position(place.position))

        for name in divided(list(self.routes)):
            bound = self.routes[name]
            route, asked = bound.route, bound.asked[query.id]
            donor = bound.donors.get(asked.id)
            source = self._tokenized(route.source, query, asked)
            target = self._tokenized(route.target, query, query)
            states = {"none": state(route.source, source)}
            if donor is not None:
                lent = self._tokenized(route.source, donor.query, donor.query)
                states["other"] = state(route.source, lent)
            if "random" in self.settings["controls"]:
                seed = self.settings["seed"]
                states["random"] = random_like(states["none"], seed, query.id, name)
            token = target.position(route.target.position)
            told = {"token": token, "source_prompt": question(source), "partner": asked.id}
            run = clean(route.target, target)
            given = Vectors(target, run, token, states, asked, donor, told)
            yield name, self.prompts[route.target.form], given

    def _tokenized(self, place: Place, of: Query, asked: Query) -> TokenizedPrompt:
        """The prompt that asks for one query after the demonstrations of another."""
        prompts = self.prompts[place.form]
        prompt = place.prompt(prompts.by_query[of.id], asked)
        return TokenizedPrompt.of(prompts.model, prompt, prompts.room)


def _relation_spans(prompt: Prompt, query: Query) -> dict[str, Span]:
    """The spans of the nouns of the relations that a prompt has, as `r1` and `r2`."""
    start, spans = prompt.few_shot, {}
    argument = query.label("e2") if prompt.form == "second_hop" else query.label("e1")
    if "r1e1" in prompt.spans:
        phrase = prompt.spans["r1e1"]
        spans["r1"] = _noun(query.template("r1"), query.label("e1"), phrase[0])
        argument = prompt.text[slice(*phrase)]
    if prompt.form != "first_hop":
        spans["r2"] = _noun(query.template("r2"), argument, start)
    return spans


def _noun(template: str, argument: str, start: int) -> Span:
    """The last word of a relation without its argument, in a template that stands at `start`.

    Example:
        >>> _noun("the capital of {}", "France", 0), _noun("{}'s mother", "Ann", 5)
        ((4, 11), (11, 17))
    """
    word = relation_only(template).split()[-1]
    found = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", template)
    at = template.index(word) if found is None else found.start()
    if at > template.index("{}"):
        at += len(argument) - len("{}")
    return start + at, start + at + len(word)
