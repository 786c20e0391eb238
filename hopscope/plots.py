"""Provides the pictures: tables in, matplotlib Axes out; nothing is computed here."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hopscope.layouts import Layout
from hopscope.style import (
    BLACK,
    BLUE,
    CONTROLS,
    ERROR_BARS,
    FAINT,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    TEXT,
    TEXT_SIZE,
    VERMILION,
    axes_or_new,
    bar_look,
    color_of_each,
    errors_of,
    legend_below,
    panels,
    shared_legend,
    size_of,
    text_size,
)

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


def success_bars(rates: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """Share of queries with the answer in any cell, by position, beside the controls.

    Args:
        rates: `BackPatching.success_rate()`.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.4)
    positions = list(dict.fromkeys(rates["position"]))
    controls = [name for name in CONTROLS if name in set(rates["control"])]
    width = 0.8 / len(controls)
    for index, control in enumerate(controls):
        bars = rates[rates["control"] == control].set_index("position").reindex(positions)
        places = np.arange(len(positions)) + (index - (len(controls) - 1) / 2) * width
        ax.bar(
            places,
            bars["rate"],
            width * 0.92,
            yerr=errors_of(bars, "rate"),
            **bar_look(CONTROLS[control]),
            error_kw=ERROR_BARS,
        )
    ax.set_xticks(range(len(positions)), positions)
    ax.set(ylim=(0, 1), xlabel="patched position", ylabel="queries with the answer in any cell")
    ax.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
    ax.set_title(title)
    return ax


def layer_heatmap(
    share: pd.DataFrame,
    ax: Axes | None = None,
    title: str = "",
    vmax: float | None = None,
    label: str = "queries answered",
) -> Axes:
    """Source × target layers, shaded by the share of queries; cells that were not run are blank.

    Args:
        share: rows target layer, columns source layer (`BackPatching.heatmap()`).
        ax: where to draw.
        title: of the axes.
        vmax: share at the dark end of the colours; the largest one if None.
        label: what the shares are of.
    """
    ax = axes_or_new(ax, 2.9)
    top = max(float(np.nanmax(share.to_numpy())) if vmax is None else vmax, 1e-9)
    table = share.sort_index(ascending=False)
    width, height = size_of(ax)
    sns.heatmap(
        table,
        ax=ax,
        cmap="mako_r",
        vmin=0,
        vmax=top,
        xticklabels=_every([int(layer) for layer in table.columns], width),
        yticklabels=_every([int(layer) for layer in table.index], height)[::-1],
        cbar_kws={
            "label": label,
            "format": mpl.ticker.PercentFormatter(1.0, decimals=0),
        },
    )
    ax.tick_params(rotation=0, length=2)
    ax.set(xlabel="source layer (read)", ylabel="target layer (replaced)", title=title)
    return ax


def described_bars(described: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """Share of queries in which some state is described as an entity, beside another one's.

    Args:
        described: `Description.described()`.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.4)
    wanted = [("e2", "t1"), ("e2", "t2"), ("e3", "t1"), ("e3", "t2")]
    there = set(zip(described["entity"], described["position"], strict=True))
    bars = [each for each in wanted if each in there]
    for offset, other, look in (
        (-0.2, "", CONTROLS["none"]._replace(label="own entity")),
        (0.2, "_other", CONTROLS["other"]._replace(label="another query's entity")),
    ):
        table = described.drop_duplicates(["entity", "position"]).set_index(["entity", "position"])
        rows = table.reindex([(f"{entity}{other}", position) for entity, position in bars])
        ax.bar(
            np.arange(len(bars)) + offset,
            rows["share"],
            0.37,
            yerr=errors_of(rows, "share"),
            **bar_look(look),
            error_kw=ERROR_BARS,
        )
    ax.set_xticks(range(len(bars)), [f"{entity}\nat {position}" for entity, position in bars])
    ax.set(ylim=(0, 1), ylabel="queries, in any cell", title=title)
    ax.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
    return ax


def head_heatmap(table: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """Layer × head, shaded by mean recovery, red towards the partner's answer.

    Args:
        table: rows layer, columns head (`ActivationPatching.heads()`).
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.9)
    top = max(float(np.nanmax(np.abs(table.to_numpy()))), 1e-9)
    width, height = size_of(ax)
    sns.heatmap(
        table.sort_index(ascending=False),
        ax=ax,
        cmap="vlag",
        vmin=-top,
        vmax=top,
        xticklabels=_every([int(head) for head in table.columns], width),
        yticklabels=_every([int(layer) for layer in table.index], height)[::-1],
        cbar_kws={"label": "mean recovery"},
    )
    ax.tick_params(rotation=0, length=2)
    ax.set(xlabel="head", ylabel="layer", title=title)
    return ax


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
    names = {
        "changed": "queries whose answer changes",
        "prediction_change": "change of log P(prediction), nats",
        "answer_change": "change of log P(answer), nats",
    }
    ax = axes_or_new(ax, 2.6)
    _edge_lines(ax, effect, "random", "as many random edges")
    _layer_axis(ax, "layer (middle of the window)", names[measure], title)
    if measure == "changed":
        _share_axis(ax)
    legend_below(ax)
    return ax


