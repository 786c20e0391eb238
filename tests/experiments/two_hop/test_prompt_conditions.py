"""Tests of prompt_conditions(): beside plain generation, and what it counts."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import loaded
from known import INCORRECT, known_model, known_queries
from plain import generated

import hopscope as hs
from hopscope.errors import UsageError
from hopscope.experiments.two_hop.prompt_conditions import PromptConditions, prompt_conditions
from hopscope.queries.answers import matches
from hopscope.queries.chat import Chat
from hopscope.queries.conditions import CONDITIONS, Condition

FAMILIES = ("llama", "gemma2", "gpt2")
THINK = Condition("twice_is", after=" is")


@pytest.mark.parametrize("few_shot", [0, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_answer_equals_a_plain_generate(family: str, few_shot: int) -> None:
    model = loaded(f"tiny-random-{family}")
    queries = hs.load_queries("world", few_shot=few_shot).sample(3, seed=few_shot)
    result = prompt_conditions(
        model, queries, max_new_tokens=4, bridge_tokens=3, one_line=False, progress=False
    )
    rows = result.frame.set_index(["query", "condition"])
    assert len(rows) == 3 * 4
    for name in ("plain", *CONDITIONS):
        asked = queries.with_condition(None if name == "plain" else name)
        for prompt in asked.prompts():
            ids = torch.tensor([model.tokenizer(prompt.text)["input_ids"]])
            n_new = 7 if name == "bridge_first" else 4
            tokens = generated(model.hf, ids, torch.ones_like(ids), n_new, model.end_tokens)[0]
            said = model.tokenizer.decode(list(tokens), skip_special_tokens=True)
            row = rows.loc[(prompt.query_id, name)]
            assert (row["generation"], row["prompt"]) == (said, prompt.end)


def test_known_answers_are_counted() -> None:
    """The model answers what it reads early enough: a late query needs a token more."""
    queries = known_queries().filter(lambda query: query.id in (*INCORRECT, "early-1"))
    result = prompt_conditions(known_model(), queries, [THINK], progress=False)
    right = result.frame.pivot(index="query", columns="condition", values="correct")
    graded = hs.grade(known_model(), queries, progress=False).verdicts()["two_hop"]
    assert right["plain"].to_dict() == graded.to_dict()
    again = hs.grade(known_model(), queries.with_condition(THINK), progress=False).verdicts()
    assert right["twice_is"].to_dict() == again["two_hop"].to_dict()


def test_an_answer_that_comes_before_the_bracket_closes_is_none() -> None:
    queries = known_queries()
    result = prompt_conditions(known_model(), queries, ["bridge_first"], progress=False)
    rows = result.frame[result.frame["condition"] == "bridge_first"].set_index("query")
    named = [matches(rows.loc[q.id, "generation"], q.names("e3"), "word") for q in queries]
    assert any(named)
    assert not rows["generation"].str.contains("]", regex=False).any()
    assert not rows["correct"].any()


def made(**right: tuple[bool, bool, bool]) -> PromptConditions:
    """A result: for each query the verdicts of plain, filler and bridge_first."""
    names = ("plain", "filler", "bridge_first")
    rows = [
        (query, name, "", "", verdict)
        for query, verdicts in right.items()
        for name, verdict in zip(names, verdicts, strict=True)
    ]
    frame = pd.DataFrame(rows, columns=list(PromptConditions.columns))
    return PromptConditions(frame, pd.DataFrame({"query": list(right)}), {})


def test_repairs_and_breaks_are_paired() -> None:
    result = made(
        a=(False, True, True),
        b=(True, False, True),
        c=(False, True, False),
        d=(True, True, True),
    )
    gains = result.gains().set_index("condition")
    assert gains["better"].to_dict() == {"filler": 2, "bridge_first": 1}
    assert gains["worse"].to_dict() == {"filler": 1, "bridge_first": 0}
    assert gains["difference"].to_dict() == {"filler": 0.25, "bridge_first": 0.25}
    shares = result.accuracy().set_index("condition")["share"]
    assert shares.to_dict() == {"plain": 0.5, "filler": 0.75, "bridge_first": 0.75}
    assert result.findings()[0] == "The plain prompt is answered right in 50 % (15–85)."
    assert "it repairs 2 and breaks 1 of 4" in result.findings()[1]
    ticks = [tick.get_text() for tick in result.plot().get_xticklabels()]
    assert ticks == ["plain\nprompt", "ten\nfiller tokens\n+2 −1", "bridge\nnamed first\n+1 −0"]


def test_a_run_goes_on_and_is_read_again(tmp_path: Path) -> None:
    given: dict[str, Any] = {"conditions": ["filler"], "progress": False, "out": tmp_path / "run"}
    first = prompt_conditions(known_model(), known_queries()[:3], **given)
    again = prompt_conditions(known_model(), known_queries()[:3], **given)
    pd.testing.assert_frame_equal(first.frame, again.frame)
    loaded_ = hs.load_result(tmp_path / "run")
    assert isinstance(loaded_, PromptConditions)
    assert list(loaded_.run["settings"]["conditions"]) == ["filler"]


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"conditions": ["twice"]}, "unknown condition 'twice': choose one of repeated, filler"),
    ({"conditions": []}, "give a list of conditions with any of repeated"),
    ({"conditions": [Condition("plain", after=".")]}, "leave out the condition plain"),
    ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more"),
]


@pytest.mark.parametrize(("settings", "message"), MISTAKES, ids=str)
def test_a_mistake_is_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        prompt_conditions(known_model(), known_queries(), progress=False, **settings)


def test_a_chat_is_refused() -> None:
    tokenizer = copy.deepcopy(known_model().tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    chat = Chat(tokenizer)
    queries = replace(known_queries()[:2], chat=chat)
    with pytest.raises(UsageError, match="in a chat, give"):
        queries.with_condition("filler")
