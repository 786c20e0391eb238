"""Provides the pictures: tables in, matplotlib Axes out; nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle, product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from hopscope.plots.heatmaps import diverging_heatmap
from hopscope.plots.lines import (
    BAND,
    Interval,
    Whiskers,
    edge_effects,
    layer_axis,
    layer_line,
    lone_band,
    share_axis,
)
from hopscope.plots.style import (
    BLACK,
    BLUE,
    CONTROLS,
    ERROR_BARS,
    FAINT,
    GREEN,
    GREY,
    PINK,
    SKY,
    TEXT,
    VERMILION,
    axes_or_new,
    bar_look,
    bars,
    color_of_each,
    difference_mark,
    errors_of,
    legend_below,
    text_size,
)
from hopscope.queries.query import ENTITIES, POSITIONS
from hopscope.results.wording import SITE_LABELS, SUBSTITUTES, entity_name

FORM_LABELS = {
    "first_hop": "first hop",
    "second_hop": "second hop",
    "two_hop": "two hops",
    "entity_shortcut": "entity shortcut",
    "relation_shortcut": "relation shortcut",
    "both_hops": "both single hops",
    "correct": "subset: correct",
    "incorrect": "subset: incorrect",
}
"""What the bars of a grading of two hops are called, in their order."""


def form_label(what: str) -> str:
    """What a bar of a grading is called.

    Example:
        >>> form_label("third_hop"), form_label("three_hop"), form_label("hops_2_3")
        ('third hop', 'three hops', 'hops 2 to 3')
    """
    if what in FORM_LABELS:
        return FORM_LABELS[what]
    words = what.split("_")
    if words[0] == "hops":
        return f"hops {words[1]} to {words[2]}"
    if what == "all_hops":
        return "all single hops"
    several = words[0] in ("three", "four") and words[-1] == "hop"
    return " ".join(words) + "s" * several


def success_bars(
    rates: pd.DataFrame,
    ax: Axes | None = None,
    title: str = "",
    measure: str = "queries with the answer in any cell",
) -> Axes:
    """Share of queries with the answer in any cell, by position, beside the controls.

    Args:
        rates: `BackPatching.success_rate()`, or `BackPatching.cell_rate()`.
        ax: where to draw.
        title: of the axes.
        measure: what the rates are, for the axis.
    """
    ax = axes_or_new(ax, 2.4)
    positions = list(dict.fromkeys(rates["position"]))
    controls = [name for name in CONTROLS if name in set(rates["control"])]
    width = 0.8 / len(controls)
    for index, control in enumerate(controls):
        rows = rates[rates["control"] == control].set_index("position").reindex(positions)
        places = np.arange(len(positions)) + (index - (len(controls) - 1) / 2) * width
        bars(ax, places, rows, "rate", width * 0.92, **bar_look(CONTROLS[control]))
    ax.set_xticks(range(len(positions)), positions)
    ax.set(xlabel="patched position", ylabel=measure, title=title)
    share_axis(ax)
    return ax


def described_places(described: pd.DataFrame) -> dict[tuple[str, str], int]:
    """Where `described_bars` has each entity at each position, by both; those that there are."""
    named = [each for each in ENTITIES[1:] if each in set(described["entity"])]
    positions = [each for each in POSITIONS if each in set(described["position"])]
    wanted = list(product(named, positions))
    there = set(zip(described["entity"], described["position"], strict=True))
    return {each: place for place, each in enumerate(each for each in wanted if each in there)}


OWN_BAR = -0.2
"""Where the bar of the query's own entity is, beside that of another one."""