def _edge_lines(ax: Axes, effect: pd.DataFrame, control: str, label: str) -> None:
    """A coloured line for each edge; its control is dotted grey with marks of the edge's colour."""
    colors = color_of_each(effect["edge"])
    for edge in colors:
        rows = effect[(effect["edge"] == edge) & (effect["control"] == control)]
        _line(ax, rows, "effect", GREY, ":", None, mark=colors[edge])
    for edge, color in colors.items():
        rows = effect[(effect["edge"] == edge) & (effect["control"] == "none")]
        _line(ax, rows, "effect", color, "-", edge.replace("->", " → "))
    if (effect["control"] == control).any():
        ax.plot([], [], ":", color=GREY, marker="o", ms=2.2, mfc="none", label=label)


TARGET_STYLES = {
    "e2": (BLUE, "-", "bridge e2"),
    "e3": (VERMILION, "-", "answer e3"),
    "prediction": (BLACK, "-", "prediction"),
    "e2_other": (GREY, "--", "another bridge"),
    "e3_other": (GREY, ":", "another answer"),
}
SITE_LABELS = {"attn_out": "attention", "mlp_out": "MLP", "resid_post": "residual", "z": "heads"}


def projection_lines(
    by_layer: pd.DataFrame, ax: Axes | None = None, title: str = "", site: str | None = None
) -> Axes:
    """Share of queries in which a sublayer's output resolves each target, by layer.

    Args:
        by_layer: `Projection.by_layer()` at one position.
        ax: where to draw.
        title: of the axes.
        site: the sublayer; the first one if None.
    """
    ax = axes_or_new(ax, 2.4)
    site = str(by_layer["site"].iloc[0]) if site is None else site
    here = by_layer[by_layer["site"] == site]
    for target, (color, dash, label) in TARGET_STYLES.items():
        _line(ax, here[here["target"] == target], "share", color, dash, label)
    named = SITE_LABELS.get(site, site)
    _layer_axis(ax, "layer", "queries that resolve it", f"{named} at {title}" if title else named)
    _share_axis(ax)
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
    colors = {1: BLUE, 2: GREEN, 3: PINK, 4: VERMILION}
    labels = []
    for place, row in enumerate(summary.to_dict("records")):
        color = colors[row["number"]]
        layers = frame.loc[frame["stage"] == row["stage"], "first_layer"].dropna().to_numpy()
        ax.plot(layers, place + _spread(layers), "o", ms=3.5, mew=0, color=color, alpha=0.45)
        ax.plot([row["low"], row["high"]], [place, place], "-", color=color, lw=2)
        ax.plot(row["mean"], place, "D", ms=6, color=color, mec="white", mew=0.8)
        stage = row["stage"].replace("->", " → ")
        labels.append(f"{row['number']}  {stage}\n{row['n']} of {row['queries']} queries")
    ax.set_yticks(range(len(summary)), labels)
    ax.set_ylim(len(summary) - 0.5, -0.5)
    ax.set(xlabel="first layer", title=title)
    ax.grid(axis="x", color=FAINT, lw=0.6)
    ax.set_axisbelow(True)
    return ax


