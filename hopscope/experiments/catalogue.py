"""Provides what a report says: for each analysis its title, its question, and what was found.

Sentences with numbers, their intervals, and what the controls say; from results alone.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pandas as pd

from hopscope import experiments
from hopscope.experiments.documents.attention import DocumentAttention
from hopscope.experiments.documents.masked_paths import MaskedPaths
from hopscope.experiments.documents.order_choice import OrderChoice
from hopscope.experiments.documents.permutation import Permutation
from hopscope.experiments.two_hop.activation_patching import ActivationPatching
from hopscope.experiments.two_hop.attention_knockout import Knockouts
from hopscope.experiments.two_hop.back_patching import BackPatching
from hopscope.experiments.two_hop.causal_tracing import Tracing
from hopscope.experiments.two_hop.description import Description
from hopscope.experiments.two_hop.entity_recall import Recall
from hopscope.experiments.two_hop.grading import Grading
from hopscope.experiments.two_hop.plots import SITE_LABELS
from hopscope.experiments.two_hop.probing import Probing
from hopscope.experiments.two_hop.projection import Projection
from hopscope.experiments.two_hop.stages import Stages
from hopscope.results.wording import (
    CONTROL_NAMES,
    _largest,
    _layer,
    _one,
    _rows,
    n_queries,
    percent,
    points,
    value_with_interval,
    verdict,
    with_interval,
)

Tables = dict[str, pd.DataFrame]
Told = tuple[list[str], Tables]


class Analysis(NamedTuple):
    """How a report speaks of an analysis.

    Attributes:
        title: the heading.
        question: what is asked, in a sentence.
        tell: sentences and tables, from a result.
    """

    title: str
    question: str
    tell: Callable[[Any], Told]


def _grading(result: Grading) -> Told:
    summary = result.summary()
    share = {row["what"]: row for row in _rows(summary)}

    def of(what: str) -> str:
        row = share[what]
        return with_interval(row["share"], row["low"], row["high"])

    return [
        f"Of {int(summary['n'].iloc[0])} queries the model has {of('first_hop')} first hops, "
        f"{of('second_hop')} second hops and {of('two_hop')} compositions right; both single hops "
        f"in {of('both_hops')}.",
        f"The entity shortcut alone gives the answer in {of('entity_shortcut')}, the relation "
        f"shortcut in {of('relation_shortcut')}. Without shortcuts, {share['correct']['right']} "
        f"queries are answered (subset correct), and {share['incorrect']['right']} fail although "
        "both hops are known (subset incorrect).",
    ], {"summary": summary}


def _back_patching(result: BackPatching) -> Told:
    rates, gains = result.success_rate(), result.above_chance()
    said = []
    for position in dict.fromkeys(rates["position"]):
        own = _one(rates, position=position, control="none")
        assert own is not None
        beside = [
            f"{percent(row['rate'])} with {label}"
            for control, label in CONTROL_NAMES.items()
            for row in _rows(rates, position=position, control=control)
        ]
        sentence = (
            f"at {position} some cell has the answer for "
            f"{with_interval(own['rate'], own['low'], own['high'])} of the queries"
        )
        if beside:
            sentence += f", against {' and '.join(beside)}"
        for gain in _rows(gains, position=position, control="other"):
            difference = points(gain["difference"], gain["low"], gain["high"])
            sentence += f"; {difference} over another query's state: {verdict(gain)}"
        said.append(f"{sentence}.")
    if n_queries(result) > 1:
        best = result.best_cell()
        said.append(
            f"The best single cell, chosen on one half ({best.position}, {best.source_layer} → "
            f"{best.target_layer}), has the answer for "
            f"{with_interval(best.rate, best.low, best.high)} of the other half."
        )
    return said, {"success_rate": rates, "above_chance": gains}


def _description(result: Description) -> Told:
    described, gains = result.described(), result.above_chance()
    said = []
    for entity, position in (("e2", "t1"), ("e2", "t2"), ("e3", "t2")):
        row = _one(described, entity=entity, position=position)
        if row is None:
            continue
        other = _one(described, entity=f"{entity}_other", position=position)
        gain = _one(gains, entity=entity, position=position)
        name = "the bridge" if entity == "e2" else "the answer"
        sentence = (
            f"{name} is described at {position} in some cell for "
            f"{with_interval(row['share'], row['low'], row['high'])} of the queries"
        )
        if row["share"] > 0:
            sentence += f", first from {_layer(row['mean_first_layer'])} on average"
        if other is not None and gain is not None:
            sentence += f"; another query's for {percent(other['share'])}: {verdict(gain)}"
        said.append(f"{sentence}.")
    return said, {"described": described, "above_chance": gains, "shares": result.shares()}


def _projection(result: Projection) -> Told:
    exact, near = result.summary(0), result.summary(9)
    said = []
    for target, site, position in (
        ("e2", "mlp_out", "t1"),
        ("e2", "attn_out", "t2"),
        ("prediction", "mlp_out", "t2"),
    ):
        where = {"target": target, "site": site, "position": position}
        first, ten = _one(exact, **where), _one(near, **where)
        if first is None or ten is None:
            continue
        name = "the bridge" if target == "e2" else "the prediction"
        part = "attention" if site == "attn_out" else "MLP"
        sentence = (
            f"the output of {part} at {position} has {name} as its likeliest token in some layer "
            f"for {with_interval(first['share'], first['low'], first['high'])} of the queries, "
            f"among the ten likeliest for {percent(ten['share'])}"
        )
        other = _one(near, **{**where, "target": f"{target}_other"})
        if other is not None:
            sentence += f" (another query's: {percent(other['share'])})"
        said.append(f"{sentence}.")
    return said, {"rank_0": exact, "rank_9": near, "by_layer": result.by_layer()}


def _knockout(result: Knockouts) -> Told:
    effect, gains = result.effect(), result.above_chance()
    said = []
    for edge in dict.fromkeys(effect["edge"]):
        rows = effect[(effect["edge"] == edge) & (effect["control"] == "none")]
        worst = _largest(rows, "effect")
        sentence = (
            f"blocking {edge.replace('->', ' → ')} changes what is said most around layer "
            f"{worst['layer']}, the largest of {len(rows)}: "
            f"{with_interval(worst['effect'], worst['low'], worst['high'])} of "
            f"{worst['n']} queries"
        )
        random = _one(effect, edge=edge, control="random", layer=worst["layer"])
        if random is not None:
            sentence += f" (as many random edges there: {percent(random['effect'])})"
        gain = _one(gains, edge=edge)
        if gain is not None:
            sentence += (
                f"; over all layers {points(gain['difference'], gain['low'], gain['high'])} over "
                f"as many random edges: {verdict(gain)}"
            )
        said.append(f"{sentence}.")
    tables = {
        "changed": effect,
        "prediction_change": result.effect("prediction_change"),
        "answer_change": result.effect("answer_change"),
        "above_chance": gains,
    }
    return said, tables


def _stages(result: Stages) -> Told:
    summary, broken = result.summary(), result.broken()
    shown = [row for row in _rows(summary) if row["n"]]
    steps = [
        f"{row['stage'].replace('->', ' → ')} {_layer(row['mean'])} ({row['n']} of "
        f"{row['queries']} queries)"
        for row in shown
    ]
    said = [f"mean first layers: {'; '.join(steps)}." if steps else "no stage shows."]
    some = _one(broken, earlier="any")
    if some is not None and some["n"]:
        said.append(
            f"Of {some['n']} queries in which two stages or more show, "
            f"{with_interval(some['share'], some['low'], some['high'])} have some pair in another "
            "order than the paper's."
        )
    return said, {"summary": summary, "broken": broken}


def _patching(result: ActivationPatching) -> Told:
    summary = result.summary()
    said = []
    for position in dict.fromkeys(summary["position"]):
        rows = summary[(summary["position"] == position) & (summary["site"] == "resid_post")]
        own = rows[rows["control"] == "none"]
        if own.empty or own["recovery"].isna().all():
            continue
        best = _largest(own, "recovery")
        over = own.loc[own["recovery"] >= 0.5, "layer"]
        sentence = (
            f"the other question's residual stream at {position} brings its answer most at layer "
            f"{best['layer']}, the largest of {len(own)}: recovery "
            f"{value_with_interval(best['recovery'], best['low'], best['high'])}, answer flipped "
            f"in {percent(best['flip_rate'])}"
        )
        if len(over):
            sentence += (
                f"; it is at least one half in {len(over)} of {len(own)} layers, from "
                f"{over.min()} to {over.max()}"
            )
        random = _one(rows[rows["control"] == "random"], layer=best["layer"])
        if random is not None:
            sentence += (
                f"; a random vector there: recovery {random['recovery']:.2f}, flipped in "
                f"{percent(random['flip_rate'])}"
            )
        said.append(f"{sentence}.")
    ceiling = result.details["partner_answers"].mean()
    said.append(
        "The other question by itself has its answer as the likeliest token in "
        f"{percent(ceiling)}: about so many flips can be expected at most."
    )
    return said, {"summary": summary}


def _tracing(result: Tracing) -> Told:
    total, summary = result.total_effect(), result.summary()
    mean = {row["what"]: row["mean"] for row in _rows(total)}
    said = [
        f"noise on the source entity lowers the answer's probability from {mean['clean']:.2f} to "
        f"{mean['noised']:.2f}."
    ]
    for position in dict.fromkeys(summary["position"]):
        parts = []
        for site, name in SITE_LABELS.items():
            rows = summary[(summary["position"] == position) & (summary["site"] == site)]
            if len(rows):
                best = _largest(rows, "effect")
                parts.append(f"{name} {best['effect']:.2f} at layer {best['layer']}")
        layers = summary["layer"].nunique()
        said.append(
            f"Average indirect effects at {position}, the largest of {layers} layers: "
            f"{', '.join(parts)}."
        )
    return said, {"total_effect": total, "summary": summary}


def _recall(result: Recall) -> Told:
    summary, consistency = result.summary(), result.consistency()
    said = []
    for substitute, name in (("e1", "another source entity"), ("r1", "another first relation")):
        rows = summary[summary["substitute"] == substitute]
        if rows.empty:
            continue
        best = _largest(rows, "share")
        said.append(
            f"the bridge is recalled at t1 better than with {name} most often at layer "
            f"{best['layer']}: "
            f"{with_interval(best['share'], best['low'], best['high'])} of the queries (chance 50 "
            f"%; the best of {len(rows)} layers); the mean over layers is "
            f"{percent(rows['share'].mean())}."
        )
    gain = _one(consistency, what="gain")
    if gain is not None:
        said.append(
            f"CnstScore with the bridge's own second hop is, in nats, "
            f"{value_with_interval(gain['mean'], gain['low'], gain['high'], '+')} over another "
            "bridge's: "
            f"{verdict(gain)}."
        )
    return said, {"summary": summary, "consistency": consistency}


def _probing(result: Probing) -> Told:
    table = result.selectivity()
    best = _one(table, layer=result.best_layer())
    assert best is not None
    n, classes = len(result.details), result.details["label"].nunique()
    settings = result.run["settings"]
    return [
        f"on {n} queries of {classes} classes a linear probe at {settings['position']} reads "
        f"{settings['target']} of entities that it has not seen best at layer {best['layer']}, of "
        f"{len(table)}: "
        f"{percent(best['new_entities'])}, the largest class being {percent(best['majority'])}. "
        f"For entities it has seen it is {percent(best['accuracy'])}, against "
        f"{percent(best['control'])} on the control task: selectivity "
        f"{100 * best['selectivity']:+.0f} points."
    ], {"selectivity": table}


def _document_order(result: Permutation) -> Told:
    accuracy, orders, masks = result.accuracy(), result.compare("forward"), result.compare_masks()
    said = []
    for mask in dict.fromkeys(accuracy["mask"]):
        parts = [
            f"{with_interval(row['accuracy'], row['low'], row['high'])} {row['order']}"
            for row in _rows(accuracy, mask=mask)
        ]
        sentence = f"under the mask {mask} it answers {', '.join(parts)}"
        gain = _one(orders, mask=mask, order="backward")
        if gain is not None:
            difference = points(gain["difference"], gain["low"], gain["high"])
            sentence += f"; backward over forward {difference}: {verdict(gain)}"
        said.append(f"{sentence}.")
    return said, {"accuracy": accuracy, "compare": orders, "compare_masks": masks}


def _attention_peaks(result: DocumentAttention) -> Told:
    table = result.compare()
    said = []
    for row in _rows(table):
        sentence = f"in the order {row['order']} {row['right']} answers are right"
        if row["auc"] == row["auc"]:
            sentence += (
                f"; their median peak is {row['median_right']:.2f}, that of the "
                f"{row['wrong']} wrong ones {row['median_wrong']:.2f} (a right one is higher in "
                f"{percent(row['auc'])} of the pairs, chance 50 %; p = {row['p']:.2g})"
            )
        said.append(f"{sentence}.")
    return said, {"compare": table, "peaks": result.peaks()}


def _order_choice(result: OrderChoice) -> Told:
    summary = result.summary()
    k = result.run["settings"]["k"]
    names = {"peak": "the highest peak", "majority": "the majority", "oracle": "an oracle"}
    mean = _one(summary, strategy="mean")
    assert mean is not None
    said = [
        f"of {k} shuffles a random one is right for "
        f"{with_interval(mean['accuracy'], mean['low'], mean['high'])}."
    ]
    for row in _rows(summary):
        if row["strategy"] in names:
            gain = {"n": row["n"], "low": row["gain_low"], "high": row["gain_high"]}
            difference = points(row["gain"], row["gain_low"], row["gain_high"])
            said.append(
                f"Chosen by {names[row['strategy']]}: {percent(row['accuracy'])}, {difference} "
                f"over a random shuffle: {verdict(gain)}."
            )
    return said, {"summary": summary}


def _document_paths(result: MaskedPaths) -> Told:
    effect, gains = result.effect(), result.above_chance()
    window = 2 * result.run["settings"]["window"] + 1
    said = []
    for edge in dict.fromkeys(effect["edge"]):
        own = effect[(effect["edge"] == edge) & (effect["control"] == "none")]
        best = _largest(own, "effect")
        share = with_interval(best["effect"], best["low"], best["high"])
        sentence = (
            f"blocking {edge} in {window} layers changes most answers around layer "
            f"{best['layer']}, {share}"
        )
        other = _one(effect, edge=edge, control="distractor", layer=best["layer"])
        if other is not None:
            sentence += f", the same edge to a distractor {percent(other['effect'])}"
        gain = _one(gains, edge=edge, layer=best["layer"])
        if gain is not None:
            sentence += f": {verdict(gain)} (the best of {len(own)} windows)"
        said.append(f"{sentence}.")
    return said, {"effect": effect, "above_chance": gains}


def import_all() -> None:
    """Import every analysis, so that kinds of results are known by name."""
    for module in pkgutil.walk_packages(experiments.__path__, f"{experiments.__name__}."):
        importlib.import_module(module.name)


ANALYSES: Mapping[str, Analysis] = {
    "grading": Analysis(
        "What it gets right",
        "Which hops, compositions and shortcuts does the model get right?",
        _grading,
    ),
    "back_patching": Analysis(
        "Back-patching",
        "Does copying a later state of a token into an earlier layer let the model answer? "
        "(Hopping Too Late, section 6)",
        _back_patching,
    ),
    "description": Analysis(
        "Entity description",
        "Which entity is in a hidden state, by the model's own description? (Patchscopes; "
        "Hopping Too Late, section 4)",
        _description,
    ),
    "projection": Analysis(
        "Sublayer projection",
        "Where do attention, MLP and residual stream say the bridge and the answer? (Hopping "
        "Too Late, section 5)",
        _projection,
    ),
    "knockout": Analysis(
        "Attention knockout",
        "Which edges of attention does the answer need, and in which layers? (Hopping Too "
        "Late, section 5)",
        _knockout,
    ),
    "stages": Analysis(
        "Stages",
        "When does each step first show, and does the order hold query by query? (Hopping Too "
        "Late, figure 1; Layer-Order Inversion)",
        _stages,
    ),
    "patching": Analysis(
        "Activation patching",
        "Which states of the same question about another entity bring that one's answer?",
        _patching,
    ),
    "tracing": Analysis(
        "Causal tracing",
        "Which clean states bring the answer back when the source entity is noised? (ROME)",
        _tracing,
    ),
    "recall": Analysis(
        "Entity recall",
        "Does t1 recall the bridge, and does the model use it? (EntRec and CnstScore, Yang et "
        "al. 2024)",
        _recall,
    ),
    "probing": Analysis(
        "Linear probes",
        "From which layer on can the bridge be read off t1 by a linear map, and is that more "
        "than memory? (Hewitt and Liang 2019)",
        _probing,
    ),
    "document_order": Analysis(
        "Order of documents and masks",
        "Does it matter in which order the documents stand, and who sees whom? (Masking in "
        "Multi-hop QA, sections 3 and 4)",
        _document_order,
    ),
    "attention_peaks": Analysis(
        "Attention to documents",
        "Does a right answer look harder at one document than a wrong one? (Masking in "
        "Multi-hop QA, section 5)",
        _attention_peaks,
    ),
    "order_choice": Analysis(
        "Choosing an order",
        "Does the peak of attention tell which of several orders to trust? (Masking in "
        "Multi-hop QA, section 5)",
        _order_choice,
    ),
    "document_paths": Analysis(
        "Masked paths",
        "Which edges between documents and question carry each hop, and in which layers?",
        _document_paths,
    ),
}
"""By the name of the figure, in the order of the page."""
