"""Probing: from which layer on can the bridge be read off t1 by a linear map.

Alain and Bengio 2016, with what makes it mean something: a control task (Hewitt and Liang 2019),
and folds that keep a source entity's questions together, so that the probe is asked about
entities it has not seen.
"""

from __future__ import annotations

import logging
import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

import pandas as pd
import torch
from torch import Tensor

from hopscope.errors import QueryError, one_of
from hopscope.experiments.analysis import RunKeywords, RunOptions, Scale, analysis
from hopscope.experiments.arguments import Above, AtLeast, Layers, OneOf, Queries
from hopscope.experiments.registry import REGISTERED
from hopscope.experiments.two_hop.chains import ENDS, positions_of
from hopscope.models.language_model import LanguageModel
from hopscope.probes import LinearProbe, cross_validate, selectivity
from hopscope.prompting.capture import capture
from hopscope.queries.answers import normalise
from hopscope.queries.query import ENTITIES, Query
from hopscope.queries.query_set import QuerySet
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.run_record import provenance
from hopscope.results.runs import run_once
from hopscope.results.wording import percent, row_where, rows_where, with_interval
from hopscope.statistics import wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)

TARGETS = tuple(name for entity in ENTITIES[1:-1] for name in (entity, f"{entity}_type"))
FOLDS = 5