def _spread(layers: np.ndarray, width: float = 0.34) -> np.ndarray:
    """Offsets that set apart dots of the same layer."""
    offsets = np.zeros(len(layers))
    for layer in np.unique(layers):
        same = np.flatnonzero(layers == layer)
        step = min(0.09, width / max(len(same), 1))
        offsets[same] = (np.arange(len(same)) - (len(same) - 1) / 2) * 2 * step
    return offsets


SITE_DASHES = {"resid_post": "-", "attn_out": "--", "mlp_out": "-."}


def recovery_lines(summary: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """Recovery by layer: colours for positions, dashes for sites; the control in grey.

    Args:
        summary: `ActivationPatching.summary()` without heads.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.6)
    control = summary[(summary["control"] == "random") & (summary["site"] == "resid_post")]
    groups = control.groupby("position", sort=False)
    for (position, rows), dash in zip(groups, cycle((":", "--", "-.")), strict=False):
        _line(ax, rows, "recovery", GREY, dash, f"random residual, {position}")
    _by_position_and_site(ax, summary[summary["control"] == "none"], "recovery")
    _layer_axis(ax, "layer", "recovery of the partner's answer", title)
    legend_below(ax)
    return ax


def tracing_lines(summary: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """The average indirect effect by layer: colours for positions, dashes for sites.

    Args:
        summary: `Tracing.summary()`.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.6)
    _by_position_and_site(ax, summary, "effect")
    _layer_axis(ax, "layer (middle of the window)", "average indirect effect", title)
    legend_below(ax)
    return ax


def recall_lines(summary: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """How often the bridge is recalled better than in a substituted question, by layer.

    Args:
        summary: `Recall.summary()`.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.4)
    labels = {"e1": "another source entity", "r1": "another first relation"}
    for substitute, color in color_of_each(summary["substitute"]).items():
        rows = summary[summary["substitute"] == substitute]
        _line(ax, rows, "share", color, "-", labels.get(substitute, substitute))
    ax.axhline(0.5, color=GREY, lw=0.8, ls=":")
    _layer_axis(ax, "layer", "queries with better recall", title)
    _share_axis(ax)
    ax.legend(loc="best")
    return ax


def probe_lines(scores: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """Held-out accuracy of a probe by layer, with the control task and the largest class.

    Args:
        scores: `Probing.summary()`.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.4)
    styles = {
        "accuracy": (BLUE, "-", "new questions"),
        "new_entities": (GREEN, "-", "new source entities"),
        "control": (GREY, "--", "control task (random labels)"),
        "majority": (GREY, ":", "largest class"),
    }
    for what, (color, dash, label) in styles.items():
        _line(ax, scores[scores["what"] == what], "score", color, dash, label)
    _layer_axis(ax, "layer", "held-out accuracy", title)
    _share_axis(ax)
    legend_below(ax)
    return ax


def _by_position_and_site(ax: Axes, table: pd.DataFrame, value: str) -> None:
    for position, color in color_of_each(table["position"]).items():
        for site, dash in SITE_DASHES.items():
            rows = table[(table["position"] == position) & (table["site"] == site)]
            _line(ax, rows, value, color, dash, f"{SITE_LABELS[site]}, {position}")


def _line(
    ax: Axes,
    rows: pd.DataFrame,
    value: str,
    color: str,
    dash: str,
    label: str | None,
    mark: str | None = None,
) -> None:
    """One line over layers, with its interval as a band; dotted ones have none."""
    if rows.empty:
        return
    layers, middle, low, high = (
        rows[name].to_numpy(dtype=float) for name in ("layer", value, "low", "high")
    )
    marks: dict[str, Any] = {}
    if mark is not None:
        every = max(1, len(layers) // 10)
        marks = {"marker": "o", "ms": 2.2, "mfc": mark, "mec": mark, "markevery": every}
    ax.plot(layers, middle, dash, color=color, lw=1.2, label=label, **marks)
    if dash != ":":
        ax.fill_between(layers, low, high, color=color, alpha=0.12, lw=0)


def _layer_axis(ax: Axes, x: str, y: str, title: str) -> None:
    ax.set(xlabel=x, ylabel=y, title=title)
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))