def described_bars(described: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """Share of queries in which some state is described as an entity, beside another one's.

    Args:
        described: `Description.described()`.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.4)
    named = list(described_places(described))
    for offset, other, look in (
        (OWN_BAR, "", CONTROLS["none"]._replace(label="own entity")),
        (-OWN_BAR, "_other", CONTROLS["other"]._replace(label="another query's entity")),
    ):
        table = described.drop_duplicates(["entity", "position"]).set_index(["entity", "position"])
        rows = table.reindex([(f"{entity}{other}", position) for entity, position in named])
        bars(ax, np.arange(len(named)) + offset, rows, "share", 0.37, **bar_look(look))
    n_hops = max(int(entity[1:]) for entity, _ in named) - 1 if named else 2
    names = [f"{entity_name(entity, n_hops)}\nat {position}" for entity, position in named]
    ax.set_xticks(range(len(named)), names)
    ax.set(ylabel="queries, in any cell", title=title)
    share_axis(ax)
    return ax


KNOCKOUT_LABELS = {
    "changed": "queries whose answer changes",
    "prediction_change": "change of log P(prediction), nats",
    "answer_change": "change of log P(answer), nats",
}
"""What each measure of a knockout is, with its unit."""


def knockout_lines(
    effect: pd.DataFrame, ax: Axes | None = None, title: str = "", measure: str = "changed"
) -> Axes:
    """The effect of blocked edges by layer: a line for each edge, its control dotted and grey.

    Args:
        effect: `Knockouts.effect()`.
        ax: where to draw.
        title: of the axes.
        measure: what the effect is, for the axis.
    """
    return edge_effects(
        effect, ax, title, "random", "as many random edges", KNOCKOUT_LABELS[measure]
    )


BRIDGE_COLORS = (BLUE, GREEN, PINK)
DASHES = dict(zip(ENTITIES[1:], ("--", ":", "-.", "--"), strict=True))
"""The lines of the controls of targets."""


def target_colors(n_hops: int = 2) -> dict[str, str]:
    """The colour of each target of queries of n hops, in the order in which they are drawn."""
    *bridges, answer = ENTITIES[1 : n_hops + 1]
    found = dict(zip(bridges, BRIDGE_COLORS, strict=False))
    return {**found, answer: VERMILION, "prediction": BLACK}


def projection_lines(
    by_layer: pd.DataFrame,
    ax: Axes | None = None,
    title: str = "",
    site: str | None = None,
    n_hops: int = 2,
) -> Axes:
    """Share of queries in which a sublayer's output resolves each target, by layer.

    A control has no intervals where there are several targets.

    Args:
        by_layer: `Projection.by_layer()` at one position.
        ax: where to draw.
        title: of the axes.
        site: the sublayer; the first one if None.
        n_hops: how many hops the queries have.
    """
    ax, colors = axes_or_new(ax, 2.4), target_colors(n_hops)
    site = str(by_layer["site"].iloc[0]) if site is None else site
    here = by_layer[by_layer["site"] == site]
    targets = [target for target in colors if target in set(here["target"])]
    beside = Whiskers() if len(targets) == 1 else None
    for target, interval in zip(targets, lone_band(len(targets)), strict=True):
        name = entity_name(target, n_hops)
        if target != "prediction":
            control, dash = here[here["target"] == f"{target}_other"], DASHES[target]
            layer_line(ax, control, "share", GREY, dash, f"another query's {name}", beside)
        rows, color = here[here["target"] == target], colors[target]
        layer_line(ax, rows, "share", color, "-", name, interval)
    named = SITE_LABELS.get(site, site)
    layer_axis(ax, "layer", "queries that resolve it", f"{named} at {title}" if title else named)
    share_axis(ax)
    ax.legend(loc="best")
    return ax


def stage_axis(
    frame: pd.DataFrame, summary: pd.DataFrame, ax: Axes | None = None, title: str = ""
) -> Axes:
    """The first layers of all stages on one axis: every query a dot, the mean with its interval.

    Args:
        frame: `Stages.frame`.
        summary: `Stages.summary()`.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.3)
    n_hops = int(summary["number"].max()) // 2
    of_stages = [*(BLUE, GREEN) * (n_hops - 1), PINK, VERMILION]
    labels = []
    for place, row in enumerate(summary.to_dict("records")):
        color = of_stages[row["number"] - 1]
        layers = frame.loc[frame["stage"] == row["stage"], "first_layer"].dropna().to_numpy()
        if row["low"] == row["low"]:
            ax.plot([row["low"], row["high"]], [place, place], "-", color=color, lw=2)
        ax.plot(
            layers, place + _spread(layers), "o", ms=4, mec="white", mew=0.5, color=color, alpha=0.6
        )
        ax.plot(row["mean"], place, "D", ms=6, color=color, mec="white", mew=0.8)
        stage = row["stage"].replace("->", " → ")
        labels.append(f"{row['number']}  {stage}\n{row['n']} of {row['queries']} queries")
    ax.set(xlabel="first layer", title=title)
    return _lines_below(ax, range(len(summary)), labels)


