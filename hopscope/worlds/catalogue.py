"""Provides the recipes of the named worlds: task, shape of the model, and schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from hopscope.compat.old_paths import old_names
from hopscope.errors import one_of
from hopscope.training.settings import Schedule
from hopscope.worlds.recipe import Recipe
from hopscope.worlds.small_model import Shape
from hopscope.worlds.tasks.chains_in_context import ChainsInContext
from hopscope.worlds.tasks.composed_tables import ComposedTables
from hopscope.worlds.tasks.graph_reachability import GraphReachability
from hopscope.worlds.tasks.graph_search import GraphSearch
from hopscope.worlds.tasks.multi_hop_facts import MultiHopFacts
from hopscope.worlds.tasks.two_hop_facts import TwoHopFacts

COVERED = Schedule(steps=4000, batch_size=512, learning_rate=1e-3, weight_decay=1.0)
"""With less weight decay, or a narrower model, the memorising phase lasts longer."""
REACHABILITY = GraphReachability(n_vertices=12, n_edges=12, stage_steps=2400, earlier=0.3)
THINKING_SHAPE = Shape(
    n_blocks=2, n_heads=4, d_model=64, d_mlp=128, n_positions=48, scaled=True, rotary=True
)
THINKING_SCHEDULE = Schedule(steps=7200, batch_size=128, hold=0.8)
"""Three stages of 2,400 steps, one for each thought. With only 10 % of the batches from earlier
stages, seed 1 does not learn the third stage, neither in 1,600 steps nor in 2,400."""
WORLDS: Mapping[str, Recipe] = MappingProxyType(
    {
        "two-hop-looped": Recipe(
            "composes: two blocks that run twice, atoms ten times as often as two-hop facts",
            TwoHopFacts(),
            Shape(n_blocks=2, n_loops=2),
        ),
        "two-hop": Recipe(
            "composes: four blocks, atoms ten times as often as two-hop facts",
            TwoHopFacts(),
        ),
        "two-hop-memoriser": Recipe(
            "memorises: four blocks, atoms as often as two-hop facts",
            TwoHopFacts(atom_repeats=1),
        ),
        "three-hop-looped": Recipe(
            "composes three hops: two blocks that run three times",
            MultiHopFacts(),
            Shape(n_blocks=2, n_loops=3),
            Schedule(steps=3000),
        ),
        "in-context": Recipe(
            "follows chains in its prompt, whose first hop always came first",
            ChainsInContext(most=2, late_one_hop=0.15, n_queries=1),
            Shape(n_heads=1, d_mlp=64, scaled=True, rotary=True),
            Schedule(steps=6000, batch_size=128, hold=0.8),
        ),
        "coverage": Recipe(
            "composes two random tables as far as its examples cover them",
            ComposedTables(),
            Shape(d_model=128),
            COVERED,
        ),
        "coverage-few-bridges": Recipe(
            "as coverage, but by way of four bridges",
            ComposedTables(n_examples=6000, n_bridges=4),
            Shape(d_model=128),
            COVERED,
        ),
        # With as many bridges as tokens, f2 would have as many entries as there are inputs, so that
        # composing would have no advantage over memorising.
        "coverage-path-ambiguity": Recipe(
            "as coverage-few-bridges, but the second token is an argument of both tables",
            ComposedTables("path_ambiguity", n_examples=6000, n_bridges=4),
            Shape(d_model=128),
            COVERED,
        ),
        "graph-search": Recipe(
            "finds the next step to a goal in a graph that its prompt lists",
            GraphSearch(),
            Shape(n_blocks=5, n_heads=1, n_positions=40, one_hot=True),
            Schedule(steps=10000, learning_rate=1e-3),
        ),
        "reachability": Recipe(
            "names which of two vertices can be reached, after three continuous thoughts",
            REACHABILITY,
            THINKING_SHAPE,
            THINKING_SCHEDULE,
        ),
        "reachability-pause": Recipe(
            "as reachability, but with a pause in place of each thought",
            replace(REACHABILITY, continuous=False),
            THINKING_SHAPE,
            THINKING_SCHEDULE,
        ),
        # Its first stage, without a thought, takes 2,000 steps to be learned.
        "reachability-ahead": Recipe(
            "as reachability, with two thoughts for three steps, so that none can lag behind",
            replace(REACHABILITY, lead=1, stage_steps=4000),
            THINKING_SHAPE,
            replace(THINKING_SCHEDULE, steps=12000),
        ),
    }
)


def recipe_of(name: str) -> Recipe:
    """Return the recipe of a named world.

    Raises:
        UsageError: for an unknown name.
    """
    return WORLDS[one_of("world", name, WORLDS)]


__getattr__ = old_names(__name__)
