"""Provides key_clusters(): whether middle ranks are drawn to neighbours of the top tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Int


@dataclass(frozen=True)
class KeyClusters:
    """Which middle-ranked tokens share a cluster with a top one, and which of them are right.

    Attributes:
        inside: whether it shares one, shape (item, rank).
        right: whether it is a right answer, shape (item, rank).
    """

    inside: Bool[Tensor, "item rank"]
    right: Bool[Tensor, "item rank"]

    @property
    def accuracy(self) -> tuple[float, float]:
        """The share of right tokens inside and outside the clusters; NaN where there is none."""
        shares = [self.right[where].float().mean() for where in (self.inside, ~self.inside)]
        return float(shares[0]), float(shares[1])


def key_clusters(
    ranked: Int[Tensor, "item rank"],
    clusters: Int[Tensor, " vocab"],
    answers: Bool[Tensor, "item rank"],
    top: int = 10,
) -> KeyClusters:
    """Divide middle ranks by whether they share a cluster of the unembedding with a top token.

    After Peng et al. 2024: what a model ranks in the middle are neighbours of its top tokens, so
    a right token there is mostly right by being near them.

    Args:
        ranked: each item's likeliest tokens, the likeliest first.
        clusters: the cluster of each token of the vocabulary, such as k-means of the unembedding.
        answers: whether each ranked token is a right one.
        top: how many ranks are at the top; those after them are the middle.

    Raises:
        ValueError: if no rank is left in the middle.

    Example:
        >>> ranked = torch.tensor([[5, 6, 7]])
        >>> clusters = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2])
        >>> key_clusters(ranked, clusters, ranked == 7, top=1).inside.tolist()
        [[True, False]]
    """
    if ranked.shape[1] <= top:
        raise ValueError(f"{ranked.shape[1]} ranks leave no middle after a top of {top}")
    own = clusters.to(ranked.device)[ranked]
    inside = (own[:, top:, None] == own[:, None, :top]).any(dim=-1)
    return KeyClusters(inside, answers[:, top:])
