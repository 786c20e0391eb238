"""Provides key_clusters(): which middle-ranked tokens are neighbours of the top-ranked tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from hopscope.errors import UsageError

if TYPE_CHECKING:
    from jaxtyping import Bool, Int


@dataclass(frozen=True)
class KeyClusters:
    """Which middle-ranked tokens share a cluster with a top-ranked token, and which are correct.

    Attributes:
        inside: whether a token shares a cluster with a top-ranked one, shape (item, rank).
        right: whether a token is a correct answer, shape (item, rank).
    """

    inside: Bool[Tensor, "item rank"]
    right: Bool[Tensor, "item rank"]

    @property
    def accuracy(self) -> tuple[float, float]:
        """Shares of correct tokens inside and outside the clusters; NaN if there are no tokens."""
        shares = [self.right[where].float().mean() for where in (self.inside, ~self.inside)]
        return float(shares[0]), float(shares[1])


def key_clusters(
    ranked: Int[Tensor, "item rank"],
    clusters: Int[Tensor, " vocab"],
    answers: Bool[Tensor, "item rank"],
    top: int = 10,
) -> KeyClusters:
    """Divide middle-ranked tokens by whether they share a cluster with a top-ranked token.

    After Peng et al. 2024: tokens with middle ranks tend to be neighbours of the top tokens in the
    unembedding, so that a correct token among them may be correct only because of that.

    Args:
        ranked: token ids by descending logit, shape (item, rank).
        clusters: cluster of each token of the vocabulary, such as from k-means on the unembedding,
            shape (vocab,).
        answers: whether each ranked token is correct, shape (item, rank).
        top: number of top ranks; all later ranks are in the middle.

    Raises:
        UsageError: if there are no ranks after the top ones (a `ValueError`).

    Example:
        >>> ranked = torch.tensor([[5, 6, 7]])
        >>> clusters = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2])
        >>> key_clusters(ranked, clusters, ranked == 7, top=1).inside.tolist()
        [[True, False]]
    """
    if ranked.shape[1] <= top:
        raise UsageError(
            f"{ranked.shape[1]} ranks leave no middle after a top of {top}; give more ranks"
        )
    cluster_of = clusters.to(ranked.device)[ranked]
    inside = (cluster_of[:, top:, None] == cluster_of[:, None, :top]).any(dim=-1)
    return KeyClusters(inside, answers[:, top:])
