"""Provides ChainsInContext: chains of nodes that stand in the prompt, shuffled, and are followed.

The task of Guo et al. 2025: pairs `a b` and `b c` of several chains, then a query `one a` (b) or
`two a` (c). Which of the two pairs comes first is what the model may lean on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch

from hopscope.documents.question_set import Document, Hop, MultiDocQuestion, QuestionSet
from hopscope.documents.templates import Template
from hopscope.errors import UsageError
from hopscope.queries.graph_paths import PathPrompt
from hopscope.training.fit import IGNORED
from hopscope.training.settings import check_not_negative, check_positive, check_shares, share_at
from hopscope.worlds.tasks.examples import Batch, Written
from hopscope.worlds.tasks.two_hop_facts import names

PairOrder = Literal["forward", "backward", "any"]
TEMPLATE = Template("", "{text} ", "{question}", max_new_tokens=1)
"""The prompts of the world: the pairs, and one query."""
TESTED = 1000


class Chain(NamedTuple):
    """A node, the one that it leads to, and the one that this leads to."""

    source: str
    bridge: str
    answer: str


@dataclass(frozen=True)
class ChainsInContext:
    """Prompts of shuffled pairs, drawn anew for every step.

    Attributes:
        n_nodes: how many nodes there are.
        fewest, most: chains of a prompt.
        order: of a chain's two pairs in the training: the first hop before the second
            (`forward`), after it (`backward`), or `any`.
        one_hop: share of the queries that ask one hop.
        late_one_hop: the same from step `late` on; None leaves it as it was.
        late: the step from which `late_one_hop` holds.
        n_queries: the most of a prompt, each about another chain; None asks about all. A second one
            can be answered in part by leaving out what the first was answered with, which takes no
            two hops.
        seed: of all that is drawn.

    Raises:
        UsageError: for chains that do not fit, or an unknown order.
    """

    kind: ClassVar[str] = "chains_in_context"
    splits: ClassVar[tuple[str, ...]] = (
        "forward_two_hop",
        "backward_two_hop",
        "forward_one_hop",
        "backward_one_hop",
    )

    n_nodes: int = 20
    fewest: int = 2
    most: int = 4
    order: PairOrder = "forward"
    one_hop: float = 0.5
    late_one_hop: float | None = None
    late: int = 600
    n_queries: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.order not in get_args(PairOrder):
            known = ", ".join(get_args(PairOrder))
            raise UsageError(f"unknown order {self.order!r}: choose one of {known}")
        if not 0 < self.fewest <= self.most or 3 * self.most > self.n_nodes:
            raise UsageError(
                f"{self.fewest} to {self.most} chains of 3 nodes do not fit into {self.n_nodes}"
            )
        if self.n_queries is not None:
            check_positive(self, "n_queries")
        check_shares(self, "one_hop", "late_one_hop")
        check_not_negative(self, "late")

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of the nodes."""
        return names("n", self.n_nodes)

    @property
    def words(self) -> tuple[str, ...]:
        """All words of the world."""
        return (*self.nodes, "one", "two")

    @property
    def longest(self) -> int:
        """Tokens of as many pairs and queries as there can be."""
        return 4 * self.most + 3 * min(self.n_queries or self.most, self.most)

    def _chains(self, rng: random.Random) -> list[Chain]:
        """Chains that share no node."""
        n = rng.randint(self.fewest, self.most)
        drawn = rng.sample(self.nodes, 3 * n)
        return [Chain(*drawn[3 * each : 3 * each + 3]) for each in range(n)]

    def batches(self, vocabulary: Mapping[str, int], end: int, size: int) -> Callable[[int], Batch]:
        """Batches of new prompts."""
        width = self.longest

        def drawn(step: int) -> Batch:
            ids = torch.full((size, width), end)
            targets = torch.full_like(ids, IGNORED)
            one_hop = self.one_hop_at(step)
            for row in range(size):
                rng = random.Random(f"{self.seed} {step} {row}")
                words, answers = self._example(rng, one_hop)
                ids[row, : len(words)] = torch.tensor([vocabulary[word] for word in words])
                for place in answers:
                    targets[row, place - 1] = ids[row, place]
                targets[row, len(words) - 1] = end
            return Batch(ids, targets)

        return drawn

    def one_hop_at(self, step: int) -> float:
        """The share of the queries of a step, counted from 0, that ask one hop."""
        return share_at(step, self.one_hop, self.late_one_hop, self.late)

    def _example(self, rng: random.Random, one_hop: float) -> tuple[list[str], list[int]]:
        """A prompt with all its queries, and the places of their answers."""
        chains = self._chains(rng)
        words = [word for pair in shuffled_pairs(chains, self.order, rng) for word in pair]
        rng.shuffle(chains)
        answers = []
        for chain in chains[: self.n_queries]:
            hops = "one" if rng.random() < one_hop else "two"
            words += [hops, chain.source, chain.bridge if hops == "one" else chain.answer]
            answers.append(len(words) - 1)
        return words, answers

    def _asked(self) -> Iterator[tuple[Chain, list[Chain], random.Random]]:
        """New chains, of which one is asked."""
        for number in range(TESTED):
            rng = random.Random(f"{self.seed} test {number}")
            chains = self._chains(rng)
            yield rng.choice(chains), chains, rng

    def tests(self) -> Mapping[str, Sequence[Written]]:
        """The first query after new pairs, by order and number of hops; none asks for an end.

        The order is that of the chain that is asked; the others stand as in the training.
        """
        found: dict[str, list[Written]] = {split: [] for split in self.splits}
        for chain, chains, rng in self._asked():
            mixed = shuffled_pairs(chains, self.order, rng)
            pairs = {order: _turned(mixed, chain, order) for order in ("forward", "backward")}
            for split in self.splits:
                order, hops, _ = split.split("_")
                prompt = [word for pair in pairs[order] for word in pair]
                answer = chain.bridge if hops == "one" else chain.answer
                found[split].append(Written((*prompt, hops, chain.source), (answer,), ended=False))
        return found

    def questions(self, hops: Literal["one", "two"] = "two") -> QuestionSet:
        """The same questions over documents, one a pair, for `permute_documents` and the like.

        Ask them with `TEMPLATE`. The original order is one of the training.
        """
        questions = []
        for number, (chain, chains, rng) in enumerate(self._asked()):
            pairs = shuffled_pairs(chains, self.order, rng)
            documents = tuple(Document("", " ".join(pair)) for pair in pairs)
            first, second = chain[:2], chain[1:]
            told = (
                Hop(f"one {chain.source}", chain.bridge, pairs.index(first)),
                Hop(f"one {chain.bridge}", chain.answer, pairs.index(second)),
            )
            answer = chain.bridge if hops == "one" else chain.answer
            asked = f"{hops} {chain.source}"
            questions.append(MultiDocQuestion(str(number), asked, answer, documents, told))
        return QuestionSet(tuple(questions), f"chains ({hops} hop)")

    def path_prompts(self) -> list[PathPrompt]:
        """The prompts of two hops, in the order of the training, for `computation_graph`.

        They are grouped by the number of chains; the goal is the answer.
        """
        prompts = []
        for number, (chain, chains, rng) in enumerate(self._asked()):
            pairs = shuffled_pairs(chains, self.order, rng)
            words = [*(word for pair in pairs for word in pair), "two", chain.source]
            edges = tuple((2 * at, 2 * at + 1) for at in range(len(pairs)))
            goal = 2 * pairs.index((chain.bridge, chain.answer)) + 1
            ends = {"start": len(words) - 1, "goal": goal, "group": len(chains)}
            text = " ".join(words)
            prompts.append(PathPrompt(str(number), text, chain.answer, edges, **ends))
        return prompts


def _turned(pairs: Sequence[tuple[str, str]], chain: Chain, order: str) -> list[tuple[str, str]]:
    """The same pairs with the two of one chain in an order, in the places that they have."""
    hops = [(chain.source, chain.bridge), (chain.bridge, chain.answer)]
    own = iter(hops if order == "forward" else hops[::-1])
    return [next(own) if pair in hops else pair for pair in pairs]


def shuffled_pairs(
    chains: Sequence[Chain], order: str, rng: random.Random
) -> list[tuple[str, str]]:
    """The pairs of all chains, mixed; the two of a chain in an order."""
    places = [index for index in range(len(chains)) for _ in range(2)]
    rng.shuffle(places)
    found, seen = [], set[int]()
    turned = {
        index: order == "backward" or (order == "any" and rng.random() < 0.5)
        for index in range(len(chains))
    }
    for index in places:
        second = (index in seen) != turned[index]
        seen.add(index)
        chain = chains[index]
        found.append((chain.bridge, chain.answer) if second else (chain.source, chain.bridge))
    return found