@dataclass(frozen=True, repr=False)
class Probing(Result):
    """How well a linear probe reads the bridge, by layer.

    `frame` has one row a measure and layer: `what`, `layer`, `score`, `n` (source entities). What:
    `accuracy` (new questions, about entities that the probe has seen), `control` (the same with
    labels drawn at random for each entity), `new_entities` (questions about entities that it has
    not seen), `majority` (the largest class). `details` has one row a query that was used.
    """

    kind = "probing"
    columns: ClassVar = {"what": "str", "layer": "int64", "score": "float64", "n": "int64"}

    def summary(self) -> pd.DataFrame:
        """Scores by measure and layer with Wilson 95 % intervals.

        They are as wide as for one row a source entity, since an entity's rows are near twins.

        Returns:
            Columns `what, layer, n, score, low, high`.
        """
        rows = []
        for row in self.frame.to_dict("records"):
            right = round(row["score"] * row["n"])
            _, low, high = wilson(right, int(row["n"]))
            rows.append((row["what"], row["layer"], row["n"], row["score"], low, high))
        return pd.DataFrame(rows, columns=["what", "layer", "n", "score", "low", "high"])

    def selectivity(self) -> pd.DataFrame:
        """Accuracy less that of the control task, by layer.

        Returns:
            Columns `layer, accuracy, control, selectivity, new_entities, majority`.
        """
        wide = self.frame.pivot_table(index="layer", columns="what", values="score").reset_index()
        wide["selectivity"] = wide["accuracy"] - wide["control"]
        columns = ["layer", "accuracy", "control", "selectivity", "new_entities", "majority"]
        return wide[columns].rename_axis(columns=None)

    def best_layer(self) -> int:
        """The first of the layers with the highest accuracy on new entities."""
        rows = self.frame[self.frame["what"] == "new_entities"]
        return int(rows.sort_values(["score", "layer"], ascending=[False, True])["layer"].iloc[0])

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"selectivity": self.selectivity(), "scores": self.summary()}

    def findings(self) -> list[str]:
        table = self.selectivity()
        best = row_where(table, layer=self.best_layer())
        assert best is not None
        share = {
            row["what"]: with_interval(row["score"], row["low"], row["high"])
            for row in rows_where(self.summary(), layer=best["layer"])
        }
        n, classes = len(self.details), self.details["label"].nunique()
        settings = self.run["settings"]
        return [
            f"on {n} queries of {classes} classes a linear probe at {settings['position']} reads "
            f"{settings['target']} of entities that it has not seen best at layer "
            f"{best['layer']}, of {len(table)}: {share['new_entities']}, the largest "
            f"class being {percent(best['majority'])}. For entities it has seen it is "
            f"{share['accuracy']}, against {share['control']} on the control "
            f"task: selectivity {100 * best['selectivity']:+z.0f} points."
        ]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the scores by layer."""
        from hopscope.experiments.two_hop import plots

        target = self.run.get("settings", {}).get("target", "")
        return plots.probe_lines(self.summary(), ax, title=f"linear probe: {target}")


def _probed_in_study(queries: QuerySet, scale: Scale) -> QuerySet:
    """Queries of entities that can be probed, graded or not, as many as a study probes."""
    return sample_entities(labelled(queries, "e2", FOLDS)[0], scale.probed, scale.seed)


@analysis(
    "probe",
    title="Linear probes",
    question="From which layer on can the bridge be decoded linearly at t1, beyond memory?",
    source="Hewitt and Liang 2019",
    control="a control task with random labels; the largest class",
    asks="queries",
    subsets=("all",),
    order=90,
    keywords=("seed", "progress", "out", "on"),
    accepts={
        "queries": Queries(),
        "target": OneOf(TARGETS),
        "position": OneOf(ENDS),
        "layers": Layers(),
        "folds": AtLeast(2),
        "l2": Above(0),
    },
    layers=lambda layers: {"layers": layers},
    chosen=_probed_in_study,
)
def probe(
    model: LanguageModel,
    queries: QuerySet,
    target: str = "e2",
    position: str = "t1",
    layers: Iterable[int] | None = None,
    folds: int = FOLDS,
    l2: float = 100.0,
    **run: Unpack[RunKeywords],
) -> Probing:
    """Cross-validate linear probes of the bridge on the residual stream, beside a control task.

    Classes with fewer source entities than folds, and entities with one question only, are left
    out.

    Args:
        model: the model.
        queries: many: every class needs `folds` source entities, each with two questions.
        target: what is read: a bridge itself (`e2`; of more hops also `e3`, `e4`) or its type
            (`e2_type`).
        position: `t1`, `t2`, …, the end of a hop's phrase, or `e1`.
        layers: blocks whose outputs are probed; all if None.
        folds: number of folds of the cross-validation.
        l2: strength of the L2 penalty of the probes.

    Raises:
        UsageError: for an unknown target, position or layer, or too few queries.

    Example:
        >>> probe(model, load_queries("world").sample(800)).selectivity()  # doctest: +SKIP
    """
    options = RunOptions(**run)
    positions_of(queries, [position])
    settings: dict[str, Any] = {
        "target": target,
        "position": position,
        "layers": layers,
        "folds": folds,
        "l2": l2,
        "seed": options.seed,
    }
    kept, labels, classes = labelled(queries, target, folds)

    def compute() -> Tables:
        acts = _states(model, kept, position, settings["layers"], options.progress)
        return _tables(acts, kept, labels, classes, settings)

    record = provenance(model, kept, Probing.kind, settings)
    return Probing.of(run_once(compute, record, options.out), record)


def labelled(queries: QuerySet, target: str, folds: int) -> tuple[QuerySet, Tensor, list[str]]:
    """The queries that can be probed, the class of each, and what the classes are called.

    Raises:
        UsageError: for an unknown target.
        QueryError: if fewer than two classes are left.
    """
    OneOf(TARGETS).checked("target", target, None)
    one_of("target", target[:2], queries.entities[1:-1])
    kept, classes = _usable(queries, target, folds)
    while True:  # what leaves may leave others alone
        fewer, classes = _usable(kept, target, folds)
        if len(fewer) == len(kept):
            break
        kept = fewer
    if len(classes) < 2:
        raise QueryError(
            f"{queries.name}: {len(classes)} classes of {target} have {folds} source entities with "
            "two questions each; give more queries (a larger limit), or fewer folds"
        )
    if len(kept) < len(queries):
        logger.info("%d of %d queries make %d classes", len(kept), len(queries), len(classes))
    numbers = {name: number for number, name in enumerate(classes)}
    labels = torch.tensor([numbers[_class(query, target)] for query in kept])
    return kept, labels, classes


def _usable(queries: QuerySet, target: str, folds: int) -> tuple[QuerySet, list[str]]:
    """The queries whose entity has two, then those of a class with enough entities."""
    rows = Counter(_entity(query) for query in queries)
    kept = queries.filter(lambda query: rows[_entity(query)] > 1)
    entities: dict[str, set[str]] = defaultdict(set)
    for query in kept:
        entities[_class(query, target)].add(_entity(query))
    classes = sorted(name for name, found in entities.items() if name and len(found) >= folds)
    return kept.filter(lambda query: _class(query, target) in classes), classes


def sample_entities(queries: QuerySet, most: int, seed: int = 0) -> QuerySet:
    """At most about `most` queries: all those of source entities drawn by seed."""
    if len(queries) <= most:
        return queries
    entities = sorted({_entity(query) for query in queries})
    random.Random(seed).shuffle(entities)
    counts = Counter(_entity(query) for query in queries)
    chosen: set[str] = set()
    room = most
    for entity in entities:
        if counts[entity] <= room:
            chosen.add(entity)
            room -= counts[entity]
    return queries.filter(lambda query: _entity(query) in chosen)


def _class(query: Query, target: str) -> str:
    return str(query.value(target if target.endswith("_type") else f"{target}_label"))


def _entity(query: Query) -> str:
    return normalise(query.labels[0])


def _states(
    model: LanguageModel, queries: QuerySet, position: str, layers: list[int], progress: bool
) -> Tensor:
    """States of shape (query, layer, d_model)."""
    acts = capture(model, queries.prompts(), ["resid_post"], [position], progress=progress)
    return acts["resid_post"][:, 0, layers]


def _tables(
    acts: Tensor, queries: QuerySet, labels: Tensor, classes: list[str], settings: dict[str, Any]
) -> Tables:
    names = list(dict.fromkeys(_entity(query) for query in queries))
    place = {name: index for index, name in enumerate(names)}
    entities = torch.tensor([place[_entity(query)] for query in queries])
    given = {key: settings[key] for key in ("folds", "seed", "l2")}
    chosen = selectivity(acts, labels, entities, **given)
    new = cross_validate(acts, labels, groups=entities, **given).mean(dim=0)
    majority = float(labels.bincount().max()) / len(labels)
    scores = {
        "accuracy": chosen.accuracy,
        "control": chosen.control_accuracy,
        "new_entities": new,
        "majority": torch.full_like(new, majority),
    }
    frame = pd.DataFrame(
        [
            {"what": what, "layer": layer, "score": score, "n": len(names)}
            for what, values in scores.items()
            for layer, score in zip(settings["layers"], values.tolist(), strict=True)
        ]
    )
    details = pd.DataFrame(
        {
            "query": [query.id for query in queries],
            "source": [query.labels[0] for query in queries],
            "label": [classes[label] for label in labels.tolist()],
        }
    )
    return {"frame": frame, "details": details}


def fit_probe(
    model: LanguageModel,
    queries: QuerySet,
    target: str = "e2",
    position: str = "t1",
    layers: Iterable[int] | None = None,
    folds: int = FOLDS,
    l2: float = 100.0,
    progress: bool = True,
) -> LinearProbe:
    """A linear probe of the bridge, fitted on all the queries that `probe` uses; to be saved.

    Arguments and errors as for `probe`.
    """
    given = {"model": model, "queries": queries, "target": target, "position": position}
    given |= {"layers": layers, "folds": folds, "progress": progress}
    given = REGISTERED["probing"].check(given, model)
    kept, labels, classes = labelled(given["queries"], target, folds)
    acts = _states(model, kept, position, given["layers"], progress)
    return LinearProbe(len(classes), l2=l2, classes=classes).fit(acts, labels.to(acts.device))
