"""Tests of the world of three hops: its facts, its splits, and what the instruments read off it."""

from __future__ import annotations

from itertools import pairwise

import pytest

import hopscope as hs
from hopscope.errors import UsageError
from hopscope.experiments.two_hop.layer_order import OWN_HOP
from hopscope.queries.multi_hop_query import MultiHopQuery
from hopscope.worlds.tasks.multi_hop_facts import MultiHopFacts

SMALL = MultiHopFacts(n_entities=6, n_relations=3, held_out=20, trained=40, atom_repeats=2)


def test_every_chain_follows_the_facts() -> None:
    for split in ("in_distribution", "trained"):
        for query in SMALL.queries(split):
            assert isinstance(query, MultiHopQuery)
            for (head, tail), relation in zip(
                pairwise(query.labels), query.relation_ids, strict=True
            ):
                assert SMALL.atoms[head, relation] == tail
            assert query.compose()[0] == " ".join((query.labels[0], *query.relation_ids))
            assert len(set(query.positions)) == 3


def test_held_out_chains_are_not_trained_on() -> None:
    held, trained = ({q.id for q in SMALL.queries(s)} for s in ("in_distribution", "trained"))
    assert (len(held), len(trained), len(held & trained)) == (20, 40, 0)
    tests = SMALL.tests()
    assert {name: len(each) for name, each in tests.items()} == {
        "atoms": 18,
        "trained": 40,
        "in_distribution": 20,
    }
    words = {word: place for place, word in enumerate(SMALL.words)}
    rows = SMALL.batches(words, len(words), 130)(0)
    assert rows.ids.shape[1] == SMALL.longest
    lengths = (rows.ids != len(words)).sum(dim=1).tolist()
    assert {n: lengths.count(n) for n in (3, 4, 5)} == {3: 2 * 18, 4: 6 * 9, 5: 40}


MISTAKES = [
    ({"n_hops": 2}, "n_hops 3 or 4"),
    ({"held_out": 0}, "must each be 1 or more"),
    ({"n_entities": 2, "n_relations": 2}, "there are 16 chains of 3 hops; 500 held out"),
]


@pytest.mark.parametrize(("settings", "message"), MISTAKES, ids=str)
def test_a_mistake_is_told(settings: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MultiHopFacts(**settings)


def test_the_instruments_read_the_known_order() -> None:
    """Each entity appears where it is due, one hop after the other, and no hop is skipped."""
    world = hs.load_world("three-hop-looped", device="cpu")
    assert world.accuracy["in_distribution"] > 0.99
    known = world.queries().sample(60)
    order = hs.layer_order(world.model, known, rank=0, progress=False)
    shown = order.decoded()
    shown = shown[shown["position"] == OWN_HOP]
    own = shown[shown["control"] == "none"]
    assert list(own["entity"]) == ["e2", "e3", "e4"]
    assert (own["share"] == 1).all()
    assert own["mean_first_layer"].is_monotonic_increasing
    other = shown[shown["control"] == "other"]
    assert (other["share"] < 0.35).all()
    blocked = hs.knockout(
        world.model, known[:40], window=0, controls=(), max_new_tokens=1, progress=False
    )
    worst = blocked.effect().pivot(index="layer", columns="edge", values="effect")
    assert worst.idxmax()[["t1->e1", "t2->t1", "t3->t2"]].to_list() == [0, 2, 4]
    assert (worst[["t1->e1", "t2->t1", "t3->t2"]].max() > 0.2).all()
    assert worst[["t3->t1", "t3->e1"]].to_numpy().max() == 0
    graded = hs.grade(world.model, known, max_new_tokens=1, progress=False).summary()
    right = graded.set_index("what")["share"]
    assert (right[["three_hop", "hops_1_2", "hops_2_3", "all_hops"]] == 1).all()
    assert right[["without_r1", "without_r2", "without_e1", "without_e2"]].max() < 0.35
