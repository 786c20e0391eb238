"""Provides PrefixStore: keys and values of the prefixes that prompts share, each computed once."""

from __future__ import annotations

from dataclasses import dataclass, field

from hopscope.engine.attention import extend
from hopscope.engine.cache import Prefix
from hopscope.engine.support import shares_prefixes
from hopscope.models.language_model import LanguageModel


@dataclass
class PrefixStore:
    """Keys and values of the prefixes that prompts share, each computed once.

    Attributes:
        model: the model.
        most: how many prefixes are kept; the oldest goes first.
    """

    model: LanguageModel
    most: int = 4
    _kept: dict[tuple[int, ...], Prefix] = field(default_factory=dict)

    def get(self, ids: tuple[int, ...]) -> Prefix:
        """The prefix of these tokens."""
        if not ids or not shares_prefixes(self.model, len(ids)):
            return Prefix()
        if ids not in self._kept:
            if len(self._kept) >= self.most:
                del self._kept[next(iter(self._kept))]
            self._kept[ids] = extend(self.model, Prefix(), ids)
        return self._kept[ids]
