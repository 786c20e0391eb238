"""Draws the claims of Hopping Too Late, each beside its control: from saved results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes

from hopscope.errors import NoResultError
from hopscope.experiments.registry import REGISTERED
from hopscope.experiments.two_hop.attention_knockout import Knockouts
from hopscope.experiments.two_hop.back_patching import BackPatching
from hopscope.experiments.two_hop.description import Description
from hopscope.experiments.two_hop.projection import Projection
from hopscope.plots.figures import SUBSET_TITLES, Drawn
from hopscope.plots.style import (
    BLUE,
    FAINT,
    GREY,
    VERMILION,
    difference_mark,
    panels,
    shared_legend,
)
from hopscope.queries.query import ENTITIES, POSITIONS
from hopscope.results.result import Result
from hopscope.results.run_folder import is_run
from hopscope.results.wording import CONTROL_NAMES, entity_name
from hopscope.statistics import holm, mean_interval, paired
from hopscope.study.figures import figure_script, main
from hopscope.study.study import COMPOSED

LOOKS = {"correct": (BLUE, "o"), "incorrect": (VERMILION, "s")}
STEPS = COMPOSED["claims"]
SUBSETS: Mapping[str, tuple[str, ...]] = {"back_patching": ("incorrect",)}
"""Of what is not read of all: some cell nearly always keeps an answer that is right already."""
Rows = Iterator[tuple[str, str, pd.DataFrame]]
"""What is claimed, its control, and a table with a column of each, one row a query."""


def load(runs: Path) -> dict[tuple[str, str], Result]:
    """The results that lie in a folder of runs, by analysis and subset.

    Raises:
        NoResultError: if there is none.
    """
    found = {
        (step, subset): REGISTERED[step].result.load(runs / f"{step}.{subset}")
        for step in STEPS
        for subset in SUBSETS.get(step, tuple(LOOKS))
        if is_run(runs / f"{step}.{subset}")
    }
    if not found:
        raise NoResultError(f"{runs} holds none of {', '.join(STEPS)}: run `hopscope study`")
    return found


@figure_script("claims", load)
def draw(results: Mapping[tuple[str, str], Result]) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
    rows = [
        {"claim": claim, "control": control, "subset": subset, **_compared(table)}
        for (_, subset), result in results.items()
        for claim, control, table in READ[type(result)](result)
    ]
    table = pd.DataFrame(rows)
    table["p_holm"] = holm(table["p"].to_numpy(dtype=float))
    claims = list(dict.fromkeys(zip(table["claim"], table["control"], strict=True)))
    figure, axes = panels(1, 1, 0.9 + 0.33 * len(claims))
    _forest(axes[0][0], table, claims)
    shared_legend(figure, axes)
    run = next(iter(results.values())).run
    name, queries = run["model"]["name"], run["queries"]["name"]
    figure.suptitle(f"The claims of Hopping Too Late: {name} on “{queries}”")
    return figure, table


def _forest(ax: Axes, table: pd.DataFrame, claims: list[tuple[str, str]]) -> None:
    """Differences in points, a line for each claim; a filled mark is told apart from zero."""
    for index, (subset, (color, mark)) in enumerate(LOOKS.items()):
        here = table[table["subset"] == subset]
        if here.empty:
            continue
        n = int(here["n"].max())
        ax.plot([], [], mark, color=color, ms=4, label=f"{SUBSET_TITLES[subset]} (n ≤ {n})")
        for row in here.to_dict("records"):
            place = claims.index((row["claim"], row["control"])) + (index - 0.5) * 0.34
            difference_mark(ax, place, row, mark, color, across=True)
            ax.annotate(
                f"{row['own']:.0%} against {row['base']:.0%}",
                (1.01, place),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=mpl.rcParams["ytick.labelsize"],
                color=color,
            )
    ax.axvline(0, color=GREY, lw=0.8, zorder=0)
    ax.set_yticks(range(len(claims)), [f"{claim}\nover {control}" for claim, control in claims])
    ax.set_ylim(len(claims) - 0.4, -0.6)
    ax.grid(axis="x", color=FAINT, lw=0.6)
    ax.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0, symbol=""))
    ax.set_xlabel("share of queries, less that of the control (points)")


def _compared(table: pd.DataFrame) -> dict[str, Any]:
    """How many queries show what is claimed, how many the control, and the paired difference."""
    table = table[["own", "base"]].dropna().astype(bool)
    shares: dict[str, float] = {}
    for name in ("own", "base"):
        ends = (name, f"{name}_low", f"{name}_high")
        shares |= dict(zip(ends, mean_interval(table[name].to_numpy()), strict=True))
    return {**shares, **paired(table["base"].to_numpy(), table["own"].to_numpy())}


def _described(result: Description) -> Rows:
    """Whether some cell names an entity, and another query's."""
    for entity, position in result.places():
        name = entity_name(entity, len(result.entities) - 1)
        pair = {
            "own": result.first_layers(entity, position).notna(),
            "base": result.first_layers(f"{entity}_other", position).notna(),
        }
        yield f"The {name} is described at {position}", f"another {name}", pd.DataFrame(pair)


def _blocked(result: Knockouts) -> Rows:
    """Whether blocking an edge in some window changes what is said, and random edges."""
    half = (int(result.frame["layer"].max()) + 1) / 2
    for edge, early in product(_steps(result), (True, False)):
        rows = result.frame[result.frame["edge"] == edge]
        rows = rows[(rows["layer"] < half) == early]
        wide = rows.pivot_table(
            index="query", columns="control", values="changed", aggfunc="any", sort=False
        ).reindex(columns=["none", "random"])
        arrow = edge.replace("->", " → ")
        where = "early" if early else "late"
        claim = f"Blocking {arrow} in {where} layers changes the answer"
        yield claim, "random edges", wide.rename(columns={"none": "own", "random": "base"})


def _steps(result: Knockouts) -> list[str]:
    """The edges along which a chain is solved: from the source to each hop's end, in turn."""
    wanted = ["t1->e1", *(f"{later}->{earlier}" for earlier, later in pairwise(POSITIONS))]
    return [edge for edge in wanted if edge in set(result.frame["edge"])]


def _projected(result: Projection) -> Rows:
    """Whether an entity is a sublayer's likeliest token in some layer, and another query's."""
    n, last = result.n_hops, f"t{result.n_hops}"
    for target, site, words in (
        *((each, "attn_out", "Attention") for each in ENTITIES[1:n]),
        (ENTITIES[n], "mlp_out", "An MLP"),
    ):
        pair = {
            name: result.first_layers(each, last, site).notna()
            for name, each in (("own", target), ("base", f"{target}_other"))
        }
        name = entity_name(target, n)
        yield f"{words} at {last} has the {name}", f"another {name}", pd.DataFrame(pair)


def _repaired(result: BackPatching) -> Rows:
    """Whether some cell of back-patching has the answer, and those of the controls."""
    for position in (each for each in POSITIONS if each in set(result.frame["position"])):
        here = result.repaired().query("position == @position")
        wide = here.pivot_table(index="query", columns="control", values="hit", aggfunc="any")
        for control in (name for name in CONTROL_NAMES if name in wide):
            pair = wide[["none", control]].set_axis(["own", "base"], axis=1)
            yield f"Back-patching {position} has the answer", CONTROL_NAMES[control], pair


READ: Mapping[type[Result], Callable[[Any], Rows]] = {
    Description: _described,
    Knockouts: _blocked,
    Projection: _projected,
    BackPatching: _repaired,
}


if __name__ == "__main__":
    main(draw)
