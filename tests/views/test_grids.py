"""What an interactive heatmap holds: every slice against the table that it was cut from."""

from __future__ import annotations

import html
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from known import made_back_patching

from hopscope.display.grid import EVERYTHING, all_chosen, first_choice, key_of, slice_json, spec_of
from hopscope.display.page import grid_html, page_script
from hopscope.display.widgets import GridWidget
from hopscope.errors import PlaceError, UsageError
from hopscope.experiments.two_hop.back_patching import BackPatching
from hopscope.experiments.two_hop.description import Description

CELLS = [(1, 0), (2, 0), (2, 1), (3, 2)]


@pytest.fixture(scope="module")
def result() -> BackPatching:
    hits = {
        (query, position, control): {(2, 1)} if (query, control) == ("a", "none") else set()
        for query in ("a", "b")
        for position in ("t1", "t2")
        for control in ("none", "random")
    }
    made = made_back_patching(hits, CELLS, {(2, 1): -0.1, (3, 2): -2.5})
    frame = made.frame
    rng = np.random.default_rng(0)
    ranks, logprobs = rng.integers(0, 50, len(frame)), -rng.random(len(frame))
    frame = frame.assign(answer_rank=ranks, answer_logprob=logprobs, bridge_rank=ranks[::-1])
    return BackPatching(frame, made.details, made.run)


def values(slice_: dict, name: str) -> list:
    return next(each["values"] for each in slice_["measures"] if each["name"] == name)


def test_every_slice_of_one_query_has_the_rows_of_the_frame(result: BackPatching) -> None:
    grid = result.grid()
    assert grid is not None
    xs, ys = grid.x.values, grid.y.values
    assert (xs, ys) == ((1, 2, 3), (0, 1, 2))
    seen = 0
    for chosen in all_chosen(grid.choices):
        if chosen["query"] == EVERYTHING:
            continue
        found = slice_json(grid, chosen)
        where = (result.frame[list(chosen)] == pd.Series(chosen)).all(axis=1)
        rows = result.frame[where].set_index(["source_layer", "target_layer"])
        (says,) = found["texts"]
        for index, (y, x) in enumerate((y, x) for y in ys for x in xs):
            if (x, y) not in CELLS:
                assert values(found, "hit")[index] is None
                assert says["codes"][index] == -1
                continue
            row = rows.loc[(x, y)]
            assert values(found, "hit")[index] == row["hit"]
            assert values(found, "answer_rank")[index] == row["answer_rank"]
            assert values(found, "bridge_rank")[index] == row["bridge_rank"]
            probability = values(found, "answer_probability")[index]
            assert probability == pytest.approx(math.exp(row["answer_logprob"]), rel=1e-3)
            assert says["words"][says["codes"][index]] == row["generation"]
            seen += 1
        facts = dict(found["facts"])
        assert facts["bridge"] == f"bridge of {chosen['query']}"
        assert facts["unpatched it says"] == f" before {chosen['query']}"
    assert seen == 2 * 2 * 2 * len(CELLS)


def test_all_queries_together_are_means_and_names(result: BackPatching) -> None:
    grid = result.grid()
    assert grid is not None
    chosen = first_choice(grid)
    assert chosen == {"query": EVERYTHING, "position": "t1", "control": "none"}
    found = slice_json(grid, chosen)
    heat = result.heatmap("t1").reindex(index=grid.y.values, columns=grid.x.values)
    expected = [None if np.isnan(each) else each for each in heat.to_numpy().ravel()]
    assert values(found, "hit") == expected
    (named,) = found["texts"]
    assert named["words"] == ["a"]
    assert [code >= 0 for code in named["codes"]] == [bool(each) for each in expected]
    ranks = result.frame.query("position == 't1' and control == 'none'")
    mean = ranks.query("source_layer == 3")["answer_rank"].mean()
    assert values(found, "answer_rank")[-1] == pytest.approx(mean, rel=1e-3)


def test_a_result_of_one_query_has_no_mean(result: BackPatching) -> None:
    one = BackPatching(
        result.frame.query("query == 'b'"), result.details.query("query == 'b'"), result.run
    )
    grid = one.grid()
    assert grid is not None
    assert [option.value for option in grid.choices[0].options] == ["b"]


