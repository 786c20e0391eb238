"""Chains in the prompt: every example against its own pairs, and the questions over documents."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

import hopscope as hs
from hopscope.errors import UsageError
from hopscope.training.fit import IGNORED
from hopscope.training.settings import Schedule
from hopscope.worlds.load import load_world
from hopscope.worlds.recipe import Recipe
from hopscope.worlds.small_model import Shape
from hopscope.worlds.tasks.chains_in_context import TEMPLATE, ChainsInContext, shuffled_pairs
from hopscope.worlds.train import train_world
from hopscope.worlds.world import World

TASK = ChainsInContext(n_nodes=12, fewest=2, most=3, seed=1)
VOCABULARY = {word: 3 + n for n, word in enumerate(TASK.words)}
END = 1


def read(words: list[str]) -> tuple[dict[str, str], list[tuple[str, str, str]]]:
    """The pairs of a prompt, and its queries with answers."""
    first = min(words.index(each) for each in ("one", "two") if each in words)
    pairs = dict(zip(words[:first:2], words[1:first:2], strict=True))
    rest = words[first:]
    queries = [tuple(rest[place : place + 3]) for place in range(0, len(rest), 3)]
    return pairs, queries


def rows(task: ChainsInContext, step: int, size: int = 16) -> list[tuple[list[str], list[int]]]:
    """The words of a batch, and the places that have a loss."""
    words = {number: word for word, number in VOCABULARY.items()}
    batch = task.batches(VOCABULARY, END, size)(step)
    found = []
    for ids, targets in zip(batch.ids.tolist(), batch.targets.tolist(), strict=True):
        text = [words[each] for each in ids if each != END]
        places = [place for place, each in enumerate(targets) if each != IGNORED]
        for place in places:
            assert targets[place] == (ids[place + 1] if place + 1 < len(text) else END)
        found.append((text, places))
    return found


def test_every_answer_follows_from_the_pairs():
    seen = set()
    for step in range(3):
        for text, places in rows(TASK, step):
            pairs, queries = read(text)
            assert len(queries) in (2, 3)
            assert len(pairs) == 2 * len(queries)
            for hops, source, answer in queries:
                bridge = pairs[source]
                assert answer == (bridge if hops == "one" else pairs[bridge])
                seen.add(hops)
            assert [text[place + 1] for place in places[:-1]] == [each[2] for each in queries]
            assert places[-1] == len(text) - 1
    assert seen == {"one", "two"}


def test_a_prompt_asks_no_more_than_it_should_and_fewer_single_hops_late():
    task = replace(TASK, n_queries=1, one_hop=1.0, late_one_hop=0.0, late=2)
    for step, hops in [(0, "one"), (1, "one"), (2, "two"), (9, "two")]:
        asked = [read(text)[1] for text, _ in rows(task, step)]
        assert {(len(queries), queries[0][0]) for queries in asked} == {(1, hops)}
    assert task.longest == 4 * 3 + 3
    steady = replace(task, late_one_hop=None)
    assert {steady.one_hop_at(step) for step in (0, 2, 9)} == {1.0}


@pytest.mark.parametrize(("order", "first"), [("forward", {True}), ("backward", {False})])
def test_the_first_hop_stands_where_the_order_says(order, first):
    found = set()
    for text, _ in rows(replace(TASK, order=order), 0):
        pairs, queries = read(text)
        sources = list(pairs)
        found |= {sources.index(q[1]) < sources.index(pairs[q[1]]) for q in queries}
    assert found == first
    mixed = replace(TASK, order="any")
    both = set()
    for text, _ in rows(mixed, 0):
        pairs, queries = read(text)
        both |= {list(pairs).index(q[1]) < list(pairs).index(pairs[q[1]]) for q in queries}
    assert both == {True, False}


def test_chains_are_mixed_with_one_another():
    chains = TASK._chains(random.Random(3))
    orders = {tuple(shuffled_pairs(chains, "forward", random.Random(n))) for n in range(200)}
    n = len(chains)
    assert len(orders) == {2: 6, 3: 90}[n]  # (2 n)! / 2^n


def test_a_step_is_the_same_again_and_another_seed_is_not():
    assert rows(TASK, 5) == rows(TASK, 5) != rows(TASK, 6)
    assert rows(replace(TASK, seed=2), 5) != rows(TASK, 5)


def test_tests_ask_the_first_query():
    tests = TASK.tests()
    assert set(tests) == set(TASK.splits)
    for split, written in tests.items():
        order, hops, _ = split.split("_")
        for prompt, answer, ended in written[:50]:
            pairs, ((asked, source, said),) = read([*prompt, *answer])
            assert asked == hops
            assert said == (pairs[source] if hops == "one" else pairs[pairs[source]])
            places = list(pairs)
            for each in places:
                if pairs[each] in pairs:  # a chain: the one that is asked, or as in the training
                    first = places.index(each) < places.index(pairs[each])
                    assert first == (order == "forward" or each != source)
            assert not ended


@pytest.fixture(scope="module")
def world() -> World:
    schedule = Schedule(steps=3, batch_size=4)
    recipe = Recipe("", ChainsInContext(), Shape(n_blocks=2, d_model=16, n_heads=2), schedule)
    return train_world("chains", recipe=recipe, progress=False)


def test_documents_are_read_as_the_training_writes_them(world):
    questions = world.questions()[:20]
    result = hs.permute_documents(
        world.model, questions, ["forward", "backward"], template=TEMPLATE, label="none",
        progress=False,
    )  # fmt: skip
    assert set(result.frame["order"]) == {"forward", "backward"}
    from hopscope.prompting.document_prompts import DocumentPrompts, FittedQuestion

    prompts = DocumentPrompts(world.model, questions, TEMPLATE, "none")
    for question in questions:
        for order in ("forward", "backward"):
            layout = prompts.layout(FittedQuestion(question, (), ()), order)
            words = layout.text.split()
            pairs, _ = read([*words, "?"])
            source = question.question.split()[1]
            assert pairs[pairs[source]] == question.answer
            places = list(pairs)
            for each in places:
                if pairs[each] in pairs:
                    first = places.index(each) < places.index(pairs[each])
                    assert first == (order == "forward" or each != source)
            assert world.model.encode(" ".join(words)).ids == layout.ids


def test_the_shipped_world_reads_two_hops_in_the_order_that_it_knows():
    world = load_world("in-context", device="cpu")
    shares = {}
    for hops in ("one", "two"):
        asked = world.questions(hops)[:60]
        found = hs.permute_documents(
            world.model, asked, ["forward", "backward"], template=TEMPLATE, label="none",
            progress=False,
        )  # fmt: skip
        shares[hops] = found.frame.groupby("order")[["contained", "bridge"]].mean()
    assert shares["two"].loc["forward", "contained"] > 0.95
    assert shares["two"].loc["backward", "contained"] < 0.2
    assert shares["two"].loc["backward", "bridge"] > 0.4, "it names the bridge instead"
    assert shares["one"].loc["forward", "contained"] > 0.95
    assert 0.6 < shares["one"].loc["backward", "contained"] < 0.95


def test_worlds_ask_what_they_can(world):
    with pytest.raises(UsageError, match=r"see questions\(\)"):
        world.queries()
    assert world.questions("one")[0].answer == world.questions("two")[0].hops[0].answer


@pytest.mark.parametrize(
    "wrong",
    [
        {"order": "up"}, {"most": 5}, {"fewest": 0}, {"fewest": 4}, {"one_hop": 1.5},
        {"late_one_hop": -0.1}, {"late": -1}, {"n_queries": 0},
    ],
)  # fmt: skip
def test_tasks_that_cannot_be_are_refused(wrong):
    with pytest.raises(UsageError):
        replace(TASK, **wrong)
