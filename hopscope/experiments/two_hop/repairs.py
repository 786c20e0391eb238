"""Provides what interventions repair of wrong answers and break of right ones, and fair halves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch

from hopscope.errors import QueryError
from hopscope.probes.cross_validation import deal
from hopscope.statistics import intervals, paired


def halves(before: np.ndarray, entities: Sequence[str], seed: int) -> np.ndarray:
    """The half, 0 or 1, that each query is in: one is scored by what was trained on the other.

    Args:
        before: whether each query is right by itself; both halves get about as many of each.
        entities: the source entity of each query; the queries of one are in one half.
        seed: of the division.

    Raises:
        QueryError: if one half has fewer than two source entities.
    """
    groups = np.unique(np.asarray(entities), return_inverse=True)[1]
    half = dealt(before, 2, groups, seed)
    for part in (0, 1):
        if len(set(groups[half == part])) < 2:
            raise QueryError(
                f"{len(before)} queries of {len(set(groups))} source entities are too few to be "
                "trained and scored on: give more"
            )
    return half


def dealt(right: np.ndarray, n: int, groups: np.ndarray, seed: int) -> np.ndarray:
    """The part, of `n`, of each query: groups together, right and wrong ones spread evenly."""
    strata = np.unique(right, return_inverse=True)[1]  # numbered from 0, if all are right, too
    members = torch.as_tensor(groups)
    parts: np.ndarray = deal(torch.as_tensor(strata), n, members, seed).numpy()
    return parts


def repair_rates(frame: pd.DataFrame, by: str, seed: int = 0) -> pd.DataFrame:
    """What each intervention repairs and breaks.

    Args:
        frame: one row a query and intervention, with the columns `by`, `before` and `hit`: whether
            the answer was right before, and is right then.
        by: the column that names the intervention.
        seed: as every summary takes one; nothing is drawn here.

    Returns:
        Columns `by`, `what, n, rate, low, high`: the share of the wrong answers that are
        `repaired`, and of the right ones that are `broken`, with Wilson 95 % intervals.
    """
    wrong, right = frame[~frame["before"]], frame[frame["before"]]
    parts = {
        "repaired": wrong.assign(share=wrong["hit"]),
        "broken": right.assign(share=~right["hit"]),
    }
    table = pd.concat([part.assign(what=what) for what, part in parts.items()])
    found = intervals(table, [by, "what"], "share", "rate", seed)
    order = found[by].map({name: place for place, name in enumerate(dict.fromkeys(frame[by]))})
    return found.iloc[np.argsort(order, kind="stable")].reset_index(drop=True)


def repair_gains(
    frame: pd.DataFrame, by: str, pairs: Iterable[tuple[str, str]], seed: int = 0
) -> pd.DataFrame:
    """How many more answers are right by one intervention than by another, query by query.

    Args:
        frame, by, seed: as for `repair_rates`.
        pairs: interventions, each with the one that it is compared with; `never` is none.

    Returns:
        Columns `by`, `base`, and those of `hopscope.statistics.paired`, with exact intervals.
    """
    wide = frame.pivot(index="query", columns=by, values="hit")
    wide["never"] = frame.groupby("query")["before"].first()
    rows = []
    for name, base in pairs:
        both = wide[[base, name]].dropna().astype(bool)
        gain = paired(both[base].to_numpy(), both[name].to_numpy(), seed)
        rows.append({by: name, "base": base, **gain})
    return pd.DataFrame(rows)
