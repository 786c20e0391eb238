"""Provides the pictures: tables in, matplotlib Axes out; nothing is computed here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
    edge_lines(ax, effect, "random", "as many random edges")
    layer_axis(ax, "layer (middle of the window)", names[measure], title)
    if measure == "changed":
        share_axis(ax)
    legend_below(ax)
    return ax


def edge_lines(ax: Axes, effect: pd.DataFrame, control: str, label: str) -> None:
    """A coloured line for each edge; its control is dotted grey with marks of the edge's colour."""
    colors = color_of_each(effect["edge"])
    for edge in colors:
        rows = effect[(effect["edge"] == edge) & (effect["control"] == control)]
        layer_line(ax, rows, "effect", GREY, ":", None, mark=colors[edge])
    for edge, color in colors.items():
        rows = effect[(effect["edge"] == edge) & (effect["control"] == "none")]
        layer_line(ax, rows, "effect", color, "-", edge.replace("->", " → "))
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
        layer_line(ax, here[here["target"] == target], "share", color, dash, label)
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
        layer_line(ax, rows, "recovery", GREY, dash, f"random residual, {position}")
    _by_position_and_site(ax, summary[summary["control"] == "none"], "recovery")
    layer_axis(ax, "layer", "recovery of the partner's answer", title)
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
    layer_axis(ax, "layer (middle of the window)", "average indirect effect", title)
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
        layer_line(ax, rows, "share", color, "-", labels.get(substitute, substitute))
    ax.axhline(0.5, color=GREY, lw=0.8, ls=":")
    layer_axis(ax, "layer", "queries with better recall", title)
    share_axis(ax)
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
        layer_line(ax, scores[scores["what"] == what], "score", color, dash, label)
    layer_axis(ax, "layer", "held-out accuracy", title)
    share_axis(ax)
    legend_below(ax)
    return ax


def _by_position_and_site(ax: Axes, table: pd.DataFrame, value: str) -> None:
    for position, color in color_of_each(table["position"]).items():
        for site, dash in SITE_DASHES.items():
            rows = table[(table["position"] == position) & (table["site"] == site)]
            layer_line(ax, rows, value, color, dash, f"{SITE_LABELS[site]}, {position}")


def layer_line(
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


def layer_axis(ax: Axes, x: str, y: str, title: str) -> None:
    """Name the axes of lines over layers."""
    ax.set(xlabel=x, ylabel=y, title=title)
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))


def share_axis(ax: Axes) -> None:
    """Let the y axis show shares, 0 to 1, in per cent."""
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
