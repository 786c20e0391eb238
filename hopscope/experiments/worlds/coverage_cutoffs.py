"""Provides cutoffs(): how well the examples of a task cover each of its inputs.

The Coverage Principle (Chang et al. 2025), section 3. A fragment is what stands in some of an
input's places; its context is the rest. Two fragments are k-equivalent if at least k contexts were
seen with both, and all that were seen with both agree. An input is k-covered if k-equivalent
fragments, put in place of each other one after the other, lead from an example to it. Its cutoff
is the largest such k: how much evidence the weakest link has.

A substitution leads from one input to another whatever their answers are, since a learner does not
know those that it was not shown. The authors' code joins inputs of the same answer only, which
takes the answers of the test for it; that is `same_answer`. Where equivalent fragments are really
equal in function, both are the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Int
from scipy import sparse
from scipy.sparse.csgraph import connected_components


def cutoffs(
    inputs: Int[np.ndarray, "input place"],
    answers: Int[np.ndarray, " input"],
    examples: Int[np.ndarray, " example"],
    same_answer: bool = False,
) -> Int[np.ndarray, " input"]:
    """The k-cutoff of every input.

    For each k, inputs and classes of equivalent fragments in a context are the nodes of one graph,
    whose components are found together.

    Args:
        inputs: all inputs, each place a number from 0 on.
        answers: of each.
        examples: the indices of those that are seen.
        same_answer: join inputs of the same answer only, as the authors' code does.

    Returns:
        0 for an input that no substitution leads to. An example is covered at every k, and gets
        the largest that there is, 1 if there is none.
    """
    parts = [_Fragments(inputs, answers, examples, places) for places in subsets(inputs.shape[1])]
    found = np.zeros(len(inputs), dtype=int)
    found[examples] = 1
    answer = answers if same_answer else np.zeros_like(answers)
    levels = np.unique(np.concatenate([part.weights.data for part in parts] or [[]]))
    for k in levels[levels > 0].astype(int):
        found[_reached([part.classes(k, answer) for part in parts], len(inputs), examples)] = k
    return found


def exact_cutoffs(
    inputs: Int[np.ndarray, "input place"],
    answers: Int[np.ndarray, " input"],
    examples: Int[np.ndarray, " example"],
    same_answer: bool = False,
) -> Int[np.ndarray, " input"]:
    """The same, word by word as defined: every pair of inputs, every subset of places.

    Its time grows with the square of the number of inputs; it is what `cutoffs` must equal.
    """
    answer_of = {tuple(inputs[index]): int(answers[index]) for index in examples}
    everything = [tuple(each) for each in inputs.tolist()]
    links: list[tuple[int, int, int]] = []
    for places in subsets(inputs.shape[1]):
        evidence = _evidence(answer_of, places)
        if same_answer:  # or an equivalent fragment of another answer would break a chain
            evidence = _through_others(evidence)
        for one, other in combinations(range(len(everything)), 2):
            if same_answer and answers[one] != answers[other]:
                continue
            a, b = everything[one], everything[other]
            rest = [place for place in range(len(a)) if place not in places]
            if all(a[place] == b[place] for place in rest):
                pair = tuple(a[place] for place in places), tuple(b[place] for place in places)
                if (k := evidence.get(pair, 0)) > 0:
                    links.append((k, one, other))
    return _widest(links, len(inputs), examples)


def subsets(n_places: int) -> Iterator[tuple[int, ...]]:
    """All choices of places that leave some."""
    for size in range(1, n_places):
        yield from combinations(range(n_places), size)


class _Fragments:
    """The fragments in some places, and how much evidence there is that two are equivalent.

    Attributes:
        weights: contexts in which both were seen, if all agree, else 0; (fragment, fragment).
        fragment, context: of each input.
    """

    def __init__(
        self, inputs: np.ndarray, answers: np.ndarray, examples: np.ndarray, places: Sequence[int]
    ) -> None:
        rest = [place for place in range(inputs.shape[1]) if place not in places]
        self.fragment = np.unique(inputs[:, places], axis=0, return_inverse=True)[1].ravel()
        self.context = np.unique(inputs[:, rest], axis=0, return_inverse=True)[1].ravel()
        n_answers = int(answers.max()) + 1
        row, column = self.fragment[examples], self.context[examples]
        pair_index = column * n_answers + answers[examples]
        agree, both = (
            _products(row, which, int(self.fragment.max()) + 1) for which in (pair_index, column)
        )
        contradicted = agree != both
        self.weights = (agree - agree.multiply(contradicted)).tocsr()
        self.weights.setdiag(0)
        self.weights.eliminate_zeros()

    def classes(self, k: int, answer: np.ndarray) -> np.ndarray:
        """The class of each input's fragment in its context, if more than one is in it, or -1.

        Args:
            k: how much evidence there must be.
            answer: of each input; those of different answers are in different classes.
        """
        strong = self.weights >= k
        n, label = connected_components(strong, directed=False)
        size = np.bincount(label, minlength=n)
        own = label[self.fragment]
        named = own.astype(np.int64) * (int(self.context.max()) + 1) + self.context
        named = named * (int(answer.max()) + 1) + answer
        return np.where(size[own] > 1, named, -1)


def _products(row: np.ndarray, column: np.ndarray, n_rows: int) -> sparse.csr_matrix:
    """In how many columns two rows are both marked, (row, row)."""
    marks = np.ones(len(row), dtype=np.int32)
    marked = sparse.csr_matrix((marks, (row, column)), shape=(n_rows, int(column.max()) + 1))
    return sparse.csr_matrix(marked @ marked.T)


def _reached(edges: Sequence[np.ndarray], n: int, examples: np.ndarray) -> np.ndarray:
    """Whether an example lies in the component of each input."""
    rows, columns, first = [], [], n
    for classes in edges:
        there = np.flatnonzero(classes >= 0)
        names, member = np.unique(classes[there], return_inverse=True)
        rows.append(there)
        columns.append(first + member)
        first += len(names)
    row, column = np.concatenate(rows), np.concatenate(columns)
    graph = sparse.csr_matrix((np.ones(len(row), dtype=bool), (row, column)), shape=(first, first))
    label = connected_components(graph, directed=False)[1]
    reached: np.ndarray = np.isin(label[:n], label[examples])
    return reached


def _evidence(
    answer_of: dict[tuple[int, ...], int], places: Sequence[int]
) -> dict[tuple[tuple[int, ...], tuple[int, ...]], int]:
    """For each two fragments how many contexts they share, if all agree."""
    seen: dict[tuple[int, ...], dict[tuple[int, ...], int]] = defaultdict(dict)
    for each, answer in answer_of.items():
        rest = tuple(token for place, token in enumerate(each) if place not in places)
        seen[tuple(each[place] for place in places)][rest] = answer
    found = {}
    for one, a in seen.items():
        for other, b in seen.items():
            shared = a.keys() & b.keys()
            if one != other and all(a[context] == b[context] for context in shared):
                found[one, other] = len(shared)
    return found


def _through_others(
    evidence: dict[tuple[tuple[int, ...], tuple[int, ...]], int],
) -> dict[tuple[tuple[int, ...], tuple[int, ...]], int]:
    """For each two fragments the evidence of the weakest link of the best chain between them."""
    found = dict(evidence)
    fragments = sorted({fragment for pair in evidence for fragment in pair})
    for between in fragments:
        for one in fragments:
            for other in fragments:
                through = min(found.get((one, between), 0), found.get((between, other), 0))
                if one != other and through > found.get((one, other), 0):
                    found[one, other] = through
    return found


def _widest(links: Sequence[tuple[int, int, int]], n: int, examples: np.ndarray) -> np.ndarray:
    """For each input the largest k at which links of at least k join it to an example."""
    found = np.zeros(n, dtype=int)
    found[examples] = 1
    for k in sorted({link[0] for link in links}):
        near: dict[int, set[int]] = defaultdict(set)
        for weight, one, other in links:
            if weight >= k:
                near[one].add(other)
                near[other].add(one)
        open_nodes = [int(each) for each in examples]
        reached = set(open_nodes)
        while open_nodes:
            for each in near[open_nodes.pop()] - reached:
                reached.add(each)
                open_nodes.append(each)
        found[sorted(reached)] = k
    return found