def later_axis(table: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """How much later each stage shows in one result than in another, with intervals.

    A filled mark is told apart from zero after correction. A stage that shows too rarely for an
    interval is named without a mark.

    Args:
        table: of `Stages.later_than`.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.3)
    labels = []
    for place, row in enumerate(table.to_dict("records")):
        if row["low"] == row["low"]:
            difference_mark(ax, place, row, "D", BLUE, across=True)
        stage = row["stage"].replace("->", " → ")
        labels.append(f"{row['number']}  {stage}\n{row['n']} and {row['n_other']} queries")
    ax.axvline(0, color=GREY, lw=0.8, zorder=0)
    ax.set(xlabel="difference of the mean first layers (layers)", title=title)
    return _lines_below(ax, range(len(table)), labels)


def _lines_below(
    ax: Axes, places: Sequence[float], labels: Sequence[str], margin: float = 0.5
) -> Axes:
    """Name the lines of an axis, the first on top, over a grid along which they are read."""
    ax.set_yticks(places, labels)
    ax.set_ylim(places[-1] + margin, -margin)
    ax.grid(axis="x", color=FAINT, lw=0.6)
    ax.set_axisbelow(True)
    return ax


def first_layer_strips(
    frame: pd.DataFrame, n_hops: int, ax: Axes | None = None, title: str = ""
) -> Axes:
    """The first layers of the entities of chains: every query a dot, the mean a diamond.

    Args:
        frame: `LayerOrder.frame` at one position.
        n_hops: how many hops the queries have.
        ax: where to draw.
        title: of the axes.
    """
    ax, colors = axes_or_new(ax, 2.3), target_colors(n_hops)
    entities = list(dict.fromkeys(frame["entity"]))
    ticks, labels = [], []
    for place, (entity, control) in enumerate(product(entities, ("none", "other"))):
        color = colors[entity] if control == "none" else GREY
        rows = frame[(frame["entity"] == entity) & (frame["control"] == control)]
        layers = rows["first_layer"].dropna().to_numpy()
        at = place + 0.6 * (place // 2)
        ax.plot(
            layers, at + _spread(layers), "o", ms=3, mec="white", mew=0.3, color=color, alpha=0.6
        )
        if len(layers):
            mean = layers.mean()
            ax.plot(mean, at, "D", ms=6, color=color, mec="white", mew=0.8, clip_on=False)
        name = entity_name(entity, n_hops)
        ticks.append(at)
        labels.append(
            f"{name if control == 'none' else f'another {name}'}\n{len(layers)} of {len(rows)}"
        )
    ax.set(xlabel="first layer", title=title)
    return _lines_below(ax, ticks, labels, margin=0.6)


def _spread(layers: np.ndarray) -> np.ndarray:
    """Offsets that set apart dots of the same layer."""
    offsets = np.zeros(len(layers))
    for layer in np.unique(layers):
        same = np.flatnonzero(layers == layer)
        step = min(0.09, 0.34 / len(same))
        offsets[same] = (np.arange(len(same)) - (len(same) - 1) / 2) * 2 * step
    return offsets


SITE_DASHES = {"resid_post": "-", "attn_out": "--", "mlp_out": "-."}
SITE_COLORS = {
    "resid_post": BLUE,
    "attn_out": VERMILION,
    "mlp_out": GREEN,
    "z": PINK,
    "embed": SKY,
}


def recovery_lines(summary: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """Recovery by layer: colours for positions, dashes for sites; the control in grey.

    Of one position alone, sites have colours, too, and the residual stream has its intervals.

    Args:
        summary: `ActivationPatching.summary()` without heads.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.6)
    _patched_lines(ax, summary, "recovery")
    layer_axis(ax, "layer", "recovery of the partner's answer", title)
    legend_below(ax)
    return ax