def test_a_run_from_before_bridges_were_read_is_shown(result: BackPatching) -> None:
    old = BackPatching(
        result.frame.drop(columns=["bridge_rank", "bridge_logprob"]),
        result.details.drop(columns=["clean_bridge_rank", "clean_bridge_logprob"]),
        result.run,
    )
    grid = old.grid()
    assert grid is not None
    found = slice_json(grid, {**first_choice(grid), "query": "a"})
    names = [each["name"] for each in found["measures"]]
    assert names == ["hit", "answer_probability", "answer_rank"]


def test_a_query_that_no_other_lent_its_states_to_is_blank_there(result: BackPatching) -> None:
    frame = result.frame
    lonely = (frame["query"] == "b") & (frame["control"] == "random")
    grid = BackPatching(frame[~lonely], result.details, result.run).grid()
    assert grid is not None
    chosen = {"query": "b", "position": "t1", "control": "random"}
    assert set(values(slice_json(grid, chosen), "hit")) == {None}
    assert values(slice_json(grid, {**chosen, "query": "a"}), "hit")[0] is not None
    for each in all_chosen(grid.choices):
        slice_json(grid, each)


def test_parts_from_before_bridges_were_read_beside_newer_ones(result: BackPatching) -> None:
    frame, details = result.frame.copy(), result.details.copy()
    for table, names in (
        (frame, ["bridge_rank", "bridge_logprob"]),
        (details, ["clean_bridge_rank", "clean_bridge_logprob"]),
    ):
        table[names] = table[names].astype(float)
        table.loc[table["query"] == "a", names] = float("nan")
    grid = BackPatching(frame, details, result.run).grid()
    assert grid is not None
    told = dict(slice_json(grid, {**first_choice(grid), "query": "a"})["facts"])
    assert told["P(bridge), rank"] == "not read"
    told = dict(slice_json(grid, {**first_choice(grid), "query": "b"})["facts"])
    assert told["P(bridge), rank"] == "0.0183, 3"


def test_many_queries_are_counted_not_listed() -> None:
    hits = {(f"q{n}", "t1", "none"): {(1, 0)} for n in range(12)}
    grid = made_back_patching(hits, [(1, 0)]).grid()
    assert grid is not None
    (named,) = slice_json(grid, first_choice(grid))["texts"]
    assert named["words"] == ["q0, q1, q2, q3, q4, q5, q6, q7 and 4 more"]


def test_shades_of_shares_compare_between_states(result: BackPatching) -> None:
    grid = result.grid()
    assert grid is not None
    for control in ("none", "random"):
        found = slice_json(grid, {**first_choice(grid), "control": control})
        assert found["measures"][0]["largest"] == 0.5


def test_descriptions_have_a_grid_by_target_prompt() -> None:
    rows = [
        (query, prompt, "t1", sample, source, target, query == "a", source == 1, f"{query}{sample}")
        for query in ("a", "b")
        for prompt in ("who", "what")
        for sample in (0, 1)
        for source in (0, 1)
        for target in (0, 2)
    ]
    columns = ["query", "prompt", "position", "sample", "source_layer", "target_layer"]
    columns += ["e2", "e3", "generation"]
    details = pd.DataFrame(
        [(query, "t1", f"asks {query}", "Oslo", "Norway") for query in ("a", "b")],
        columns=["query", "position", "question", "answer", "bridge"],
    )
    run = {"model": {"name": "m"}, "queries": {"name": "q", "n": 2}}
    grid = Description(pd.DataFrame(rows, columns=columns), details, run).grid()
    assert grid is not None
    found = slice_json(grid, first_choice(grid))
    assert values(found, "e2") == [0.5] * 4
    assert values(found, "e3") == [0, 1, 0, 1]
    one = slice_json(grid, {**first_choice(grid), "query": "b"})
    assert values(one, "e2") == [0] * 4
    assert one["texts"][0]["words"] == ["b0"]
    assert dict(one["facts"]) == {"question": "asks b", "bridge": "Norway", "answer": "Oslo"}


# The widget and the page


def test_the_widget_sends_the_slice_that_is_chosen(result: BackPatching) -> None:
    view = result.view()
    assert isinstance(view, GridWidget)
    grid = result.grid()
    assert grid is not None
    assert list(view.slices) == [key_of(grid, first_choice(grid))]
    view.chosen = {**view.chosen, "query": "b", "control": "random"}
    assert view.slices == {'["b","t1","random"]': slice_json(grid, view.chosen)}
    with pytest.raises(UsageError, match="control cannot be 'mean': choose one of none, random"):
        view.chosen = {**view.chosen, "control": "mean"}
    assert view.chosen["control"] == "random"


