"""Reachability with thoughts: tasks by brute force, thoughts by passes over the whole text."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from conftest import loaded

from hopscope.errors import UsageError
from hopscope.models.language_model import LanguageModel
from hopscope.queries.graph_paths import reachable
from hopscope.training.fit import IGNORED
from hopscope.training.settings import Schedule
from hopscope.worlds.recipe import Recipe
from hopscope.worlds.small_model import Shape
from hopscope.worlds.tasks.graph_reachability import THOUGHT, GraphReachability
from hopscope.worlds.thoughts import think
from hopscope.worlds.train import answer_loss, thought_of, train_world

TASK = GraphReachability(n_vertices=10, n_edges=10, depth=2, stage_steps=10, seed=1)
TINY = Recipe(
    "tiny",
    TASK,
    Shape(n_blocks=2, n_heads=2, d_model=16, n_positions=48),
    Schedule(steps=4, batch_size=8, warmup_steps=1),
)
VOCABULARY = {word: 3 + n for n, word in enumerate(TASK.words)}
WORDS = {number: word for word, number in VOCABULARY.items()}


def test_one_candidate_can_be_reached_and_by_one_way_only():
    for maze in TASK.mazes()[:300]:
        steps = reachable(maze.edges, maze.way[0])
        assert len(steps) == 5, "half of the vertices"
        assert [each in steps for each in maze.candidates].count(True) == 1
        assert steps[maze.way[-1]] == 2
        assert maze.way[-1] in maze.candidates
        assert all(edge in maze.edges for edge in zip(maze.way, maze.way[1:], strict=False))
        inside = [v for u, v in maze.edges if u in steps]
        assert max(Counter(inside).values()) == 1, "a tree"
        assert len(set(maze.edges)) == 10


def test_stages_follow_one_another_and_name_the_vertex_on_the_way():
    batches = TASK.batches(VOCABULARY, 1, 4)
    stages = []
    for step in range(40):
        batch = batches(step)
        words = [[WORDS[each] for each in row] for row in batch.ids.tolist()]
        stage = words[0].count(THOUGHT)
        stages.append(stage)
        for text in words:
            edges = [(text[at], text[at + 1]) for at in range(0, 30, 3)]
            assert text[30] == "Q"
            assert text[33] == "R"
            assert text[35:-1] == [*[THOUGHT] * stage, "A"]
            assert reachable(edges, text[34])[text[-1]] == stage
        told = batch.targets != IGNORED
        assert told.sum(dim=1).eq(1).all()
        assert batch.targets[told].tolist() == batch.ids[:, -1].tolist()
    assert set(stages[:10]) == {1}
    assert Counter(stages[10:])[2] > 20
    for share, expected in ((0.0, {2}), (1.0, {1}), (0.5, {1, 2})):
        drawn = replace(TASK, earlier=share).batches(VOCABULARY, 1, 1)
        said = [[WORDS[each] for each in drawn(step).ids[0].tolist()] for step in range(10, 40)]
        assert {words.count(THOUGHT) for words in said} == expected


def test_with_a_lead_there_is_a_thought_less_than_steps():
    task = replace(TASK, depth=3, lead=1)
    assert task.n_thoughts == 2
    assert task.longest == TASK.longest
    maze = task.mazes()[0]
    for stage in (1, 2, 3):
        example = task.example(maze, stage)
        assert example.prompt == (*maze.prompt, *[THOUGHT] * (stage - 1), "A")
        assert example.answer == (maze.way[stage],)
    drawn = [task.batches(VOCABULARY, 1, 1)(step).ids[0].tolist() for step in (0, 29)]
    assert [row.count(VOCABULARY[THOUGHT]) for row in drawn] == [0, 2]
    assert task.path_prompts()[0].text.split().count(THOUGHT) == 2


def plain_thinking(model: LanguageModel, ids: torch.Tensor, thought: int) -> torch.Tensor:
    """Logits with each thought put in by a pass of its own over all that stands before it."""
    hf = model.hf
    embedded = hf.get_input_embeddings()(ids)
    for place in range(ids.shape[1]):
        if ids[0, place] == thought:
            before = hf.base_model(inputs_embeds=embedded[:, :place]).last_hidden_state
            embedded = embedded.clone()
            embedded[:, place] = before[:, -1]
    return hf(inputs_embeds=embedded).logits


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_thoughts_are_the_states_before_them(family):
    model = loaded(f"tiny-random-{family}")
    ids = torch.tensor([[5, 6, 7, 9, 9, 8], [6, 8, 5, 9, 9, 7]])
    with torch.no_grad():
        passed = think(model, ids, 9)
        torch.testing.assert_close(
            passed.logits, plain_thinking(model, ids, 9), rtol=1e-3, atol=1e-4
        )
        pauses = think(model, ids, None)
        torch.testing.assert_close(pauses.logits, model.hf(input_ids=ids).logits)
    assert not torch.allclose(passed.logits, pauses.logits)


def test_gradients_flow_through_thoughts():
    world = train_world("tiny", recipe=TINY, progress=False)
    hf = world.model.hf
    hf.requires_grad_(True)
    batch = replace(TASK, stage_steps=1).batches(world.model.tokenizer.get_vocab(), 1, 4)(5)
    thought = thought_of(TASK, world.model)
    answer_loss(world.model, batch, 1, thought).backward()
    found = hf.transformer.wte.weight.grad.clone()
    hf.zero_grad()
    logits = plain_thinking(world.model, batch.ids, thought)
    told = batch.targets != IGNORED
    torch.nn.functional.cross_entropy(logits[told], batch.targets[told]).backward()
    torch.testing.assert_close(found, hf.transformer.wte.weight.grad, rtol=1e-3, atol=1e-6)


def test_a_pause_is_an_ordinary_token_and_trains_otherwise():
    thinking = train_world("tiny", recipe=TINY, progress=False)
    pausing = train_world(
        "tiny", recipe=replace(TINY, task=replace(TASK, continuous=False)), progress=False
    )
    assert thought_of(pausing.task, pausing.model) is None
    assert thought_of(thinking.task, thinking.model) == pausing.model.tokenizer.get_vocab()["T"]
    assert set(thinking.accuracy) == {"in_distribution", "step_1"}
    a, b = (world.model.hf.transformer.wte.weight for world in (thinking, pausing))
    assert not torch.equal(a, b)


def test_thoughts_at_different_places_are_refused():
    world = train_world("tiny", recipe=TINY, progress=False)
    with pytest.raises(UsageError, match="same places"):
        think(world.model, torch.tensor([[5, 9, 6], [5, 6, 9]]), 9)
    with pytest.raises(UsageError, match="after some token"):
        think(world.model, torch.tensor([[9, 5]]), 9)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"n_vertices": 9}, {"depth": 5}, {"depth": 0}, {"n_edges": 7}, {"earlier": 1.1}),
        *({"lead": 2}, {"lead": -1}, {"lead": 1, "depth": 1}),
    ],
)
def test_trees_that_cannot_be_are_refused(wrong):
    with pytest.raises(UsageError):
        GraphReachability(**{**TASK.__dict__, **wrong})


def test_path_prompts_point_at_the_words_they_mean():
    for prompt, maze in zip(TASK.path_prompts()[:20], TASK.mazes(), strict=False):
        words = prompt.text.split()
        assert [(words[a], words[b]) for a, b in prompt.edges] == list(maze.edges)
        assert (words[prompt.start], words[prompt.goal]) == (maze.way[0], maze.way[-1])
        assert words.count(THOUGHT) == 2


def test_what_a_thinking_world_holds_no_prompt_tells():
    thinking = train_world("tiny", recipe=TINY, progress=False)
    with pytest.raises(UsageError, match="superposition"):
        thinking.paths()
    with pytest.raises(UsageError, match=r"see paths\(\)"):
        thinking.queries()
    pausing = replace(TINY, task=replace(TASK, continuous=False))
    assert len(train_world("tiny", recipe=pausing, progress=False).paths(5)) == 5