def flip_lines(summary: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """How often the partner's answer becomes the likeliest token by layer; as `recovery_lines`.

    Args:
        summary: `ActivationPatching.summary()` without heads.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.6)
    ends = {"flip_low": "low", "flip_high": "high"}
    table = summary.drop(columns=["low", "high"]).rename(columns=ends)
    _patched_lines(ax, table, "flip_rate")
    layer_axis(ax, "layer", "answer flipped to the partner's", title)
    share_axis(ax)
    legend_below(ax)
    return ax


def _patched_lines(ax: Axes, table: pd.DataFrame, value: str) -> None:
    control = table[(table["control"] == "random") & (table["site"] == "resid_post")]
    groups = control.groupby("position", sort=False)
    several = table["position"].nunique() > 1
    for (position, rows), dash in zip(groups, cycle(("--", ":", "-.")), strict=False):
        label = "random residual" + f", {position}" * several
        layer_line(ax, rows, value, GREY, dash, label, None if several else Whiskers())
    _site_lines(ax, table[table["control"] == "none"], value)


def place_heatmap(
    table: pd.DataFrame, ax: Axes | None = None, title: str = "", label: str = "mean recovery"
) -> Axes:
    """Draw a heatmap of sites at positions by layer, red towards the partner's answer.

    Args:
        table: mean recovery, with layers as rows, and sites and positions as columns, such as
            `Attribution.by_place()`.
        ax: where to draw.
        title: of the axes.
        label: label of the colour bar.

    Returns:
        The axes, with a line between sites.
    """
    sites, positions = (list(table.columns.get_level_values(level)) for level in (0, 1))
    first = [place for place, site in enumerate(sites) if place == sites.index(site)]
    named = {place: SITE_LABELS[sites[place]] for place in first}
    names = [f"{position}\n{named.get(at, '')}" for at, position in enumerate(positions)]
    ax = diverging_heatmap(table, names, ax, title, label)
    for place in first[1:]:
        ax.axvline(place, color=TEXT, lw=0.6)
    return ax


def sender_lines(summary: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """Recovery by the direct paths to the logits: a colour a sender; random vectors in grey.

    A control has marks in the colour of its sender.

    Args:
        summary: the rows of `PathPatching.summary()` with this receiver, without heads.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.6)
    sites = list(dict.fromkeys(summary["site"]))
    label: str | None = "random vector"
    for site in sites:
        rows = summary[(summary["site"] == site) & (summary["control"] == "random")]
        layer_line(ax, rows, "recovery", GREY, "--", label, None, mark=SITE_COLORS[site])
        label = None if len(rows) else label
    for site, interval in zip(sites, lone_band(len(sites)), strict=True):
        rows, color = summary[summary["site"] == site], SITE_COLORS[site]
        rows = rows[rows["control"] == "none"]
        mark = color if len(rows) == 1 else None
        layer_line(ax, rows, "recovery", color, "-", SITE_LABELS[site], interval, mark=mark)
    layer_axis(ax, "layer of the sender", "recovery of the partner's answer", title)
    legend_below(ax)
    return ax


