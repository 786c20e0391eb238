"""Two-hop facts: what is composed, trained on and held out, against brute force."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hopscope.errors import UsageError
from hopscope.training.fit import IGNORED
from hopscope.worlds.tasks.examples import EpochBatches, Example, as_batch
from hopscope.worlds.tasks.two_hop_facts import TwoHopFacts, names

SMALL = TwoHopFacts(n_entities=7, n_relations=4, unseen=0.2, held_out=10, atom_repeats=3, seed=5)
VOCABULARY = {word: 3 + n for n, word in enumerate(SMALL.words)}
END = 1


def chain(task: TwoHopFacts, split: str) -> list[tuple[str, str, str, str, str]]:
    return [(q.e1, q.r1, q.e2, q.r2, q.e3) for q in task.queries(split)]


def rows(task: TwoHopFacts, steps: range, size: int) -> list[tuple[str, ...]]:
    """What some steps are trained on, in words, without what comes after the end."""
    words = {number: word for word, number in VOCABULARY.items()}
    drawn = task.batches(VOCABULARY, END, size)
    found = []
    for step in steps:
        for ids in drawn(step).ids.tolist():
            found.append(tuple(words[each] for each in ids if each != END))
    return found


def test_every_two_hop_fact_is_in_exactly_one_split_and_right():
    splits = {split: set(chain(SMALL, split)) for split in (*SMALL.splits, "trained")}
    unseen = SMALL.unseen_atoms
    assert len(unseen) == round(0.2 * 28)
    for h in SMALL.entities:
        for r1 in SMALL.relations:
            for r2 in SMALL.relations:
                b = SMALL.atoms[h, r1]
                fact = (h, r1, b, r2, SMALL.atoms[b, r2])
                first, second = (h, r1) in unseen, (b, r2) in unseen
                where = [split for split, facts in splits.items() if fact in facts]
                if first and second:
                    assert where == []
                elif first:
                    assert where == ["first_hop_ood"]
                elif second:
                    assert where == ["second_hop_ood"]
                else:
                    assert where in (["in_distribution"], ["trained"])
    assert len(splits["in_distribution"]) == 10
    assert min(map(len, splits.values())) > 0


def test_a_pass_sees_every_atom_so_often_and_every_trained_fact_once():
    trained = chain(SMALL, "trained")
    n = 3 * 28 + len(trained)
    size = n // 4
    seen = rows(SMALL, range(8), size)
    passes = [seen[:n], seen[n : 2 * n]]
    expected = [(h, r, b) for (h, r), b in SMALL.atoms.items()] * 3
    expected += [(e1, r1, r2, e3) for e1, r1, _, r2, e3 in trained]
    assert sorted(passes[0]) == sorted(expected)
    assert passes[0] != sorted(expected)
    assert rows(SMALL, range(3, 4), size) == seen[3 * size : 4 * size]


def test_zero_hop_facts_are_seen_as_often_as_atoms_and_change_no_other():
    n_trained = len(chain(SMALL, "trained"))
    for kind in ("identity", "shuffled"):
        task = replace(SMALL, zero_hop=kind)
        n = 3 * (28 + 7) + n_trained
        seen = rows(task, range(1), n)
        atoms = [(h, r, b) for (h, r), b in SMALL.atoms.items()] * 3
        trained = [(e1, r1, r2, e3) for e1, r1, _, r2, e3 in chain(SMALL, "trained")]
        zero_hop = [each for each in seen if len(each) == 2]
        assert sorted(each for each in seen if len(each) > 2) == sorted(atoms + trained)
        assert [first for first, _ in sorted(zero_hop)] == sorted(3 * SMALL.entities)
        assert {answer for _, answer in zero_hop} == set(SMALL.entities)
        same = {first == answer for first, answer in zero_hop}
        assert same == {kind == "identity"}
        assert {each.prompt + each.answer for each in task.tests()["zero_hop"]} == set(zero_hop)
        assert {**task.tests(), "zero_hop": None} == {**SMALL.tests(), "zero_hop": None}
    assert "zero_hop" not in SMALL.tests()
    with pytest.raises(UsageError, match="zero_hop"):
        replace(SMALL, zero_hop="other")


def test_orders_differ_from_pass_to_pass_and_from_seed_to_seed():
    table = as_batch(
        [Example((str(n),), (str(n),)) for n in range(50)], {str(n): n for n in range(50)}, 50
    )
    first = EpochBatches(table, 50, 0)
    assert not torch.equal(first(0).ids, first(1).ids)
    assert not torch.equal(first(0).ids, EpochBatches(table, 50, 1)(0).ids)
    together = torch.cat([EpochBatches(table, 20, 0)(step).ids for step in range(5)])
    assert torch.equal(together, torch.cat([first(0).ids, first(1).ids]))
    assert torch.equal(EpochBatches(table, 120, 0)(0).ids[:100], together)


def test_the_loss_is_on_the_answer_and_the_end():
    table = as_batch(
        [Example(("a", "b"), ("c",)), Example(("a",), ("b",))], {"a": 5, "b": 6, "c": 7}, 1
    )
    assert table.ids.tolist() == [[5, 6, 7], [5, 6, 1]]
    assert table.targets.tolist() == [[IGNORED, 7, 1], [6, 1, IGNORED]]


def test_queries_ask_in_the_words_of_the_training():
    query = SMALL.queries("first_hop_ood")[0]
    assert query.two_hop() == f"{query.e1} {query.r1} {query.r2}"
    assert query.first_hop() == f"{query.e1} {query.r1}"
    assert query.second_hop() == f"{query.e2} {query.r2}"
    assert query.relation_shortcut() == f"{query.r1} {query.r2}"
    assert SMALL.atoms[query.e1, query.r1] == query.e2
    assert SMALL.atoms[query.e2, query.r2] == query.e3


def test_seeds_draw_other_facts_and_the_same_ones_again():
    same, other = replace(SMALL), replace(SMALL, seed=6)
    assert chain(same, "trained") == chain(SMALL, "trained")
    assert same.atoms == SMALL.atoms != other.atoms


def test_fewer_facts_are_trained_on_where_that_is_asked():
    fewer = replace(SMALL, trained=5)
    assert chain(fewer, "trained") == chain(SMALL, "trained")[:5]
    assert chain(fewer, "in_distribution") == chain(SMALL, "in_distribution")


def test_no_name_begins_another():
    assert names("e", 11)[1] == "e01"
    assert names("e", 10)[1] == "e1"


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_entities": 0},
        {"held_out": 0},
        {"unseen": 0.0},
        {"unseen": 1.0},
        {"held_out": 10_000},
        {"trained": 10_000},
        {"trained": -5},
        {"n_entities": 2, "n_relations": 2, "unseen": 0.25, "held_out": 1, "seed": 1},
    ],
)
def test_numbers_that_leave_a_split_empty_are_refused(wrong):
    with pytest.raises(UsageError):
        replace(SMALL, **wrong)
