"""Entity description: what a hidden state names when it is put into a prompt that asks for it.

Patchscopes (Ghandeharioun et al. 2024), as Hopping Too Late (Biran et al. 2024), section 4, uses
it: `resid_post[source]` at t1 or t2 replaces the output of block `target` at the placeholder of
another prompt. Beside it stands how often the names of another query's entities come up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Unpack, get_args

import pandas as pd
import torch
from torch import Tensor

from hopscope.display.progress import divided
from hopscope.engine.cache import Prefix
from hopscope.engine.clean_run import CleanRun, clean_run
from hopscope.engine.edits import Cell, Patch
from hopscope.engine.read_out import ReadOut
from hopscope.engine.sampling import Sampling
from hopscope.errors import UsageError, one_of
from hopscope.experiments.analysis import RunKeywords, RunOptions, analysis, run_in_parts
from hopscope.experiments.arguments import AtLeast, Layers, ListOf, OneOf, Queries
from hopscope.experiments.randomness import generator_for
from hopscope.experiments.two_hop.chains import ENDS, bridges_of, positions_of
from hopscope.experiments.two_hop.controls import choose_others, fingerprint
from hopscope.models.language_model import LanguageModel
from hopscope.models.token_model import TokenModel
from hopscope.prompting.query_prompts import QueryPrompts, question
from hopscope.queries.answers import MATCHES, Match, delimited, matches
from hopscope.queries.query import ENTITIES, Query
from hopscope.queries.query_set import QuerySet
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.wording import (
    entity_name,
    layer_in_words,
    row_where,
    verdict,
    with_interval,
)
from hopscope.statistics import first_layer_shares, paired_intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hopscope.display.grid import Grid

PROMPTS = {
    "description": (
        "Syria: Country in the Middle East, Leonardo DiCaprio: American actor, "
        "Samsung: South Korean multinational major appliance and consumer electronics "
        "corporation, x"
    ),
    "identity": "cat->cat; 135->135; hello->hello; ?",
    "sentences": (
        "Syria: Syria is a country in the Middle East, Leonardo DiCaprio: Leonardo DiCaprio is an "
        "American actor, Samsung: Samsung is a South Korean multinational corporation, x"
    ),
}
"""Target prompts of Patchscopes, and the `sentences` of Hopping Too Late; the placeholder is the
last token."""

CONTROLS = tuple(f"{entity}_other" for entity in ENTITIES[1:])
Naming = Literal["anywhere", "delimited"]
NAMINGS = get_args(Naming)
Drawing = Literal["model", "checkpoint"]
DRAWINGS = get_args(Drawing)
PER_PART = 2


@dataclass(frozen=True, repr=False)
class Description(Result):
    """What the states of each query were described as.

    `frame` has one row a query, target prompt, position, sample and cell: `source_layer`,
    `target_layer` (0-based blocks whose outputs are read and replaced); whether the text names
    `e1`, `e2`, `e3`; as chance levels `e2_other`, `e3_other`, the bridge and answer of another
    query; and the `generation`; of more hops also `e4`, `e5` and their controls. Sample 0 of a
    greedy run is greedy. `details` has one row a query and position.
    """

    kind = "description"
    added_settings: ClassVar = {"naming": "anywhere", "sampling": "model"}
    columns: ClassVar = {
        "query": "str",
        "prompt": "str",
        "position": "str",
        "sample": "int64",
        "source_layer": "int64",
        "target_layer": "int64",
        **dict.fromkeys(ENTITIES[:3], "bool"),
        **dict.fromkeys(CONTROLS[:2], "boolean"),
        "generation": "str",
    }
    further: ClassVar = dict.fromkeys((*ENTITIES[3:], *CONTROLS[2:]))

    @property
    def entities(self) -> list[str]:
        """The entities of the queries that are looked for."""
        return [entity for entity in ENTITIES if entity in self.frame]

    def described(self, seed: int = 0) -> pd.DataFrame:
        """Share of queries with some cell that names an entity, beside another query's entity.

        Returns:
            Columns `prompt, position, entity, n, share, low, high, mean_first_layer`, the mean
            over queries of the first source layer of a hit.
        """
        return first_layer_shares(self._first(), ["prompt", "position", "entity"], seed)

    def above_chance(self, seed: int = 0) -> pd.DataFrame:
        """How much oftener the query's own entity is named than another one's, query by query.

        Returns:
            Columns `prompt, position, entity, n, difference, low, high`: share of queries with
            some cell that names it, less that of the control; exact paired intervals, see
            `hopscope.statistics.share_difference`.
        """
        first = self._first()
        found = first.assign(found=first["first_layer"].notna()).pivot_table(
            index=["prompt", "position", "query"],
            columns="entity",
            values="found",
            aggfunc="any",
            sort=False,
        )
        wanted = [*self.entities, *(f"{entity}_other" for entity in self.entities[1:])]
        found = found.reindex(columns=wanted).reset_index()
        keys = ["prompt", "position", "entity"]
        tables = [
            paired_intervals(found.assign(entity=each), keys, f"{each}_other", each, seed)
            for each in self.entities[1:]
        ]
        return pd.concat(tables, ignore_index=True)

    def shares(self) -> pd.DataFrame:
        """Share of cells whose text names each entity, or none of the query's (`other`).

        Returns:
            Columns `prompt, position, e1, e2, e3, other`; one text may name several.
        """
        keys = ["prompt", "position"]
        entities = self.entities
        table = self.frame.assign(other=~self.frame[entities].any(axis=1))
        return table.groupby(keys, sort=False)[[*entities, "other"]].mean().reset_index()

    def first_layers(
        self, entity: str, position: str = "t1", prompt: str | None = None
    ) -> pd.Series[float]:
        """For each query the first source layer that is described as an entity; NaN if none."""
        chosen = self.rows_with(self._first(), position=position, prompt=prompt, entity=entity)
        return chosen.set_index("query")["first_layer"]

    def heatmap(
        self, entity: str = "e2", position: str | None = None, prompt: str | None = None
    ) -> pd.DataFrame:
        """Share of texts that name an entity; rows target, columns source layer.

        Args:
            entity: such as `e2`, or its control `e2_other`.
            position: the first one of the run if None.
            prompt: the first one of the run if None.
        """
        one_of("entity", entity, self._named)
        chosen = self.rows_with(self.frame, position=position, prompt=prompt)
        return chosen.pivot_table(
            index="target_layer", columns="source_layer", values=entity, aggfunc="mean"
        )

    def tables(self) -> dict[str, pd.DataFrame]:
        return dict(self.printed())

    def printed(self, seed: int = 0) -> dict[str, pd.DataFrame]:
        return {
            "described": self.described(seed),
            "above_chance": self.above_chance(seed),
            "shares": self.shares(),
        }

    def findings(self) -> list[str]:
        described, gains = self.described(), self.above_chance()
        sentences = []
        for entity, position in self.places():
            row = row_where(described, entity=entity, position=position)
            if row is None:
                continue
            name = f"the {entity_name(entity, len(self.entities) - 1)}"
            sentence = (
                f"{name} is described at {position} in some cell for "
                f"{with_interval(row['share'], row['low'], row['high'])} of the queries"
            )
            if row["share"] > 0:
                sentence += f", first from {layer_in_words(row['mean_first_layer'])} on average"
            other = row_where(described, entity=f"{entity}_other", position=position)
            gain = row_where(gains, entity=entity, position=position)
            if other is not None and gain is not None:
                chance = with_interval(other["share"], other["low"], other["high"])
                sentence += f"; another query's for {chance}: {verdict(gain)}"
            sentences.append(f"{sentence}.")
        return sentences

    def places(self) -> Iterator[tuple[str, str]]:
        """What tells most: each bridge at its hop and at the end, and the answer at the end.

        Yields:
            Entity and position.
        """
        *bridges, answer = self.entities[1:]
        last, there = f"t{len(bridges) + 1}", set(self.frame["position"])
        for hop, bridge in enumerate(bridges, start=1):
            yield from ((bridge, each) for each in (f"t{hop}", last) if each in there)
        if last in there:
            yield answer, last

    def grid(self) -> Grid | None:
        """What the interactive heatmap shows."""
        from hopscope.experiments.two_hop.grids import DescriptionGrid

        return DescriptionGrid(self)

    def plot(
        self,
        entity: str = "e2",
        position: str | None = None,
        prompt: str | None = None,
        ax: Axes | None = None,
    ) -> Axes:
        """Draw the source × target heatmap of one entity at one position."""
        from hopscope.plots import heatmaps

        label, where = "texts that name it", self.in_run("position", position)
        table = self.heatmap(entity, where, prompt)
        return heatmaps.layer_heatmap(table, ax, f"{entity} described at {where}", label=label)

    @property
    def _named(self) -> list[str]:
        """The columns that say whether a text names an entity."""
        return [each for each in (*ENTITIES, *CONTROLS) if each in self.frame]

    def _first(self) -> pd.DataFrame:
        keys = ["query", "prompt", "position"]
        tables = []
        for entity in self._named:
            named = self.frame[entity].fillna(False).astype(bool)
            table = self.frame[keys].assign(first_layer=self.frame["source_layer"].where(named))
            known = self.frame[entity].notna()
            first = table[known].groupby(keys, sort=False)["first_layer"].min().reset_index()
            tables.append(first.assign(entity=entity))
        return pd.concat(tables, ignore_index=True)


@dataclass(frozen=True)
class TargetPrompts:
    """Target prompts by name, as texts; the placeholder is the last token of each.

    Attributes:
        known: the names.
    """

    known: Sequence[str] = tuple(PROMPTS)

    def checked(
        self, name: str, value: Sequence[str] | Mapping[str, str], model: TokenModel | None
    ) -> Mapping[str, str]:
        """The texts by name."""
        if isinstance(value, Mapping):
            if not value or not all(isinstance(e, str) and e.strip() for e in value.values()):
                raise UsageError("give at least one target prompt, each with some text")
            return dict(value)
        return {each: PROMPTS[each] for each in ListOf(tuple(PROMPTS)).checked(name, value, model)}


@analysis(
    "describe",
    title="Entity description",
    question="Which entity is in a hidden state, by the model's own description?",
    source="Patchscopes; Hopping Too Late, section 4",
    control="another query's bridge and answer",
    subsets=("incorrect", "correct"),
    order=20,
    accepts={
        "queries": Queries(),
        "positions": ListOf(ENDS, optional=True),
        "prompts": TargetPrompts(),
        "source_layers": Layers(),
        "target_layers": Layers(),
        "samples": AtLeast(0),
        "max_new_tokens": AtLeast(1),
        "match": OneOf(MATCHES),
        "naming": OneOf(NAMINGS),
        "sampling": OneOf(DRAWINGS),
    },
    parity={
        "prompts": ("sentences",),
        "samples": 3,
        "max_new_tokens": 10,
        "match": "substring",
        "naming": "delimited",
        "sampling": "checkpoint",
    },
    layers=lambda layers: {"source_layers": layers, "target_layers": layers},
    grades=("match",),
)
def describe(
    model: LanguageModel,
    queries: QuerySet,
    positions: Sequence[str] | None = None,
    prompts: Sequence[str] | Mapping[str, str] = ("description",),
    source_layers: Iterable[int] | None = None,
    target_layers: Iterable[int] | None = None,
    samples: int = 0,
    max_new_tokens: int = 10,
    match: Match = "word",
    *,
    naming: Naming = "anywhere",
    sampling: Drawing = "model",
    **run: Unpack[RunKeywords],
) -> Description:
    """Patch hidden states into a prompt that asks what `x` is, and let the model describe them.

    For each query, position and cell: the clean `resid_post[source]` replaces the output of block
    `target` at the last token of the target prompt while that is read; then the model goes on.
    All queries share the target prompt, whose keys and values are computed once.

    Args:
        model: the model.
        queries: any; usually `graded.correct()` or `graded.incorrect()`.
        positions: any of `t1`, `t2`, …, the ends of the hops' phrases, and `e1`; the end of each
            hop if None.
        prompts: `description`, `identity` and `sentences` (those of the paper's code), or texts of
            your own by name, the placeholder last.
        source_layers: blocks whose outputs are read; all if None.
        target_layers: blocks whose outputs are replaced; all if None.
        samples: texts that are drawn for each cell; 0 for a greedy one. The paper draws three.
        max_new_tokens: how many tokens to generate.
        match: how a name is recognised: as whole words, or (the paper) as a substring.
        naming: where in a text a name counts: `anywhere`, or, as the paper's code has it,
            `delimited`: as a substring between the marks of "Name: description", and for one
            entity alone, e1 before e2 before e3; see `hopscope.queries.answers.delimited`.
        sampling: samples are drawn from all that the `model` says, or, as the paper's code has it,
            with the temperature, top-p and top-k of the `checkpoint`; see
            `hopscope.engine.sampling.Sampling.of_checkpoint`.

    Raises:
        UsageError: for an empty set, an unknown position, prompt or layer, or delimited names that
            are matched as words.

    Example:
        >>> describe(model, graded.correct()).described()  # doctest: +SKIP
    """
    assert isinstance(prompts, Mapping)  # `accepts` has looked up the names
    if naming == "delimited" and match != "substring":
        raise UsageError("naming='delimited' is a rule of substrings: give match='substring', too")
    options = RunOptions(**run)
    drawn_as = Sampling.of_checkpoint(model) if sampling == "checkpoint" else Sampling()
    others = choose_others(queries, options.seed)
    settings = {
        "positions": positions_of(queries, positions),
        "prompts": prompts,
        "source_layers": source_layers,
        "target_layers": target_layers,
        "samples": samples,
        "max_new_tokens": max_new_tokens,
        "match": match,
        "naming": naming,
        "sampling": asdict(drawn_as) if sampling == "checkpoint" else sampling,
        "seed": options.seed,
        "others": fingerprint(others),
    }
    describer = _Describer(
        QueryPrompts.of(model, queries, max_memory=options.max_memory),
        {name: _Target.of(model, text, max_new_tokens) for name, text in prompts.items()},
        others,
        settings,
        drawn_as,
    )
    return run_in_parts(
        Description, model, queries, settings, describer.tables, options, per_part=PER_PART
    )


@dataclass(frozen=True)
class _Target:
    """A target prompt with its keys and values."""

    ids: tuple[int, ...]
    clean: CleanRun

    @classmethod
    def of(cls, model: LanguageModel, text: str, room: int) -> _Target:
        ids = model.encode(text, room).ids
        return cls(ids, clean_run(model, ids, Prefix()))


@dataclass(frozen=True)
class _Describer:
    """Describes the states of some queries at once."""

    prompts: QueryPrompts
    targets: Mapping[str, _Target]
    others: Mapping[str, Query]
    settings: Mapping[str, Any]
    sampling: Sampling

    def tables(self, queries: QuerySet) -> Tables:
        """Frame and details of some queries."""
        vectors, details = {}, []
        for query in queries:
            prompt = self.prompts.prompt(query)
            clean = self.prompts.clean(prompt)
            for position in self.settings["positions"]:
                at = prompt.position(position)
                vectors[query.id, position] = clean.state(at)
                details.append(
                    {
                        "query": query.id,
                        "position": position,
                        "question": question(prompt),
                        "token": self.prompts.model.decode([prompt.ids[at]]),
                        "source": query.labels[0],
                        "bridge": bridges_of(query),
                        "answer": query.labels[-1],
                        "other": self._other(query.id),
                    }
                )
        frames = [
            self._described(queries, vectors, name, self.targets[name])
            for name in divided(list(self.targets))
        ]
        return {"frame": Description.joined(frames), "details": pd.DataFrame(details)}

    def _other(self, query_id: str) -> str | None:
        other = self.others.get(query_id)
        return None if other is None else other.id

    def _described(
        self,
        queries: QuerySet,
        vectors: Mapping[tuple[str, str], Tensor],
        name: str,
        target: _Target,
    ) -> pd.DataFrame:
        sources, targets = self.settings["source_layers"], self.settings["target_layers"]
        samples = range(max(1, self.settings["samples"]))
        cells: list[Cell] = [
            [Patch(b, -1, states[a])]
            for states in vectors.values()
            for _ in samples
            for a in sources
            for b in targets
        ]
        read_out = ReadOut(
            max_new_tokens=self.settings["max_new_tokens"],
            draws=self._draws(vectors, name),
            sampling=self.sampling,
        )
        outputs = self.prompts.sweep(target.ids, cells, read_out, target.clean)
        texts = [self.prompts.model.decode(tokens) for tokens in outputs.tokens]
        keys = [(*key, sample) for key in vectors for sample in samples]
        each = len(sources) * len(targets)
        frames = []
        for index, (query_id, position, sample) in enumerate(keys):
            of_key = texts[index * each : (index + 1) * each]
            query = queries.by_id(query_id)
            frames.append(self._frame(query, of_key, name, position, sample))
        return pd.concat(frames, ignore_index=True)

    def _frame(
        self, query: Query, texts: Sequence[str], prompt: str, position: str, sample: int
    ) -> pd.DataFrame:
        """One row a cell: the text it gives, and which entities that names."""
        sources, targets = self.settings["source_layers"], self.settings["target_layers"]
        return pd.DataFrame(
            {
                "query": query.id,
                "prompt": prompt,
                "position": position,
                "sample": sample,
                "source_layer": [a for a in sources for _ in targets],
                "target_layer": [b for _ in sources for b in targets],
                **self._named(query, texts),
                "generation": texts,
            }
        )

    def _draws(self, vectors: Mapping[tuple[str, str], Tensor], name: str) -> Tensor | None:
        """Numbers that depend on nothing but the seed, the query, the prompt and the position."""
        samples, tokens = self.settings["samples"], self.settings["max_new_tokens"]
        if not samples:
            return None
        each = samples * len(self.settings["source_layers"]) * len(self.settings["target_layers"])
        drawn = []
        for key in vectors:
            generator = generator_for(self.settings["seed"], name, *key)
            drawn.append(torch.rand(each, tokens, generator=generator))
        return torch.cat(drawn)

    def _named(self, query: Query, texts: Sequence[str]) -> dict[str, pd.Series[Any]]:
        """Which entities each text names; missing for the controls of a query without another."""
        other, entities = self.others.get(query.id), query.entities
        names = {entity: query.names(entity) for entity in entities}
        controls = [f"{entity}_other" for entity in entities[1:]]
        distinct = list(dict.fromkeys(texts))
        verdicts = {text: self._entities_in(text, names) for text in distinct}
        if other is not None:
            theirs = {"e1": names["e1"]}
            theirs |= {f"{entity}_other": other.names(entity) for entity in entities[1:]}
            verdicts = {
                text: {**self._entities_in(text, theirs), **found}
                for text, found in verdicts.items()
            }
        return {
            entity: pd.Series(
                [verdicts[text].get(entity) for text in texts],
                dtype="bool" if entity in entities else "boolean",
            )
            for entity in (*entities, *controls)
        }

    def _entities_in(self, text: str, names: Mapping[str, Sequence[str]]) -> dict[str, bool]:
        """Which entities a text names; where names are delimited, the first one alone."""
        if self.settings["naming"] == "anywhere":
            match = self.settings["match"]
            return {entity: matches(text, each, match) for entity, each in names.items()}
        first = next((entity for entity, each in names.items() if delimited(text, each)), None)
        return {entity: entity == first for entity in names}