def path_heatmap(table: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """Draw a heatmap of senders (rows) and receivers (columns), red towards the partner's answer.

    Args:
        table: mean recovery, with kinds and layers of senders as rows and of receivers as columns,
            such as `PathPatching.paths()`.
        ax: where to draw.
        title: of the axes.

    Returns:
        The axes, with a line between kinds; cells without a path are blank.
    """
    ax = axes_or_new(ax, 3.2)
    n_rows, n_columns = table.shape
    numbered = table.set_axis(range(n_rows)).set_axis(range(n_columns), axis=1)
    diverging_heatmap(numbered, None, ax, title, "mean recovery")
    columns, rows = (_kinds(each) for each in (table.columns, table.index))
    ax.set_xticks([place + 0.5 for place in columns.ticks], [*columns.ticks.values()])
    ax.set_yticks([n_rows - place - 0.5 for place in rows.ticks], [*rows.ticks.values()])
    beside = ax.secondary_xaxis(-0.06), ax.secondary_yaxis(-0.1)
    beside[0].set_xticks([*columns.names], [*columns.names.values()])
    beside[1].set_yticks([n_rows - place for place in rows.names], [*rows.names.values()])
    for names in beside:
        names.tick_params(length=0)
        names.spines[:].set_visible(False)
    for place in columns.begins:
        ax.axvline(place, color=TEXT, lw=0.6)
    for place in rows.begins:
        ax.axhline(n_rows - place, color=TEXT, lw=0.6)
    ax.set(xlabel="", ylabel="")
    beside[0].set_xlabel("receiver")
    beside[1].set_ylabel("sender")
    return ax


class _Kinds(NamedTuple):
    """Where kinds of senders or receivers begin, their names in their middles, and layers."""

    begins: list[int]
    names: dict[float, str]
    ticks: dict[int, str]


def _kinds(ends: pd.Index) -> _Kinds:
    """The kinds along an axis of `path_heatmap`."""
    kinds, layers = (list(ends.get_level_values(level)) for level in (0, 1))
    begins = [place for place, kind in enumerate(kinds) if place == kinds.index(kind)]
    names: dict[float, str] = {}
    ticks: dict[int, str] = {}
    step = -(-len(kinds) // 10)
    for begin, end in zip(begins, [*begins[1:], len(kinds)], strict=True):
        names[(begin + end) / 2] = SITE_LABELS[kinds[begin]]
        some = [place for place in range(begin, end, step) if place + step <= end or step == 1]
        ticks |= {place: str(layers[place]) for place in some if layers[place] >= 0}
    return _Kinds(begins[1:], names, ticks)


def estimate_points(swept: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """Draw estimated effects over exact ones, a point a cell; those on the line are right.

    Args:
        swept: rows of `Attribution.frame` that were swept exactly.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.9)
    for site, cells in swept.groupby("site", sort=False):
        label, color = SITE_LABELS[str(site)], SITE_COLORS[str(site)]
        look: dict[str, Any] = {"ms": 2.5, "mew": 0, "alpha": 0.45, "color": color}
        ax.plot(cells["exact"], cells["attribution"], "o", label=label, **look)
    ax.axline((0, 0), slope=1, color=BLACK, lw=0.8)
    what = "change of the logit difference, nats"
    ax.set(xlabel=f"exact {what}", ylabel=f"estimated {what}", title=title)
    legend_below(ax)
    return ax


def tracing_lines(summary: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """The average indirect effect by layer: colours for positions, dashes for sites.

    Of one position alone, sites have colours, too, and the residual stream has its intervals.

    Args:
        summary: `Tracing.summary()`.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.6)
    _site_lines(ax, summary, "effect")
    layer_axis(ax, "layer (middle of the window)", "average indirect effect", title)
    legend_below(ax)
    return ax


SUBSTITUTE_COLORS = {"e1": BLUE, "r1": VERMILION}


def recall_lines(summary: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """How often the bridge is recalled better than in a substituted question, by layer.

    The dotted line is chance.

    Args:
        summary: `Recall.summary()`.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.4)
    substitutes = list(dict.fromkeys(summary["substitute"]))
    intervals = lone_band(len(substitutes))
    for substitute, interval in zip(substitutes, intervals, strict=True):
        rows, label = summary[summary["substitute"] == substitute], SUBSTITUTES[substitute]
        color = SUBSTITUTE_COLORS[substitute]
        layer_line(ax, rows, "share", color, "-", f"than with {label}", interval)
    ax.axhline(0.5, color=GREY, lw=0.8, ls=":", label="chance")
    than = SUBSTITUTES[substitutes[0]] if len(substitutes) == 1 else "another entity or relation"
    layer_axis(ax, "layer", f"bridge recalled better than\nwith {than}", title)
    share_axis(ax)
    legend_below(ax)
    return ax


def probe_lines(scores: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """Held-out accuracy of a probe by layer, with the control task and the largest class.

    Args:
        scores: `Probing.summary()`.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.4)
    styles: dict[str, tuple[str, str, str, Interval]] = {
        "accuracy": (BLUE, "-", "new questions", BAND),
        "new_entities": (GREEN, "-", "new source entities", Whiskers(0, 2)),
        "control": (GREY, "--", "control task (random labels)", Whiskers(1, 2)),
        "majority": (GREY, ":", "largest class", None),
    }
    for what, (color, dash, label, interval) in styles.items():
        layer_line(ax, scores[scores["what"] == what], "score", color, dash, label, interval)
    layer_axis(ax, "layer", "held-out accuracy", title)
    share_axis(ax)
    legend_below(ax)
    return ax


POLICY_LABELS = {
    "probe": "probe",
    "shuffled": "labels\nshuffled",
    "always": "best\ncell",
    "other": "other\nstate",
    "any": "oracle",
}
"""What the policies of auto-patching are called on an axis."""


def policy_bars(rates: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """Share of wrong answers that each policy repairs, beside the share of right ones it breaks.

    Args:
        rates: `AutoPatching.rates()`.
        ax: where to draw.
        title: of the axes.
    """
    return repair_bars(rates, "policy", POLICY_LABELS, ax, title)


ARM_LABELS = {
    "back": "both",
    "higher": "higher\nlayer",
    "later": "later\ntokens",
    "own": "neither",
}
"""What the modules of back attention see, on an axis: a higher layer, and later tokens."""


def repair_bars(
    rates: pd.DataFrame,
    by: str,
    labels: Mapping[str, str],
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """Share of wrong answers that each intervention repairs, beside that of right ones it breaks.

    Args:
        rates: columns `by`, `what` (`repaired`, `broken`), `n`, `rate`, `low`, `high`.
        by: the column that names the intervention.
        labels: what each is called.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.4)
    there = [name for name in labels if name in set(rates[by])]
    looks = (
        ("repaired", "wrong answers repaired", BLUE),
        ("broken", "right ones broken", VERMILION),
    )
    for offset, (what, label, color) in zip((-0.2, 0.2), looks, strict=True):
        rows = rates[rates["what"] == what].set_index(by).reindex(there)
        n = rows["n"].max()
        counted = label if n != n else f"{label} (n = {n:.0f})"
        look = {"color": color, "label": counted}
        bars(ax, np.arange(len(there)) + offset, rows, "rate", 0.37, **look)
    ax.set_xticks(range(len(there)), [labels[name] for name in there])
    ax.set(ylabel="queries", title=title)
    share_axis(ax)
    legend_below(ax)
    return ax


def _site_lines(ax: Axes, table: pd.DataFrame, value: str) -> None:
    """Lines of sites; only those of the residual stream have intervals."""
    colors = color_of_each(table["position"])
    several = len(colors) > 1
    for (position, color), interval in zip(colors.items(), lone_band(len(colors)), strict=True):
        for site, dash in SITE_DASHES.items():
            rows = table[(table["position"] == position) & (table["site"] == site)]
            layer_line(
                ax,
                rows,
                value,
                color if several else SITE_COLORS[site],
                dash,
                SITE_LABELS[site] + f", {position}" * several,
                interval if site == "resid_post" else None,
            )


def condition_bars(
    accuracy: pd.DataFrame,
    gains: pd.DataFrame,
    labels: Mapping[str, str],
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """Share of right answers by condition, with what each repairs and breaks.

    Args:
        accuracy: `PromptConditions.accuracy()`.
        gains: `PromptConditions.gains()`.
        labels: what the conditions are called.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.4)
    changes = gains.set_index("condition")
    names = []
    for condition in accuracy["condition"]:
        name = labels.get(condition, condition).replace(" ", "\n", 1)
        if condition in changes.index:
            name += f"\n+{changes.loc[condition, 'better']} −{changes.loc[condition, 'worse']}"
        names.append(name)
    places = np.arange(len(accuracy))
    for part, look in ((places[:1], CONTROLS["other"]), (places[1:], CONTROLS["none"])):
        rows = accuracy.iloc[part]
        bars(ax, part, rows, "share", 0.7, **bar_look(look._replace(label="")))
    ax.set_xticks(places, names)
    ax.set(ylabel="queries answered right", title=title)
    share_axis(ax)
    return ax


KIND_COLORS = (BLUE, BLUE, BLUE, GREY, SKY, GREEN, VERMILION, VERMILION)
"""The colours of the bars of a grading, by the kinds of `_kind_of_form`."""


def _kind_of_form(what: str) -> int:
    """The place of a bar of a grading: single hops, parts of the chain, all hops, shortcuts, …"""
    if what.startswith("hops_"):
        return 1
    if what in ("two_hop", "three_hop", "four_hop"):
        return 2
    if what.startswith("without_") or what.endswith("_shortcut"):
        return 3
    if what in ("both_hops", "all_hops"):
        return 4
    subsets = ("correct", "incorrect", "inconsistent")
    return 5 + subsets.index(what) if what in subsets else 0


def grading_bars(summary: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """Share of queries that pass each form, and that fall into each subset.

    Args:
        summary: `Grading.summary()`.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, max(2.6, 0.3 * len(summary)))
    order = sorted(summary["what"], key=_kind_of_form)
    table = summary.set_index("what").loc[order].drop("inconsistent", errors="ignore").reset_index()
    colors = [KIND_COLORS[_kind_of_form(each)] for each in table["what"]]
    places = np.arange(len(table))
    ax.barh(
        places,
        table["share"],
        0.72,
        xerr=errors_of(table, "share"),
        color=colors,
        error_kw=ERROR_BARS,
    )
    for place, right, high in zip(places, table["right"], table["high"], strict=True):
        ax.text(
            high + 0.012, float(place), str(right), va="center", fontsize=text_size(), color=TEXT
        )
    ax.set_yticks(places, [form_label(name) for name in table["what"]])
    ax.invert_yaxis()
    ax.set(xlabel=f"share of {int(table['n'].iloc[0])} queries", title=title)
    share_axis(ax, "x")
    return ax
