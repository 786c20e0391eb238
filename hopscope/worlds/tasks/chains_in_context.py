"""Provides ChainsInContext: the prompt lists the pairs of several chains, and asks to follow one.

The task of Guo et al. 2025: shuffled pairs `a b` and `b c` of several chains, then a query `one a`
(answer b) or `two a` (answer c). The model may rely on which of the two pairs comes first.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch

from hopscope.documents.question_set import Document, Hop, MultiDocQuestion, QuestionSet
from hopscope.documents.templates import Template
from hopscope.errors import UsageError, one_of
from hopscope.queries.graph_paths import PathPrompt
from hopscope.training.fit import IGNORED
from hopscope.training.settings import check_not_negative, check_positive, check_shares, share_at
from hopscope.worlds.tasks.examples import Example, TaskBatch
from hopscope.worlds.tasks.two_hop_facts import names

PairOrder = Literal["forward", "backward", "any"]
TEMPLATE = Template("", "{text} ", "{question}", max_new_tokens=1)
"""The template of the prompts: the pairs, followed by one query."""
TESTED = 1000
"""Number of test prompts."""


class Chain(NamedTuple):
    """Three nodes that follow one another in a chain."""

    source: str
    bridge: str
    answer: str


@dataclass(frozen=True)
class ChainsInContext:
    """Prompts of shuffled pairs, newly drawn at each training step.

    Attributes:
        n_nodes: number of different nodes.
        fewest, most: smallest and largest number of chains in a prompt.
        order: order of the two pairs of a chain in training: the first hop before the second
            (`forward`), after it (`backward`), or `any`.
        one_hop: share of the queries that ask one hop.
        late_one_hop: the same share from step `late` on; None keeps it constant.
        late: the first step with `late_one_hop`.
        n_queries: the most queries in a prompt, each about a different chain; None asks about all
            chains. A second query can partly be answered by excluding the answer of the first,
            without following two hops.
        seed: seed of everything that is drawn.

    Raises:
        UsageError: if there are too few nodes for the chains, or for an unknown order.
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
        one_of("order", self.order, get_args(PairOrder))
        if not 0 < self.fewest <= self.most or 3 * self.most > self.n_nodes:
            raise UsageError(
                f"{self.fewest} to {self.most} chains of 3 nodes do not fit into {self.n_nodes} "
                "nodes; take fewer chains or more nodes"
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
        """The vocabulary of the task."""
        return (*self.nodes, "one", "two")

    @property
    def longest(self) -> int:
        """Number of tokens of the longest text."""
        return 4 * self.most + 3 * min(self.n_queries or self.most, self.most)

    def _chains(self, rng: random.Random) -> list[Chain]:
        """Draw chains without common nodes."""
        n = rng.randint(self.fewest, self.most)
        drawn = rng.sample(self.nodes, 3 * n)
        return [Chain(*drawn[3 * each : 3 * each + 3]) for each in range(n)]

    def batches(
        self, vocabulary: Mapping[str, int], end: int, size: int
    ) -> Callable[[int], TaskBatch]:
        """Return a function that draws the batch of a step; see `Task.batches`."""
        width = self.longest

        def drawn(step: int) -> TaskBatch:
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
            return TaskBatch(ids, targets)

        return drawn

    def one_hop_at(self, step: int) -> float:
        """Return the share of queries that ask one hop at a step, counted from 0."""
        return share_at(step, self.one_hop, self.late_one_hop, self.late)

    def _example(self, rng: random.Random, one_hop: float) -> tuple[list[str], list[int]]:
        """Draw a prompt with its queries and answers, and the word indices of the answers."""
        chains = self._chains(rng)
        words = [word for pair in shuffled_pairs(chains, self.order, rng) for word in pair]
        rng.shuffle(chains)
        answers = []
        for chain in chains[: self.n_queries]:
            hops = "one" if rng.random() < one_hop else "two"
            words += [hops, chain.source, chain.bridge if hops == "one" else chain.answer]
            answers.append(len(words) - 1)
        return words, answers

    def _test_chains(self) -> Iterator[tuple[Chain, list[Chain], random.Random]]:
        """Yield the chains of each test prompt: the one of the query, all of them, and an RNG."""
        for number in range(TESTED):
            rng = random.Random(f"{self.seed} test {number}")
            chains = self._chains(rng)
            yield rng.choice(chains), chains, rng

    def tests(self) -> Mapping[str, Sequence[Example]]:
        """Return test prompts with one query, by the order of the pairs and the number of hops.

        The order is that of the chain in the query; the other chains are ordered as in training.
        """
        tests: dict[str, list[Example]] = {split: [] for split in self.splits}
        for chain, chains, rng in self._test_chains():
            shuffled = shuffled_pairs(chains, self.order, rng)
            pairs = {
                order: _with_order(shuffled, chain, order) for order in ("forward", "backward")
            }
            for split in self.splits:
                order, hops, _ = split.split("_")
                prompt = [word for pair in pairs[order] for word in pair]
                answer = chain.bridge if hops == "one" else chain.answer
                tests[split].append(Example((*prompt, hops, chain.source), (answer,), ended=False))
        return tests

    def questions(self, hops: Literal["one", "two"] = "two") -> QuestionSet:
        """Return the test prompts as questions over documents, where each pair is a document.

        Use them with `TEMPLATE`. The original order of the documents is one of the training.

        Args:
            hops: whether the questions ask one hop or two.
        """
        questions = []
        for number, (chain, chains, rng) in enumerate(self._test_chains()):
            pairs = shuffled_pairs(chains, self.order, rng)
            documents = tuple(Document("", " ".join(pair)) for pair in pairs)
            first, second = chain[:2], chain[1:]
            steps = (
                Hop(f"one {chain.source}", chain.bridge, pairs.index(first)),
                Hop(f"one {chain.bridge}", chain.answer, pairs.index(second)),
            )
            answer = chain.bridge if hops == "one" else chain.answer
            text = f"{hops} {chain.source}"
            questions.append(MultiDocQuestion(str(number), text, answer, documents, steps))
        return QuestionSet(tuple(questions), f"chains ({hops} hop)")

    def path_prompts(self) -> list[PathPrompt]:
        """Return the two-hop test prompts, in the order of the training, for `computation_graph`.

        They are grouped by the number of chains; the goal is the answer.
        """
        prompts = []
        for number, (chain, chains, rng) in enumerate(self._test_chains()):
            pairs = shuffled_pairs(chains, self.order, rng)
            words = [*(word for pair in pairs for word in pair), "two", chain.source]
            edges = tuple((2 * at, 2 * at + 1) for at in range(len(pairs)))
            goal = 2 * pairs.index((chain.bridge, chain.answer)) + 1
            ends = {"start": len(words) - 1, "goal": goal, "group": len(chains)}
            text = " ".join(words)
            prompts.append(PathPrompt(str(number), text, chain.answer, edges, **ends))
        return prompts


def _with_order(
    pairs: Sequence[tuple[str, str]], chain: Chain, order: str
) -> list[tuple[str, str]]:
    """Put the two pairs of one chain in a given order, in the places that they occupy."""
    hops = [(chain.source, chain.bridge), (chain.bridge, chain.answer)]
    ordered = iter(hops if order == "forward" else hops[::-1])
    return [next(ordered) if pair in hops else pair for pair in pairs]


def shuffled_pairs(
    chains: Sequence[Chain], order: str, rng: random.Random
) -> list[tuple[str, str]]:
    """Shuffle the pairs of all chains, with the two pairs of each chain in a given order."""
    places = [index for index in range(len(chains)) for _ in range(2)]
    rng.shuffle(places)
    pairs, seen = [], set[int]()
    is_backward = {
        index: order == "backward" or (order == "any" and rng.random() < 0.5)
        for index in range(len(chains))
    }
    for index in places:
        second = (index in seen) != is_backward[index]
        seen.add(index)
        chain = chains[index]
        pairs.append((chain.bridge, chain.answer) if second else (chain.source, chain.bridge))
    return pairs
