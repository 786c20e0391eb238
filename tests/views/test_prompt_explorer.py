"""A query typed by hand: parsed, asked, read through the lens, back-patched."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from hopscope.errors import ModelError, QueryError, UsageError
from hopscope.experiments.two_hop.back_patching import back_patch
from hopscope.experiments.two_hop.grading import grade
from hopscope.models.language_model import LanguageModel
from hopscope.queries.load import load_queries
from hopscope.views import prompt_explorer
from hopscope.views.prompt_explorer import PromptExplorer, _as_typed, explore, parse_query

TEXT = "The spouse of [the performer of [Imagine]] is"


@pytest.fixture(scope="module")
def explorer(llama: LanguageModel) -> PromptExplorer:
    made = explore(llama, load_queries("world", few_shot=2))
    made.ask(TEXT, "John Lennon", "Tokyo")
    return made


def test_a_query_is_read_from_its_brackets() -> None:
    query = parse_query(TEXT, "John Lennon", "Tokyo")
    assert query.two_hop() == "The spouse of the performer of Imagine is"
    assert query.first_hop() == "The performer of Imagine is"
    assert query.second_hop() == "The spouse of John Lennon is"
    other = parse_query("[[Oslo]'s country]'s capital is called")
    assert other.two_hop() == "Oslo's country's capital is called"
    assert other.e2_label == "?"
    named = parse_query(TEXT, "John Lennon | Lennon|", " Tokyo ")
    assert named.names("e2") == ("John Lennon", "Lennon")
    assert named.names("e3") == ("Tokyo",)


@pytest.mark.parametrize(
    "text",
    ["", "The spouse of Lennon is", "The spouse of [the performer of Imagine] is", "[[]] is"],
)
def test_other_texts_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(QueryError, match=r"\[the performer of \[Imagine\]\]"):
        parse_query(text)


def test_every_bundled_query_can_be_typed() -> None:
    for query in load_queries("world").sample(200):
        typed = _as_typed(query)
        again = parse_query(**typed)
        assert again.two_hop() == query.two_hop()
        assert again.e1_label == query.e1_label.strip()
        assert again.names("e2") == tuple(dict.fromkeys(map(str.strip, query.names("e2"))))


def test_hops_are_asked_as_grading_asks_them(
    explorer: PromptExplorer, llama: LanguageModel
) -> None:
    pool = load_queries("world", few_shot=2)
    query = parse_query(TEXT, "John Lennon", "Tokyo")
    graded = grade(llama, replace(pool, queries=(query,)), progress=False).frame.set_index("form")
    assert [each["form"] for each in explorer.answers] == ["first_hop", "second_hop", "two_hop"]
    for each in explorer.answers:
        row = graded.loc[each["form"]]
        assert each["says"] == row["generation"].split("\n")[0].strip()
        assert each["correct"] == row["correct"]
        assert each["prompt"] == row["prompt"]


def test_names_that_are_not_given_are_the_models_own(llama: LanguageModel) -> None:
    made = explore(llama, load_queries("world", few_shot=0), layer_step=2)
    made.ask(TEXT)
    first, second, two = made.answers
    assert [each["correct"] for each in made.answers] == [None] * 3, "nothing is checked"
    assert {each["note"] for each in made.answers} == {"the model's own answer, unchecked"}
    (warning,) = made.warnings
    assert f"The bridge “{first['says'].rstrip('.')}” and the answer" in warning
    (cells, *_) = made.patches["slices"].values()
    assert cells["measures"][0]["label"] == "says the model's own answer, unchecked"
    facts = dict(cells["facts"])
    for entity, said in (("bridge", first), ("answer", second)):
        label = said["says"].rstrip(".")
        assert facts[entity] == f"{label} (the model's own answer, unchecked)"
    assert made.result is not None
    assert made.result.details["bridge"][0] == first["says"].rstrip("."), "the table has the name"
    assert second["prompt"] == f"The spouse of {first['says'].rstrip('.')} is"
    assert two["prompt"] == "The spouse of the performer of Imagine is"


def test_names_that_are_given_are_checked_without_a_warning(explorer: PromptExplorer) -> None:
    assert explorer.warnings == []
    assert {each["note"] for each in explorer.answers} == {""}
    assert None not in [each["correct"] for each in explorer.answers]


def test_an_answer_that_is_given_is_checked_beside_a_bridge_that_is_not(
    llama: LanguageModel,
) -> None:
    made = explore(llama, load_queries("world", few_shot=0), layer_step=2)
    made.ask(TEXT, "", "Tokyo")
    assert [each["correct"] is None for each in made.answers] == [True, False, False]
    (warning,) = made.warnings
    assert warning.startswith("The bridge “")
    assert "answer “" not in warning


@pytest.mark.parametrize("is_given", [True, False])
def test_a_bridge_that_is_the_entity_is_warned_of(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch, is_given: bool
) -> None:
    made = explore(llama, load_queries("world", few_shot=0), layer_step=2)
    monkeypatch.setattr(made, "_answer", lambda single, form: ("prompt", "the Imagine."))
    made.ask(TEXT, "Imagine" if is_given else "", "Tokyo")
    name = "Imagine" if is_given else "the Imagine"
    told = f"The bridge equals the entity, “{name}”: a hop that leads nowhere."
    assert made.warnings.count(told) == 1
    assert len(made.warnings) == (1 if is_given else 3)  # unchecked, and "the" identifies nothing


@pytest.mark.parametrize("names", [("Mexico", "Mexico City"), ("John Lennon", "the yen")])
def test_what_no_token_identifies_is_told_and_the_rest_is_shown(
    llama: LanguageModel, tmp_path: Path, names: tuple[str, str]
) -> None:
    pool = load_queries("world", few_shot=0)
    made = explore(llama, pool)
    seen: list[str] = []
    made.observe(lambda change: seen.append(change["name"]), ["answers", "lens", "patches"])
    result = made.ask(TEXT, *names)
    assert not made.failed
    assert made.status == "done; .result has the back-patching"
    assert seen == ["lens", *["answers"] * 3, "patches"]
    both = names[0] == "Mexico"
    bridge = f"the bridge “{names[0]}” and " if both else ""
    assert made.warnings == [
        f"No next token identifies {bridge}the answer “{names[1]}” (the other entity begins with "
        "it, or many names do): rank and probability are not shown; what the model says is."
    ]
    (lens,) = made.lens["slices"].values()
    values = {each["name"]: each["values"] for each in lens["measures"]}
    for entity, is_untold in (("e2", both), ("e3", True)):
        for measure in ("rank", "p"):
            shown = [each is not None for each in values[f"{entity}_{measure}"]]
            assert any(shown) != is_untold
            assert all(shown) != is_untold
    for cells in made.patches["slices"].values():
        measures = [each["name"] for each in cells["measures"]]
        read = [] if both else ["bridge_probability", "bridge_rank"]
        assert measures == ["hit", *read]
        assert dict(cells["facts"])["P(answer), rank"] == "not read"
        assert cells["texts"]
    query = replace(pool, queries=(parse_query(TEXT, *names),))
    plain = back_patch(llama, query, controls=("random",), progress=False)
    pd.testing.assert_frame_equal(result.frame, plain.frame, rtol=1e-4)
    assert made.picture() is not None
    assert "No next token identifies" in made.to_html(tmp_path / "explored.html").read_text("utf-8")


def test_an_invalid_query_leaves_nothing_of_the_last_one(llama: LanguageModel) -> None:
    made = explore(llama, load_queries("world", few_shot=0), layer_step=2)
    made.ask(TEXT)
    assert made.picture() is not None
    with pytest.raises(QueryError):
        made.ask("no brackets")
    shown = (made.answers, made.tokens, made.lens, made.patches, made.warnings)
    assert shown == ([], [], {}, {}, [])
    assert made.result is None
    assert made.picture() is None
    assert made.failed
    assert "in brackets" in made.status
    with pytest.raises(UsageError, match="nothing has been explored yet"):
        made.to_html("never.html")


def test_the_picture_has_the_lens_and_each_position(
    explorer: PromptExplorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[str, str]] = []

    def keep(figure: Figure) -> str:
        drawn.extend((ax.get_title(), ax.get_xlabel()) for ax in figure.axes if ax.get_title())
        return "a picture"

    monkeypatch.setattr(prompt_explorer, "png", keep)
    assert explorer.picture() == "a picture"
    source = "source layer (read)"
    assert drawn == [("logit lens", "token"), ("t1, own", source), ("t2, own", source)]


def test_what_was_explored_is_written_as_a_file(explorer: PromptExplorer, tmp_path: Path) -> None:
    text = explorer.to_html(tmp_path / "explored.html").read_text("utf-8")
    assert "://" not in text
    state = json.loads(text.partition('data-hopscope="explorer">')[2].partition("</script>")[0])
    assert state["answers"] == explorer.answers
    assert state["patches"] == explorer.patches
    assert "weights sha256" in text


def test_tokens_have_their_parts(explorer: PromptExplorer) -> None:
    parts = {
        part: "".join(each["text"] for each in explorer.tokens if each["part"] == part)
        for part in ("r2", "r1", "e1")
    }
    assert parts["e1"].strip() == "Imagine"
    assert parts["r1"].strip() == "the performer of"
    assert "".join(parts["r2"].split()) == "Thespouseofis"
    names = [each["name"] for each in explorer.tokens]
    assert names[-1] == "t2"
    assert [name for name in names if name] == ["t1", "t2"]


def test_the_lens_is_the_models_own_unembedding(
    explorer: PromptExplorer, llama: LanguageModel
) -> None:
    (state,) = explorer.lens["slices"].values()
    ids = llama.encode(_prompt(llama)).ids
    with torch.no_grad():
        logits = llama.hf(torch.tensor([ids])).logits[0]
    n = len(explorer.tokens)
    top = torch.softmax(logits[-n:].float(), -1).amax(-1).tolist()
    shown = next(each["values"] for each in state["measures"] if each["name"] == "top")
    # The last block's state is what the model itself unembeds.
    np.testing.assert_allclose(shown[-n:], top, rtol=2e-3)
    assert explorer.lens["spec"]["x"]["names"] == [each["text"].strip() for each in explorer.tokens]
    assert all(word == word.strip() for word in state["texts"][0]["words"])
    assert len(shown) == n * llama.n_layers
    layer, token = 1, n - 2
    with torch.no_grad():
        own = copy.deepcopy(llama.hf)  # transformers leaves hooks on what is asked for states
        states = own(torch.tensor([ids]), output_hidden_states=True).hidden_states
        normed = llama.hf.model.norm(states[layer + 1][0, len(ids) - n + token])
        logprobs = torch.log_softmax(llama.hf.lm_head(normed).float(), -1)
    place = layer * n + token
    told = {each["name"]: each["values"][place] for each in state["measures"]}
    for entity, name in (("e2", "John Lennon"), ("e3", "Tokyo")):
        best = logprobs[list(llama.first_tokens((name,)))].max()
        assert told[f"{entity}_p"] == pytest.approx(float(best.exp()), rel=1e-2)
        assert told[f"{entity}_rank"] == int((logprobs > best).sum())
    assert told["top"] == pytest.approx(float(logprobs.max().exp()), rel=1e-2)


def _prompt(llama: LanguageModel) -> str:
    pool = load_queries("world", few_shot=2)
    query = parse_query(TEXT, "John Lennon", "Tokyo")
    return replace(pool, queries=(query,)).prompts()[0].text


def test_back_patching_is_that_of_the_experiment(
    explorer: PromptExplorer, llama: LanguageModel
) -> None:
    pool = load_queries("world", few_shot=2)
    query = parse_query(TEXT, "John Lennon", "Tokyo")
    plain = back_patch(llama, replace(pool, queries=(query,)), controls=("random",), progress=False)
    assert explorer.result is not None
    pd.testing.assert_frame_equal(explorer.result.frame, plain.frame, rtol=1e-4)
    assert explorer.patches["slices"]


def test_pictures_grow_while_it_runs(llama: LanguageModel) -> None:
    made = explore(llama, load_queries("world", few_shot=0))
    seen: list[str] = []
    made.observe(lambda change: seen.append(change["name"]), names=["answers", "lens", "patches"])
    made.ask(TEXT)
    assert seen.index("lens") < len(seen) - 1 - seen[::-1].index("patches")
    assert seen.count("patches") == 2  # the next tokens, then what the cells say


@pytest.mark.parametrize("bridge", ["John Lennon", ""])
def test_the_lens_is_the_first_picture_where_it_needs_no_answers(
    llama: LanguageModel, bridge: str
) -> None:
    made = explore(llama, load_queries("world", few_shot=0), layer_step=2)
    seen: list[str] = []
    made.observe(lambda change: seen.append(change["name"]), ["answers", "lens", "patches"])
    made.ask(TEXT, bridge, "Tokyo")
    assert [*dict.fromkeys(seen)] == [
        *(["lens", "answers"] if bridge else ["answers", "lens"]),
        "patches",
    ]


@pytest.mark.parametrize("bridge", ["John Lennon", ""])
def test_a_model_without_a_lens_is_back_patched_and_says_why(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch, bridge: str
) -> None:
    def none(*_: object) -> None:
        raise ModelError("its states cannot be read")

    monkeypatch.setattr(prompt_explorer.LensGrid, "of", none)
    made = explore(llama, load_queries("world", few_shot=0), layer_step=2)
    result = made.ask(TEXT, bridge, "Tokyo")
    assert made.result is result
    assert made.status.endswith("; no lens: its states cannot be read")
    assert (made.lens, made.tokens) == ({}, [])


def test_what_goes_wrong_is_told_and_the_button_comes_back(explorer: PromptExplorer) -> None:
    explorer._handle_custom_msg({"type": "ask", "query": {"text": "no brackets"}}, [])
    assert explorer.failed
    assert "in brackets" in explorer.status
    assert not explorer.busy


def test_an_interrupt_leaves_what_was_finished_and_no_hooks(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the stop button does it: in the middle of a forward pass."""
    monkeypatch.setattr(prompt_explorer, "AT_ONCE", 2)
    made = explore(llama, load_queries("world", few_shot=0))
    whole = made.ask(TEXT, "John Lennon", "Tokyo")
    block = type(llama.hf.model.layers[0])
    forward, passes = block.forward, []

    def stopping(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        passes.append(1)
        if len(passes) == stop_at:
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(block, "forward", stopping)
    hooks = sum(len(each._forward_hooks) for each in llama.hf.modules())
    query = {"text": TEXT, "bridge": "John Lennon", "answer": "Tokyo"}
    stop_at = 0
    made._handle_custom_msg({"type": "ask", "query": query}, [])
    stop_at, passes[:] = len(passes) - 3, []
    made._handle_custom_msg({"type": "ask", "query": query}, [])
    assert made.status == (
        "stopped; finished: the logit lens, 3 of 3 prompts, the next token of every cell, "
        "what 4 of 6 cells a position say, in .result"
    )
    assert made.result is not None
    n = len(made.result.frame)
    assert 0 < n < len(whole.frame)
    assert len(made.result.run["settings"]["cells"]) * 4 == n  # positions and states
    keys = ["position", "control", "source_layer", "target_layer"]
    both = made.result.frame.merge(whole.frame, on=keys)
    assert len(both) == n
    assert (both["generation_x"] == both["generation_y"]).all()
    assert (both["hit_x"] == both["hit_y"]).all()

    stop_at, passes[:] = 2, []
    made._handle_custom_msg({"type": "ask", "query": query}, [])
    assert made.status == "stopped; nothing was finished"
    assert made.result is None
    stop_at, passes[:] = 1, []
    with pytest.raises(KeyboardInterrupt):
        made.ask(TEXT, "John Lennon", "Tokyo")
    assert made.status == "stopped; nothing was finished", "from code, too"
    assert sum(len(each._forward_hooks) for each in llama.hf.modules()) == hooks


def test_an_unexpected_error_is_told_and_logged(
    explorer: PromptExplorer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def out_of_memory(*_: Any, **__: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(prompt_explorer, "back_patch", out_of_memory)
    explorer._handle_custom_msg({"type": "ask", "query": {"text": TEXT}}, [])
    assert explorer.status == "MemoryError: no room"
    assert "in out_of_memory" in caplog.text  # ipywidgets logs what a callback raises
    assert not explorer.busy
