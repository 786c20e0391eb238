"""Provides the pictures of questions over documents: masks, orders, attention, paths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from hopscope.plots.lines import BAND, Whiskers, edge_effects, layer_axis, layer_line
from hopscope.plots.style import (
    BLACK,
    BLUE,
    FAINT,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    VERMILION,
    axes_or_new,
    errors_of,
    legend_below,
)

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
    top = max(0.1, 1.08 * float(np.nanmax(accuracy[["accuracy", "high"]].to_numpy(dtype=float))))
    ax.set_ylim(-0.03 * top, top)
    ax.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
    ax.grid(axis="y", color=FAINT, lw=0.6)
    ax.set_axisbelow(True)
    legend_below(ax, gap=0.5 if len(orders) > 6 else 0.22)
    return ax


def _mask_style(mask: str, index: int) -> tuple[str, str, str]:
    others = (SKY, BLACK, PINK)
    return MASK_STYLES.get(mask, (others[index % len(others)], "v", mask))


PEAK = "peak attention to a document\n(weight, sum over layers)"
ANSWER_COLORS = {True: GREEN, False: VERMILION}
ANSWER_MARKS = {True: "o", False: "D"}
ANSWER_SIDES = {True: -0.18, False: 0.18}
"""Where right and wrong answers stand beside the place of an order."""


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
        for right, side in ANSWER_SIDES.items():
            values = here.loc[here["correct"] == right, "peak"].to_numpy()
            color, mark, x = ANSWER_COLORS[right], ANSWER_MARKS[right], place + side
            jitter = np.linspace(-0.1, 0.1, len(values)) if len(values) > 1 else np.zeros(1)
            ax.plot(x + jitter[: len(values)], values, mark, ms=3.5, mew=0, color=color, alpha=0.5)
            if len(values):
                ax.plot([x - 0.14, x + 0.14], [np.median(values)] * 2, "-", color=color, lw=2.2)
        several = compare["mask"].nunique() > 1
        named = f"\n{row['mask'].replace('_', ' ')}" if several else ""
        auc = "" if np.isnan(row["auc"]) else f"\nAUC {row['auc']:.2f}"
        counts = f"{row['right']} right, {row['wrong']} wrong"
        labels.append(f"{row['order'].replace('_', ' ')}{named}\n{counts}{auc}")
    for right, label in ((True, "right answer"), (False, "wrong answer")):
        ax.plot([], [], ANSWER_MARKS[right], ms=4, color=ANSWER_COLORS[right], label=label)
    ax.set_xticks(range(len(labels)), labels)
    ax.set(ylabel=PEAK, title=title, xlim=(-0.5, len(labels) - 0.5))
    legend_below(ax, gap=0.48)
    return ax


HOP_STYLES = {1: (BLUE, "first hop"), 2: (VERMILION, "second hop"), 0: (GREY, "others")}


def hops_of(table: pd.DataFrame) -> list[int]:
    """The hops whose documents a table has, in their order; 0, the other documents, comes last."""
    return sorted(set(table["hop"]), key=lambda hop: (hop == 0, hop))


def hop_lines(by_layer: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """Attention to the documents of each hop by block: full for right answers, dashed for wrong.

    Of one hop alone, the interval of right answers is a band.

    Args:
        by_layer: `DocumentAttention.by_layer()` of one order and mask.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.4)
    hops = hops_of(by_layer)
    of_right = BAND if len(hops) == 1 else None
    for right, dash, interval in ((True, "-", of_right), (False, "--", Whiskers())):
        for hop in hops:
            color, name = HOP_STYLES.get(hop, (GREEN, f"hop {hop}"))
            rows = by_layer[(by_layer["hop"] == hop) & (by_layer["correct"] == right)]
            label = f"{name}, {'right' if right else 'wrong'} answer"
            layer_line(ax, rows, "mass", color, dash, label, of_right and interval)
    layer_axis(ax, "layer", "attention to one document", title)
    top = np.nanmax(by_layer[["mass", "high"]].to_numpy(dtype=float))
    ax.set_ylim(0, max(1.05 * float(top), ax.get_ylim()[1]))
    ax.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
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


PATH_LABELS = {
    "changed": "answers that change",
    "lost": "right answers that are lost",
    "answer_change": "change of log P(answer), nats",
}
"""What each measure of a masked path is, with its unit."""


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
    return edge_effects(
        effect, ax, title, "distractor", "to a distractor instead", PATH_LABELS[measure]
    )


RETRIEVER_STYLES = {
    "bm25": (BLUE, "o"),
    "dense": (GREEN, "^"),
    "ppr": (VERMILION, "s"),
    "random": (GREY, "D"),
}
"""Colour and mark of each retriever; random distractors are a control."""
SCORE_LABELS = {"f1": "largest F1", "answer_logprob": "log P(answer), nats"}


