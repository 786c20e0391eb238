"""Provides draws that depend on the run's seed and on what is drawn, and on nothing else."""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor


def generator_for(seed: int, *names: str) -> torch.Generator:
    """A generator on the CPU that depends on the run's seed and on what is drawn, alone."""
    digest = hashlib.sha256("\0".join((str(seed), *names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def random_like(
    states: Float[Tensor, "*layer width"], seed: int, *names: str
) -> Float[Tensor, "*layer width"]:
    """Gaussian vectors with the norms of `states`, the same on every device.

    Args:
        states: one vector a layer (and head).
        seed: the run's.
        names: what else decides the draw: the query and the position.
    """
    generator = generator_for(seed, *names)
    drawn = torch.randn(states.shape, generator=generator).to(states.device)
    norms = states.float().norm(dim=-1, keepdim=True)
    vectors: Tensor = drawn / drawn.norm(dim=-1, keepdim=True) * norms
    return vectors.to(states.dtype)
