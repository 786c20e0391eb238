"""Provides how many queries a subset is expected to have, told before all of them are graded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hopscope.experiments.analysis import limited
from hopscope.experiments.estimate import Estimate, rehearse
from hopscope.experiments.two_hop.grading import Grading
from hopscope.models.language_model import LanguageModel
from hopscope.queries.query_set import QuerySet
from hopscope.results.run_folder import joined
from hopscope.results.wording import with_interval
from hopscope.statistics import wilson


@dataclass(frozen=True)
class ExpectedSubset:
    """How many queries of a subset are expected to be analysed.

    Attributes:
        n: how many; at most, by the interval of their share, if none was found.
        n_graded: how many queries will be graded.
        n_found: how many of those that are graded, before or for this, are of the subset.
        n_measured: how many are graded, before or for this.
    """

    n: int
    n_graded: int
    n_found: int
    n_measured: int

    def __str__(self) -> str:
        share = with_interval(*wilson(self.n_found, self.n_measured))
        n = f"about {self.n:,}" if self.n_found else f"an unknown number, at most {self.n:,},"
        return (
            f"{n} queries: {self.n_found:,} of {self.n_measured:,} that were graded, "
            f"{share}; {self.n_graded:,} are to be graded in all"
        )


@dataclass(frozen=True)
class GradedSample:
    """What grading costs, and what was found of the queries that were graded to tell it.

    Attributes:
        queries: those that are graded at most.
        graded: the grading of a few of them, and of those that are done; of all if `cost` is None.
        n: how many will be graded.
        cost: what grading takes; None if it is done already.
    """

    queries: QuerySet
    graded: Grading
    n: int
    cost: Estimate | None

    @classmethod
    def of(
        cls,
        grading: Callable[..., Grading],
        model: LanguageModel,
        queries: QuerySet,
        need: Mapping[str, int],
        at_least: int,
        **given: Any,
    ) -> GradedSample:
        """Grade a few queries.

        Args:
            grading: grades the queries with the model and what is `given`.
            model: the model.
            queries: those that are graded at most.
            need: until how many there are of each subset queries are graded.
            at_least: how many are graded in any case.
            **given: arguments of `grading`.
        """
        rehearsal = rehearse(grading, model, queries, **given)
        if not rehearsal.runs:
            done: Grading = rehearsal.result
            return cls(queries, done, done.counts()["graded"], None)
        (run,) = rehearsal.runs
        sample = Grading.of(joined([*run.pending.done(), run.tables]), {})
        counts = sample.counts()
        enough = [
            math.ceil(n * counts["graded"] / counts[s]) if counts[s] else len(queries)
            for s, n in need.items()
        ]
        n = min(len(queries), max([at_least, *enough]))
        left = max(0, n - run.pending.n_done)
        return cls(queries, sample, n, rehearsal.estimate(left))

    def expected(self, subset: str, most: int | None = None) -> ExpectedSubset:
        """How many queries of a subset are analysed.

        Args:
            subset: `correct` or `incorrect`.
            most: how many are analysed at most; all if None.
        """
        counts = self.graded.counts()
        found, measured = counts[subset], counts["graded"]
        share, _, high = wilson(found, measured)
        left = max(0, self.n - measured)
        n = found + round(left * (share if found else high))
        return ExpectedSubset(n if most is None else min(n, most), self.n, found, measured)

    def subset(self, name: str) -> QuerySet:
        """The queries of a subset; as many of any kind, one at least, if they are not known yet."""
        if self.cost is None:
            return self.graded.subset(name)
        return limited(self.queries, max(1, self.expected(name).n))