def test_a_result_without_a_grid_says_what_to_do() -> None:
    from known import made_grading

    graded = made_grading({"a": {"first_hop"}})
    told = "'grading' has no interactive view; plot.* back_patching, .*description, .* have one"
    with pytest.raises(UsageError, match=told):
        graded.view()


def test_a_result_is_written_as_one_file_that_asks_nothing_outside(
    result: BackPatching, tmp_path: Path
) -> None:
    path = result.to_html(tmp_path / "found.html")
    assert path == tmp_path / "found.html"
    text = path.read_text("utf-8")
    assert "://" not in text
    grid = result.grid()
    assert grid is not None
    for chosen in all_chosen(grid.choices):
        assert json.dumps(key_of(grid, chosen)) in text
    assert "data:image/png;base64," in text, "without scripts there is a picture"
    assert f"<dd>{result.run['model']['name']}</dd>" in text
    view = result.view()
    view.chosen = {**view.chosen, "query": "b"}
    other = view.to_html(path).read_text("utf-8")
    assert '"chosen": {"query": "b"' in other
    with pytest.raises(PlaceError, match=r"cannot write .*missing.*Choose another place"):
        result.to_html(tmp_path / "missing" / "found.html")


def test_a_result_without_a_grid_is_written_as_words_and_a_picture(tmp_path: Path) -> None:
    from known import made_grading

    graded = made_grading({"a": {"first_hop"}, "<b>": {"two_hop"}})
    text = graded.to_html(tmp_path / "grading.html").read_text("utf-8")
    assert "data:image/png;base64," in text
    assert "://" not in text
    assert all(html.escape(each) in text for each in graded.findings())
    assert f"<dd>{graded.run['model']['name']}</dd>" in text


def test_names_from_data_cannot_become_html(tmp_path: Path) -> None:
    odd = "<img src=x onerror=alert(1)>"
    made = made_back_patching({(odd, "t1", "none"): {(1, 0)}}, [(1, 0)])
    run = {**made.run, "model": {"name": odd}}
    path = BackPatching(made.frame, made.details, run).to_html(tmp_path / "odd.html")
    assert "<img src=x" not in path.read_text("utf-8")


def test_what_a_model_says_cannot_end_the_script(result: BackPatching) -> None:
    frame = result.frame.assign(generation="<!--<script></script>")
    grid = BackPatching(frame, result.details, result.run).grid()
    assert grid is not None
    data = grid_html(grid, "").partition('data-hopscope="grid">')[2].partition("</script>")[0]
    assert "<" not in data
    said = json.loads(data)["slices"]['["a","t1","none"]']["texts"][0]["words"]
    assert said == ["<!--<script></script>"]


def test_a_page_holds_every_slice_and_no_address(result: BackPatching) -> None:
    grid = result.grid()
    assert grid is not None
    text = grid_html(grid, "<p>no scripts</p>", heading="correct")
    state = json.loads(text.partition('data-hopscope="grid">')[2].partition("</script>")[0])
    assert state["spec"]["title"] == "correct"
    assert set(state["slices"]) == {key_of(grid, each) for each in all_chosen(grid.choices)}
    assert "more of" not in text
    whole = text + page_script()
    assert "://" not in whole
    assert "import " not in page_script()


def test_queries_that_a_page_has_no_room_for_are_left_out_and_counted(result: BackPatching) -> None:
    grid = result.grid()
    assert grid is not None
    text = grid_html(grid, "", most_bytes=3000)
    b = {**first_choice(grid), "query": "b"}
    assert key_of(grid, b) not in text
    chosen = grid_html(grid, "", most_bytes=3000, chosen=b)
    assert json.dumps(key_of(grid, b)) in chosen, "what is shown first is there"
    state = json.loads(text.partition('data-hopscope="grid">')[2].partition("</script>")[0])
    options = [each["value"] for each in state["spec"]["choices"][0]["options"]]
    assert options == [EVERYTHING]
    assert len(state["slices"]) == 4
    assert "2 more of query are left out" in text


def test_the_specification_is_plain_json(result: BackPatching) -> None:
    grid = result.grid()
    assert grid is not None
    spec = spec_of(grid)
    assert json.loads(json.dumps(spec)) == spec
    assert spec["x"] == {"label": "source layer (read)", "values": [1, 2, 3]}