def retriever_styles(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and mark of each retriever, in the order of first appearance."""
    others = iter((PINK, ORANGE, SKY, BLACK) * 9)
    return {
        name: RETRIEVER_STYLES.get(name) or (next(others), "v") for name in dict.fromkeys(names)
    }


def retriever_points(
    accuracy: pd.DataFrame, ax: Axes | None = None, title: str = "", measure: str = ""
) -> Axes:
    """Answers by order, a colour for each retriever; a grey line at the gold documents alone.

    Args:
        accuracy: `Haystacks.accuracy()`.
        ax: where to draw.
        title: of the axes.
        measure: what the numbers are; shares of questions unless it is `answer_logprob`.
    """
    ax = axes_or_new(ax, 2.6)
    alone = accuracy[accuracy["retriever"] == "gold alone"]
    found = accuracy[accuracy["retriever"] != "gold alone"]
    for row in alone.to_dict("records"):
        ax.axhspan(row["low"], row["high"], color=FAINT, lw=0, zorder=0)
        ax.axhline(row["accuracy"], color=BLACK, ls="--", lw=1, label="gold alone")
    _by_order(ax, found, "accuracy")
    ax.set(ylabel=SCORE_LABELS.get(measure, "questions answered"), title=title)
    if measure != "answer_logprob":
        ax.set_ylim(bottom=min(0, *ax.get_ylim()))
        ax.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
    legend_below(ax, gap=0.5)
    return ax


def _by_order(ax: Axes, rows: pd.DataFrame, value: str) -> None:
    """Draw a point with its interval for each order (and mask) and retriever."""
    keys = list(dict.fromkeys(zip(rows["order"], rows["mask"], strict=True)))
    styles = retriever_styles(rows["retriever"])
    for index, (name, (color, mark)) in enumerate(styles.items()):
        own = rows[rows["retriever"] == name]
        shift = (index - (len(styles) - 1) / 2) * min(0.16, 0.7 / len(styles))
        places = [keys.index(key) for key in zip(own["order"], own["mask"], strict=True)]
        errors = errors_of(own, value)
        at = np.array(places) + shift
        ax.errorbar(at, own[value], errors, None, mark, color=color, ms=4, label=name, **_BARS)
    labels = [_order_label(order, mask) for order, mask in keys]
    ax.set_xticks(range(len(keys)), labels)
    ax.set_xlim(-0.5, len(keys) - 0.5)
    ax.grid(axis="y", color=FAINT, lw=0.6)
    ax.set_axisbelow(True)


_BARS: Mapping[str, Any] = {"elinewidth": 0.8, "capsize": 1.5}


def _order_label(order: str, mask: str) -> str:
    return "no order" if mask == "document_block" else order.replace("_", " ")


def retriever_gains(gains: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """How much each retriever changes the answer against another, by order.

    Args:
        gains: `Haystacks.compare(measure="answer_logprob")`.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.6)
    _by_order(ax, gains[gains["retriever"] != "gold alone"], "difference")
    ax.axhline(0, color=GREY, lw=0.8, zorder=0)
    base = gains["base"].iloc[0] if len(gains) else "random"
    ax.set(ylabel=f"log P(answer) less {base}, nats", title=title)
    legend_below(ax, gap=0.5)
    return ax


def rank_lines(attention: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """The attention to a distractor by its rank, a line for each retriever; gold at the left.

    Args:
        attention: `Haystacks.attention_by_rank()` of one order and mask.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.6)
    most = attention.groupby("retriever")["n"].transform("max")
    attention = attention[attention["n"] == most]  # ranks that every question has
    styles = retriever_styles(attention["retriever"])
    for index, (name, (color, mark)) in enumerate(styles.items()):
        rows = attention[attention["retriever"] == name]
        gold, rows = rows[rows["rank"] == 0], rows[rows["rank"] > 0]
        ax.plot(rows["rank"], rows["ic"], "-", marker=mark, ms=3, color=color, lw=1.2, label=name)
        some = Whiskers(index, len(styles)).some(len(rows))
        ax.vlines(rows["rank"][some], rows["low"][some], rows["high"][some], color=color, lw=0.7)
        at = gold["rank"] + 0.15 * (index - (len(styles) - 1) / 2)
        ax.errorbar(at, gold["ic"], errors_of(gold, "ic"), None, mark, color=color, ms=4, **_BARS)
    ax.set(xlabel="rank of the distractor", ylabel="attention to it (IC)", title=title)
    last = int(attention["rank"].max())
    ticks = [0, *range(1, last + 1, max(1, last // 8))]
    ax.set_xticks(ticks, ["gold", *map(str, ticks[1:])])
    ax.set_ylim(bottom=0)
    legend_below(ax)
    return ax


def cut_points(cuts: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """What blocking one distractor does, by retriever: the nearest filled, another one hollow.

    Args:
        cuts: `Haystacks.cuts()` of one order.
        ax: where to draw.
        title: of the axes.
    """
    ax = axes_or_new(ax, 2.6)
    styles = retriever_styles(cuts["retriever"])
    for place, (name, (color, mark)) in enumerate(styles.items()):
        for cut, shift in (("hardest", -0.12), ("other", 0.12)):
            rows = cuts[(cuts["retriever"] == name) & (cuts["cut"] == cut)]
            at, errors = [place + shift] * len(rows), errors_of(rows, "effect")
            fill = color if cut == "hardest" else "white"
            look: dict[str, Any] = {"color": color, "mfc": fill, "ms": 4, **_BARS}
            ax.errorbar(at, rows["effect"], errors, None, mark, **look)
    for fill, label in ((BLACK, "the nearest distractor"), ("white", "another of its length")):
        ax.plot([], [], "o", color=BLACK, mfc=fill, ms=4, label=label)
    ax.axhline(0, color=GREY, lw=0.8, zorder=0)
    ax.set_xticks(range(len(styles)), list(styles))
    ax.set(ylabel=PATH_LABELS["answer_change"], title=title, xlim=(-0.5, len(styles) - 0.5))
    legend_below(ax)
    return ax