def _share_axis(ax: Axes) -> None:
    ax.set_ylim(-0.02, 1.02)
    ax.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))


LABEL = 0.22
"""The room of a layer's label along an axis, in inches."""


def _every(layers: list[int], inches: float) -> list[str]:
    """Labels of layers, so many left out that they do not touch."""
    most = max(2, int(inches * TEXT_SIZE / text_size() / LABEL))
    step = -(-len(layers) // most)
    return [str(layer) if index % step == 0 else "" for index, layer in enumerate(sorted(layers))]


def grading_bars(summary: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """Share of queries that pass each form, and that fall into each subset.

    Args:
        summary: `Grading.summary()`.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.6)
    table = summary.set_index("what").loc[list(FORM_LABELS)].reset_index()
    colors = [BLUE] * 3 + [GREY] * 2 + [SKY] + [GREEN, VERMILION]
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
    ax.set_yticks(places, [FORM_LABELS[name] for name in table["what"]])
    ax.invert_yaxis()
    ax.set(xlim=(0, 1), xlabel=f"share of {int(table['n'].iloc[0])} queries", title=title)
    ax.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
    return ax


MASK_COLORS = ("#F4F4F4", BLUE)


_Part = tuple[int, int, str]
"""The first token of a part, the one after its last, and its name."""
_TURN = 40
"""By how many degrees the names below a mask are turned."""


def mask_grid(seen: np.ndarray, layout: Layout, ax: Axes | None = None, title: str = "") -> Axes:
    """Who sees whom: a row for each token that looks, a column for each that is seen.

    Args:
        seen: booleans of shape (query, key).
        layout: the prompt, whose parts are named along both sides.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.9)
    colors = mpl.colors.ListedColormap(MASK_COLORS)
    ax.imshow(seen, cmap=colors, vmin=0, vmax=1, interpolation="nearest", aspect="equal")
    named = zip(layout.segments, layout.segment_names, strict=True)
    parts = [(a, b, name) for (a, b), name in named if b > a]
    length = min(ax.bbox.width, ax.bbox.height)  # a square, once it is drawn
    turned = _apart(parts, len(seen), length * math.sin(math.radians(_TURN)), ax)
    ax.set_xticks(*_middles(turned), rotation=_TURN, ha="right", rotation_mode="anchor")
    ax.set_yticks(*_middles(_apart(parts, len(seen), length, ax)))
    ax.tick_params(length=0)
    for start, _, _ in parts[1:]:
        ax.axhline(start - 0.5, color="white", lw=0.8)
        ax.axvline(start - 0.5, color="white", lw=0.8)
    ax.set(title=title)
    for side in ax.spines.values():
        side.set_visible(False)
    return ax


def _middles(parts: Sequence[_Part]) -> tuple[list[float], list[str]]:
    """Where parts are named, and their names."""
    return [(a + b - 1) / 2 for a, b, _ in parts], [name for _, _, name in parts]


def _apart(parts: Sequence[_Part], n: int, pixels: float, ax: Axes) -> list[_Part]:
    """The parts that can be named along n tokens without touching.

    Those that answer come before other documents, and longer ones before shorter ones.
    """
    points = pixels * 72 / ax.figure.dpi
    room = 1.15 * text_size() * n / points
    told: list[_Part] = []
    for part in sorted(parts, key=lambda each: (each[2].startswith("document"), each[0] - each[1])):
        if all(abs(sum(part[:2]) - sum(each[:2])) / 2 >= room for each in told):
            told.append(part)
    return sorted(told)


MASK_STYLES = {
    "causal": (BLUE, "o", "causal"),
    "document_block": (ORANGE, "s", "document block"),
    "document_block_instruction": (PINK, "P", "document block, instruction seen"),
    "document_bidirectional": (GREEN, "^", "bidirectional in documents"),
    "prefix_bidirectional": (VERMILION, "D", "bidirectional prefix"),
}


def order_points(accuracy: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """Accuracy by order of the documents; a colour and a mark for each mask (and way).

    Args:
        accuracy: `Permutation.accuracy()`.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.6)
    orders = list(dict.fromkeys(accuracy["order"]))
    groups = list(accuracy.groupby(["mask", "permuting"], sort=False))
    several = accuracy["permuting"].nunique() > 1
    for index, ((mask, way), rows) in enumerate(groups):
        color, mark, label = _mask_style(str(mask), index)
        label = f"{label}, by {way}" if several else label
        places = [orders.index(order) for order in rows["order"]]
        shift = (index - (len(groups) - 1) / 2) * min(0.16, 0.7 / len(groups))
        ax.errorbar(
            np.array(places) + shift,
            rows["accuracy"],
            yerr=errors_of(rows, "accuracy"),
            fmt=mark,
            color=color,
            ms=5,
            elinewidth=1,
            capsize=2,
            label=label,
        )
    ax.set_xticks(range(len(orders)), [order.replace("_", " ") for order in orders])
    if len(orders) > 6:
        ax.tick_params(axis="x", rotation=40)
    ax.set(ylabel="questions answered", title=title, xlim=(-0.5, len(orders) - 0.5))
    top = max(0.1, min(1.0, float(accuracy["high"].max()) * 1.08))
    ax.set_ylim(-0.03 * top, top)
    ax.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
    ax.grid(axis="y", color=FAINT, lw=0.6)
    ax.set_axisbelow(True)
    legend_below(ax, gap=0.5 if len(orders) > 6 else 0.22)
    return ax


def _mask_style(mask: str, index: int) -> tuple[str, str, str]:
    others = (SKY, BLACK, PINK)
    return MASK_STYLES.get(mask, (others[index % len(others)], "v", mask))


ANSWER_COLORS = {True: GREEN, False: VERMILION}


def peak_strips(
    peaks: pd.DataFrame, compare: pd.DataFrame, ax: Axes | None = None, title: str = ""
) -> Axes:
    """The peaks of right and of wrong answers by order: a dot a question, a bar at the median.

    Args:
        peaks: `DocumentAttention.peaks()`.
        compare: `DocumentAttention.compare()`.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.6)
    labels = []
    for place, row in enumerate(compare.to_dict("records")):
        here = peaks[(peaks["order"] == row["order"]) & (peaks["mask"] == row["mask"])]
        for right, side in ((True, 0.18), (False, -0.18)):
            values = here.loc[here["correct"] == right, "peak"].to_numpy()
            color, x = ANSWER_COLORS[right], place - side
            jitter = np.linspace(-0.1, 0.1, len(values)) if len(values) > 1 else np.zeros(1)
            ax.plot(x + jitter[: len(values)], values, "o", ms=3.5, mew=0, color=color, alpha=0.5)
            if len(values):
                ax.plot([x - 0.14, x + 0.14], [np.median(values)] * 2, "-", color=color, lw=2.2)
        several = compare["mask"].nunique() > 1
        named = f"\n{row['mask'].replace('_', ' ')}" if several else ""
        auc = "" if np.isnan(row["auc"]) else f"\nAUC {row['auc']:.2f}"
        counts = f"{row['right']} right, {row['wrong']} wrong"
        labels.append(f"{row['order'].replace('_', ' ')}{named}\n{counts}{auc}")
    for right, label in ((True, "right answer"), (False, "wrong answer")):
        ax.plot([], [], "o", color=ANSWER_COLORS[right], label=label)
    ax.set_xticks(range(len(labels)), labels)
    ax.set(ylabel="peak attention to a document", title=title, xlim=(-0.5, len(labels) - 0.5))
    legend_below(ax, gap=0.48)
    return ax


HOP_STYLES = {1: (BLUE, "first hop"), 2: (VERMILION, "second hop"), 0: (GREY, "others")}


def hop_lines(by_layer: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """Attention to the documents of each hop by block: full for right answers, dashed for wrong.

    Args:
        by_layer: `DocumentAttention.by_layer()` of one order and mask.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.4)
    for right, dash in ((True, "-"), (False, "--")):
        for hop in sorted(set(by_layer["hop"]), key=lambda number: (number == 0, number)):
            color, name = HOP_STYLES.get(hop, (GREEN, f"hop {hop}"))
            rows = by_layer[(by_layer["hop"] == hop) & (by_layer["correct"] == right)]
            label = f"{name}, {'right' if right else 'wrong'} answer"
            _line(ax, rows, "mass", color, dash, label)
    _layer_axis(ax, "layer", "attention to one document", title)
    ax.set_ylim(bottom=0)
    legend_below(ax)
    return ax


STRATEGY_LABELS = {
    "mean": "a random\nshuffle",
    "peak": "highest\npeak",
    "majority": "majority\nvote",
    "oracle": "any is right\n(oracle)",
}


def strategy_points(summary: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """Accuracy by how one of several shuffles is chosen; the oracle in grey.

    Args:
        summary: `OrderChoice.summary()`.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.6)
    colors = [BLACK, BLUE, GREEN, GREY]
    for place, row in enumerate(summary.to_dict("records")):
        low, high = (np.nan_to_num(row[end], nan=row["accuracy"]) for end in ("low", "high"))
        ax.plot([place, place], [low, high], "-", color=colors[place], lw=1.2)
        ax.plot(place, row["accuracy"], "o", ms=6, color=colors[place])
    ax.set_xticks(range(len(summary)), [STRATEGY_LABELS[each] for each in summary["strategy"]])
    ax.set(ylabel="questions answered", title=title, xlim=(-0.5, len(summary) - 0.5))
    ax.set_ylim(bottom=min(0, *ax.get_ylim()))
    ax.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
    return ax


def path_lines(
    effect: pd.DataFrame, ax: Axes | None = None, title: str = "", measure: str = "changed"
) -> Axes:
    """What blocking each edge does, by block; the same edge to a distractor dotted.

    Args:
        effect: `MaskedPaths.effect()`.
        ax: where to draw.
        title: of the axes.
        measure: which measure it is of.
    """
    ax = axes_or_new(ax, 2.6)
    _edge_lines(ax, effect, "distractor", "to a distractor instead")
    names = {
        "changed": "answers that change",
        "lost": "right answers that are lost",
        "answer_change": "change of log P(answer), nats",
    }
    _layer_axis(ax, "layer (middle of the window)", names[measure], title)
    if measure != "answer_change":
        _share_axis(ax)
    legend_below(ax)
    return ax


SUBSET_TITLES = {
    "incorrect": "both hops right, composition wrong",
    "correct": "composition right",
    "all": "all queries",
    "documents": "questions over documents",
}


def title_of(result: Any, what: str) -> str:
    """The title of a figure: what it shows, of which model, on which queries."""
    run = result.run
    return f"{what}: {run['model']['name']} on “{run['queries']['name']}”"


def panel_title(result: Any, subset: str) -> str:
    """The title of a panel: the subset, and its number of queries."""
    n = result.details["query"].nunique()
    return f"{SUBSET_TITLES.get(subset, subset)} (n = {n})"


def summary_panels(
    results: Mapping[str, Any],
    lines: Callable[[pd.DataFrame, Axes, str], Axes],
    title: str,
    *,
    height: float = 3.0,
    shared: bool = False,
) -> tuple[Figure, pd.DataFrame]:
    """A figure with the summary of each subset's result, side by side.

    Args:
        results: by subset.
        lines: draws a summary.
        title: what the figure shows.
        height: in inches.
        shared: one y axis and one legend for all.

    Returns:
        The figure, and the numbers that it draws.
    """
    figure, axes = panels(1, len(results), height, sharey=shared)
    numbers = []
    for ax, (subset, result) in zip(axes[0], results.items(), strict=True):
        summary = result.summary()
        lines(summary, ax, panel_title(result, subset))
        numbers.append(summary.assign(subset=subset))
    if shared:
        shared_legend(figure, axes)
    figure.suptitle(title_of(next(iter(results.values())), title))
    return figure, pd.concat(numbers, ignore_index=True)


def save_figure(figure: Figure, numbers: pd.DataFrame, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG and SVG, and the numbers that it draws as CSV.

    The same figure gives the same bytes: no date, no random ids. Each file is written beside its
    place and renamed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{suffix}" for suffix in ("png", "svg", "csv")]
    for path in paths:
        beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
        if path.suffix == ".csv":
            numbers.to_csv(beside, index=False, float_format="%.6g", lineterminator="\n")
        else:
            metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
            figure.savefig(beside, metadata=metadata)
        os.replace(beside, path)
    return paths
