"""Tests of plots.py: what is drawn is what the tables say, and the same bytes each time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from drawn import bands, lines, over_layers, ticks, values, whiskers
from known import RIGHT, made_grading
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.container import BarContainer
from matplotlib.patches import Rectangle

from hopscope.experiments.two_hop import plots
from hopscope.plots import figures, heatmaps, style
from hopscope.plots.lines import OWN_EDGE, edge_legend, edge_panels, lone_band, share_axis
from hopscope.plots.style import parts

RATES = pd.DataFrame(
    [
        ("t1", "none", 8, 0.5, 0.25, 0.75),
        ("t1", "other", 8, 0.25, 0.0, 0.5),
        ("t1", "random", 8, 0.125, 0.0, 0.375),
        ("t2", "none", 8, 1.0, 1.0, 1.0),
        ("t2", "other", 8, 0.75, 0.5, 1.0),
        ("t2", "random", 8, 0.0, 0.0, 0.0),
    ],
    columns=["position", "control", "n", "rate", "low", "high"],
)
SHARE = pd.DataFrame(
    [[0.25, 0.5, 0.0], [np.nan, 1.0, 0.75]],
    index=pd.Index([0, 1], name="target_layer"),
    columns=pd.Index([1, 2, 3], name="source_layer"),
)


@pytest.fixture(autouse=True)
def _closed_figures() -> object:
    yield
    plt.close("all")


def heights(container: BarContainer) -> list[float]:
    return [bar.get_height() for bar in container.patches]


def bars(ax: Axes) -> dict[str, BarContainer]:
    """The bars of each label."""
    found = [each for each in ax.containers if isinstance(each, BarContainer)]
    return {str(each.get_label()): each for each in found}


def spans(container: BarContainer) -> list[tuple[float, float]]:
    """The ends of each error bar."""
    assert container.errorbar is not None
    (lines,) = container.errorbar.lines[2]
    return [(float(ends[0, 1]), float(ends[1, 1])) for ends in lines.get_segments() if len(ends)]


def test_success_bars_are_the_rates() -> None:
    ax = plots.success_bars(RATES, title="twenty queries")
    drawn = bars(ax)
    assert heights(drawn["own later state"]) == [0.5, 1.0]
    assert heights(drawn["another query's state"]) == [0.25, 0.75]
    assert heights(drawn["random vector"]) == [0.125, 0.0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["t1", "t2"]
    assert ax.get_title() == "twenty queries"
    assert ax.get_ylim() == pytest.approx((-0.03, 1.03))


def test_a_share_axis_holds_whiskers_that_go_beyond_all_and_nothing() -> None:
    """Such as those of recovery, which is no share."""
    _, (left, right) = plt.subplots(1, 2, sharey=True)
    left.errorbar([0], [0.9], [[0.2], [0.5]])
    right.errorbar([0], [0.1], [[0.3], [0.1]])
    share_axis(right)
    for ax in (left, right):
        assert ax.get_ylim() == pytest.approx((-0.2 - 0.048, 1.4 + 0.048))
    across = plt.figure().subplots()
    share_axis(across, "x")
    assert across.get_xlim() == pytest.approx((-0.03, 1.03))


def test_success_bars_have_their_intervals() -> None:
    drawn = bars(plots.success_bars(RATES))
    assert spans(drawn["own later state"]) == [(0.25, 0.75), (1.0, 1.0)]
    assert spans(drawn["another query's state"]) == [(0.0, 0.5), (0.5, 1.0)]


def test_bars_stand_side_by_side() -> None:
    patches = [bar for each in bars(plots.success_bars(RATES)).values() for bar in each.patches]
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in patches)
    assert all(right <= left for (_, right), (left, _) in pairwise(edges))
    assert len({bar.get_facecolor() for bar in patches}) == 3


@pytest.mark.parametrize("controls", [["none"], ["none", "random"]])
def test_controls_that_were_not_run_take_no_place(controls: Sequence[str]) -> None:
    ax = plots.success_bars(RATES[RATES["control"].isin(controls)])
    assert len(bars(ax)) == len(controls)


def test_an_unknown_interval_is_drawn_as_none() -> None:
    one = RATES.head(1).assign(low=np.nan, high=np.nan)
    drawn = bars(plots.success_bars(one))["own later state"]
    assert heights(drawn) == [0.5]
    assert not spans(drawn)  # and not one of no width, with caps
    figure, ax = plt.subplots()
    row = {"difference": 0.5, "low": np.nan, "high": np.nan, "p_holm": 1.0}
    style.difference_mark(ax, 3, row, "s", style.BLUE)
    figure.draw_without_rendering()
    assert all(map(math.isfinite, ax.get_ylim()))


@pytest.mark.parametrize("across", [False, True])
def test_a_difference_is_filled_if_it_is_told_apart(across: bool) -> None:
    row = {"difference": 0.25, "low": 0.125, "high": 0.75, "p": 0.01, "p_holm": 0.04}
    axes = plt.figure().subplots(1, 2)
    for ax, p in zip(axes, (0.04, 0.06), strict=True):
        style.difference_mark(ax, 3, {**row, "p_holm": p}, "s", style.BLUE, across=across)
        (drawn,) = ax.containers
        mark, _, (interval,) = drawn.lines
        at, ends = [3, 0.25], [[3, 0.125], [3, 0.75]]
        assert mark.get_xydata().tolist() == [at[::-1] if across else at]
        found = [[each[::-1] for each in ends] if across else ends]
        assert [each.tolist() for each in interval.get_segments()] == found
        assert mark.get_markerfacecolor() == (style.BLUE if p < 0.05 else "white")


def test_an_axes_that_is_given_is_drawn_on() -> None:
    _, (left, right) = plt.subplots(1, 2)
    assert plots.success_bars(RATES, left) is left
    assert heatmaps.layer_heatmap(SHARE, right) is right


def test_grading_bars_are_the_summary() -> None:
    summary = made_grading(RIGHT).summary()
    ax = plots.grading_bars(summary)
    share = summary.set_index("what")["share"]
    widths = [bar.get_width() for bar in ax.patches if isinstance(bar, Rectangle)]
    assert widths == pytest.approx([share[name] for name in plots.FORM_LABELS])
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == list(plots.FORM_LABELS.values())
    counts = dict(zip(summary["what"], summary["right"], strict=True))
    shown = [text.get_text() for text in ax.texts]
    assert shown == [str(counts[name]) for name in plots.FORM_LABELS]
    assert ax.get_xlabel() == "share of 12 queries"
    assert ax.yaxis_inverted()  # the first hop on top


def mesh(ax: Axes) -> QuadMesh:
    found = next(each for each in ax.collections if isinstance(each, QuadMesh))
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]
    return found


def test_the_heatmap_has_sources_to_the_right_and_targets_upwards() -> None:
    ax = heatmaps.layer_heatmap(SHARE, title="t1")
    drawn: np.ndarray = np.ma.filled(np.ma.asarray(mesh(ax).get_array()), -1.0).reshape(2, 3)
    assert ax.yaxis_inverted()  # the first row is on top: the highest target
    assert drawn.tolist() == [[-1.0, 1.0, 0.75], [0.25, 0.5, 0.0]]
    assert ticks(ax.xaxis) == {0.5: "1", 1.5: "2", 2.5: "3"}
    assert ticks(ax.yaxis) == {0.5: "1", 1.5: "0"}
    assert (ax.get_xlabel(), ax.get_title()) == ("source layer (read)", "t1")


@pytest.mark.parametrize(("vmax", "top"), [(None, 1.0), (0.5, 0.5)])
def test_the_colours_end_where_asked(vmax: float | None, top: float) -> None:
    assert mesh(heatmaps.layer_heatmap(SHARE, vmax=vmax)).get_clim() == (0, top)


def test_a_heatmap_without_a_hit_is_drawn() -> None:
    low, high = mesh(heatmaps.layer_heatmap(SHARE * 0)).get_clim()
    assert low == 0 < high


def test_labels_of_many_layers_are_thinned_and_stay_right() -> None:
    layers = list(range(0, 60, 2))
    share = pd.DataFrame(0.0, index=layers[:-1], columns=layers[1:])
    ax = heatmaps.layer_heatmap(share)
    for axis, shown in ((ax.xaxis, layers[1:]), (ax.yaxis, layers[-2::-1])):
        named = ticks(axis)
        assert all(label == str(shown[int(place)]) for place, label in named.items())
        assert 5 <= len(named) <= 12


def test_a_row_of_heatmaps_shares_its_colours_and_one_colour_bar() -> None:
    figure = plt.figure()
    shares = {"own": SHARE, "control": SHARE / 4}
    axes = heatmaps.layer_heatmaps(figure, shares, 1.0, "queries answered")
    assert [ax.get_title() for ax in axes] == ["own", "control"]
    assert [mesh(ax).get_clim() for ax in axes] == [(0, 1), (0, 1)]
    assert np.nanmax(np.ma.filled(np.ma.asarray(mesh(axes[1]).get_array()), np.nan)) == 0.25
    assert len(figure.axes) == 3
    assert figure.axes[-1].get_ylabel() == "queries answered"
    drawn = [[tick.tick1line.get_visible() for tick in ax.yaxis.get_major_ticks()] for ax in axes]
    assert drawn == [[True, True], [False, False]]  # no tick without its label


def test_shares_that_may_be_missing_are_drawn() -> None:
    assert mesh(heatmaps.layer_heatmap(SHARE.astype("Float64"))).get_clim() == (0, 1)


def test_the_style_ends_with_its_context() -> None:
    before = dict(mpl.rcParams)
    with style.figure_style():
        assert mpl.rcParams["svg.hashsalt"] == "hopscope"
    assert dict(mpl.rcParams) == before


def draw(folder: Path) -> list[Path]:
    with style.figure_style():
        figure, axes = plt.subplots(1, 2, layout="constrained")
        plots.success_bars(RATES, axes[0])
        heatmaps.layer_heatmap(SHARE, axes[1])
        return figures.save_figure(figure, RATES, folder, "rates")


def test_a_figure_is_saved_with_its_numbers(tmp_path: Path) -> None:
    paths = draw(tmp_path / "deep" / "rendered")
    names = ["rates.png", "rates.svg", "rates.csv"]
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in (tmp_path / "deep" / "rendered").iterdir()) == sorted(names)
    pd.testing.assert_frame_equal(pd.read_csv(paths[2]), RATES)
    assert paths[0].read_bytes().startswith(b"\x89PNG")


def test_the_same_figure_has_the_same_bytes(tmp_path: Path) -> None:
    first = draw(tmp_path / "one")
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "pink", "svg.hashsalt": None}):
        second = draw(tmp_path / "two")
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
    assert b"<dc:date>" not in first[1].read_bytes()
    assert b"Software" not in first[0].read_bytes()


def test_a_figure_replaces_an_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "rates.svg").write_text("old")
    assert draw(tmp_path)[1].read_text().startswith("<?xml")


def test_numbers_are_written_short(tmp_path: Path) -> None:
    figure = plt.figure()
    numbers = pd.DataFrame({"a": [1 / 3, np.nan], "b": [1, 2]})
    path = figures.save_figure(figure, numbers, tmp_path, "n")[2]
    assert path.read_bytes() == b"a,b\n0.333333,1\n,2\n"


def test_knockout_lines() -> None:
    table = over_layers("effect", edge=["t2->t1", "t2->r1"], control=["none", "random"])
    ax = plots.knockout_lines(table, title="here")
    drawn = lines(ax)
    assert drawn.pop("as many random edges") == []
    assert drawn == {
        "t2 → t1": values(table, "effect", edge="t2->t1", control="none"),
        "t2 → r1": values(table, "effect", edge="t2->r1", control="none"),
    }
    assert len(ax.get_lines()) == 5  # both controls, and their entry in the legend
    assert not bands(ax)  # they would lie on each other
    own = table[table["control"] == "none"]
    for each, (_, rows) in zip(whiskers(ax), own.groupby("edge", sort=False), strict=True):
        ends = rows.set_index("layer")[["low", "high"]].T.to_dict("list")
        assert each
        assert each == {layer: tuple(ends[layer]) for layer in each}
    assert ax.get_ylabel() == "queries whose answer changes"
    assert ax.get_title() == "here"
    assert "nats" in plots.knockout_lines(table, measure="answer_change").get_ylabel()


def test_each_edge_is_beside_its_own_control() -> None:
    edges, controls = ["t2->t1", "t2->r1", "t1->e1"], ["none", "random"]
    table = over_layers("effect", edge=edges, control=controls).assign(n=12)
    table.loc[table["edge"] == "t1->e1", "n"] = 5
    effects = {"changed": table, "answer_change": table.assign(effect=-table["effect"])}
    figure, (part,) = parts(1, 3)
    axes = edge_panels(part, effects, plots.KNOCKOUT_LABELS, "random", "random edges")
    assert axes.shape == (2, 3)
    for row, effect in zip(axes, effects.values(), strict=True):
        for ax, edge in zip(row, edges, strict=True):
            drawn = lines(ax)
            assert drawn[OWN_EDGE] == values(effect, "effect", edge=edge, control="none")
            assert drawn["random edges"] == values(effect, "effect", edge=edge, control="random")
            (band,), (beside,) = bands(ax), whiskers(ax)
            assert band.get_facecolor()[0, :3] != pytest.approx(mpl.colors.to_rgb(style.GREY))
            control = effect[(effect["edge"] == edge) & (effect["control"] == "random")]
            for layer, (low, high) in beside.items():
                row = control[control["layer"] == layer].iloc[0]
                assert (low, high) == (row["low"], row["high"])
    assert [ax.get_title() for ax in axes[0]] == [
        "t2 → t1 (n = 12)",
        "t2 → r1 (n = 12)",
        "t1 → e1 (n = 5)",
    ]
    assert [ax.get_ylabel().split("\n") for ax in axes[:, 0]] == [
        ["queries whose", "answer changes"],
        ["change of log", "P(answer), nats"],
    ]
    edge_legend(figure)
    assert [each.get_text() for each in figure.legends[0].get_texts()] == [OWN_EDGE, "random edges"]


def test_edges_without_a_control_have_none_in_the_legend() -> None:
    table = over_layers("effect", edge=["t2->t1"], control=["none"]).assign(n=3)
    figure, (part,) = parts(1, 3)
    edge_panels(part, {"changed": table}, plots.KNOCKOUT_LABELS, "random", "random edges")
    edge_legend(figure)
    assert [each.get_text() for each in figure.legends[0].get_texts()] == [OWN_EDGE]


def test_projection_lines() -> None:
    table = over_layers("share", site=["attn_out", "mlp_out"], target=["e2", "e2_other"])
    ax = plots.projection_lines(table, title="t2", site="mlp_out")
    assert lines(ax) == {
        "bridge": values(table, "share", site="mlp_out", target="e2"),
        "another query's bridge": values(table, "share", site="mlp_out", target="e2_other"),
    }
    assert (len(bands(ax)), len(whiskers(ax))) == (1, 1)
    several = over_layers("share", site=["mlp_out"], target=["e2", "e2_other", "prediction"])
    ax = plots.projection_lines(several)
    assert (len(lines(ax)), len(bands(ax)), len(whiskers(ax))) == (3, 0, 2)
    assert plots.projection_lines(table, title="t2").get_title() == "attention at t2"


def test_recovery_lines() -> None:
    table = over_layers(
        "recovery", position=["t1"], site=["resid_post", "attn_out"], control=["none", "random"]
    )
    drawn = lines(plots.recovery_lines(table))
    assert drawn == {
        "random residual": values(table, "recovery", site="resid_post", control="random"),
        "residual": values(table, "recovery", site="resid_post", control="none"),
        "attention": values(table, "recovery", site="attn_out", control="none"),
    }


def test_recovery_lines_of_several_positions_are_named() -> None:
    table = over_layers(
        "recovery", position=["t1", "t2"], site=["resid_post"], control=["none", "random"]
    )
    names = {f"{what}, {at}" for what in ("residual", "random residual") for at in ("t1", "t2")}
    assert set(lines(plots.recovery_lines(table))) == names


def test_flip_lines_have_their_own_intervals() -> None:
    table = over_layers(
        "flip_rate", position=["t1"], site=["resid_post", "attn_out"], control=["none", "random"]
    )
    ends = {"flip_low": 0.25, "flip_high": 0.75, "low": -9.0, "high": 9.0}
    ax = plots.flip_lines(table.assign(**ends))
    assert lines(ax) == {
        "random residual": values(table, "flip_rate", site="resid_post", control="random"),
        "residual": values(table, "flip_rate", site="resid_post", control="none"),
        "attention": values(table, "flip_rate", site="attn_out", control="none"),
    }
    (band,), (beside,) = bands(ax), whiskers(ax)
    assert {float(y) for y in band.get_paths()[0].vertices[:, 1]} == {0.25, 0.75}
    assert set(beside.values()) == {(0.25, 0.75)}


def test_tracing_lines() -> None:
    table = over_layers("effect", position=["t1", "t2"], site=["mlp_out"])
    ax = plots.tracing_lines(table)
    assert not bands(ax)
    assert len(bands(plots.tracing_lines(table[table["position"] == "t1"]))) == 0
    assert lines(ax) == {
        "MLP, t1": values(table, "effect", position="t1"),
        "MLP, t2": values(table, "effect", position="t2"),
    }


def test_summaries_stand_side_by_side_with_the_numbers_that_are_drawn() -> None:
    table = over_layers("share", substitute=["e1", "r1"])
    run = {"model": {"name": "a model"}, "queries": {"name": "some"}}
    result = SimpleNamespace(
        summary=lambda: table, run=run, details=pd.DataFrame({"query": ["a", "b", "b"]})
    )
    both = {"incorrect": result, "correct": result}
    names = {"e1": "another source"}
    figure, numbers = figures.summary_panels(
        both, plots.recall_lines, "Recall", "substitute", names
    )
    assert figure.get_suptitle() == "Recall: a model on “some”"
    titles = [ax.get_title().replace("\n", " ") for ax in figure.axes]
    assert titles == [
        "another source: both hops right, composition wrong (n = 2)",
        "r1: both hops right, composition wrong (n = 2)",
        "another source: composition right (n = 2)",
        "r1: composition right (n = 2)",
    ]
    for ax, substitute in zip(figure.axes, ["e1", "r1"] * 2, strict=True):
        (drawn,) = (each for name, each in lines(ax).items() if name != "chance")
        assert drawn == values(table, "share", substitute=substitute)
        assert len(bands(ax)) == 1
    whole, _ = figures.summary_panels(both, plots.recall_lines, "Recall")
    assert [ax.get_title() for ax in whole.axes] == [
        "both hops right, composition wrong (n = 2)",
        "composition right (n = 2)",
    ]
    assert all(len(lines(ax)) == 3 for ax in whole.axes)  # both substitutes and chance
    assert len(figure.legends) == 1
    whole, _ = figures.summary_panels(both, plots.recall_lines, "Recall")
    assert [ax.get_title() for ax in whole.axes] == [
        "both hops right, composition wrong (n = 2)",
        "composition right (n = 2)",
    ]
    assert all(len(lines(ax)) == 3 for ax in whole.axes)  # both substitutes, and chance
    for subset in both:
        own = numbers[numbers["subset"] == subset].drop(columns="subset")
        pd.testing.assert_frame_equal(own.reset_index(drop=True), table)


def test_recall_and_probe_lines() -> None:
    table = over_layers("share", substitute=["e1", "r1"])
    ax = plots.recall_lines(table)
    wanted = values(table, "share", substitute="r1")
    assert lines(ax)["than with another first relation"] == wanted
    assert not bands(ax)
    alone = plots.recall_lines(table[table["substitute"] == "r1"])
    assert alone.get_ylabel() == "bridge recalled better than\nwith another first relation"
    table = over_layers("score", what=["accuracy", "control", "new_entities", "majority"])
    ax = plots.probe_lines(table, title="e2")
    drawn = lines(ax)
    assert len(drawn) == 4
    assert len(bands(ax)) == 1
    assert drawn["new source entities"] == values(table, "score", what="new_entities")


def test_the_stage_axis_has_every_query_and_the_mean() -> None:
    frame = pd.DataFrame(
        {
            "query": ["a", "b", "a", "b"],
            "stage": ["first", "first", "second", "second"],
            "number": [1, 1, 2, 2],
            "first_layer": [2.0, 2.0, 5.0, np.nan],
        }
    )
    summary = pd.DataFrame(
        [("first", 1, 2, 2, 2.0, np.nan, np.nan), ("second", 2, 2, 1, 5.0, np.nan, np.nan)],
        columns=["stage", "number", "queries", "n", "mean", "low", "high"],
    )
    ax = plots.stage_axis(frame, summary)
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["1  first\n2 of 2 queries", "2  second\n1 of 2 queries"]
    dots, mean = ax.get_lines()[:2]
    assert np.asarray(dots.get_xdata()).tolist() == [2.0, 2.0]
    assert len(set(np.asarray(dots.get_ydata()).tolist())) == 2  # set apart
    assert np.asarray(mean.get_xdata()).tolist() == [2.0]
    assert len(ax.get_lines()) == 4  # neither has an interval


def test_the_mean_of_a_stage_has_its_interval() -> None:
    three = {"stage": "first", "number": 1, "query": ["a", "b", "c"], "first_layer": [2.0, 3, 7]}
    row = {
        "stage": "first",
        "number": 1,
        "queries": 3,
        "n": 3,
        "mean": 4.0,
        "low": 2.0,
        "high": 7.0,
    }
    ax = plots.stage_axis(pd.DataFrame(three), pd.DataFrame([row]))
    assert np.asarray(ax.get_lines()[0].get_xdata()).tolist() == [2.0, 7.0]


def test_whiskers_of_lines_on_the_same_axes_stand_at_other_layers() -> None:
    for n_layers in (6, 12, 30, 80):
        intervals = lone_band(3)
        places = [range(n_layers)[each.some(n_layers)] for each in intervals if each]  # type: ignore[union-attr]
        assert all(0 < len(each) <= 6 for each in places)
        assert len({place for each in places for place in each}) == sum(map(len, places))
    assert lone_band(1) == ["band"]


def test_described_bars_stand_beside_their_chance_level() -> None:
    rows = [
        (entity, position, 0.1 * index, 0.0, 1.0)
        for index, (entity, position) in enumerate(
            (entity, position)
            for entity in ("e2", "e3", "e2_other", "e3_other")
            for position in ("t1", "t2")
        )
    ]
    table = pd.DataFrame(rows, columns=["entity", "position", "share", "low", "high"])
    ax = plots.described_bars(table)
    drawn = bars(ax)
    assert [label.get_text() for label in ax.get_xticklabels()][::2] == [
        "bridge\nat t1",
        "answer\nat t1",
    ]
    assert heights(drawn["own entity"]) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert heights(drawn["another query's entity"]) == pytest.approx([0.4, 0.5, 0.6, 0.7])


def test_the_head_heatmap_is_centred_at_no_effect() -> None:
    table = pd.DataFrame([[0.5, -0.25], [0.0, 0.1]], columns=[0, 1], index=[0, 1])
    ax = heatmaps.head_heatmap(table)
    (mesh,) = (each for each in ax.collections if isinstance(each, QuadMesh))
    assert mesh.get_clim() == (-0.5, 0.5)
    assert ticks(ax.yaxis) == {0.5: "1", 1.5: "0"}


def test_figures_grow_with_the_text_around() -> None:
    with style.figure_style():
        figure, axes = style.panels(2, 3, 2.0)
        assert axes.shape == (2, 3)
        assert figure.get_size_inches().tolist() == pytest.approx([7.2, 2.0])
    with mpl.rc_context({"legend.fontsize": 14}):
        figure, _ = style.panels(1, 1, 2.0, width=style.COLUMN)
        assert figure.get_size_inches().tolist() == pytest.approx([7.0, 4.0])


def test_a_legend_hides_nothing_and_is_no_wider_than_the_page() -> None:
    with style.figure_style():
        figure, ((ax,),) = style.panels(1, 1, 3.0, width=style.COLUMN)
        for n in range(7):
            ax.plot([0, 1], [0, n], label=f"a rather long label of line {n}")
        ax.set_xlabel("layer")
        style.legend_below(ax)
        figure.draw_without_rendering()
        legend = ax.get_legend().get_window_extent()
        assert legend.y1 <= ax.xaxis.label.get_window_extent().y0
        assert legend.width <= figure.bbox.width
        assert legend.y0 >= 0


def test_a_shared_legend_has_what_any_of_the_axes_shows_once() -> None:
    figure, axes = style.panels(1, 2, 2.0)
    axes[0, 0].plot([0, 1], label="one")
    for name in ("one", "two"):
        axes[0, 1].plot([0, 1], label=name)
    axes[0, 1].legend()
    style.shared_legend(figure, axes)
    assert axes[0, 1].get_legend() is None
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]


def test_controls_are_grey_and_can_be_told_apart() -> None:
    own, *controls = style.CONTROLS.values()
    assert {each.color for each in controls} == {style.GREY}
    assert style.GREY not in (own.color, *style.COLORS)
    assert len({(each.fill, each.hatch) for each in controls}) == len(controls)
    assert len({each.dash for each in controls}) == len(controls)
