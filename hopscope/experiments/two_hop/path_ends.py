"""Provides the ends of direct paths: what sends, what receives, their names and their order."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from hopscope.engine.sublayers import INPUTS
from hopscope.results.wording import SITE_LABELS

LOGITS, EMBED = "logits", "embed"
SENDERS = ("attn_out", "mlp_out", "z", EMBED)
RECEIVERS = (LOGITS, *INPUTS)
SENDER, RECEIVER = ("site", "layer"), ("receiver", "receiver_layer")
"""The columns that tell a sender but for its head, and a receiver."""
ORDER = (EMBED, "attn_out", "mlp_out", "z", *INPUTS, LOGITS)


def ends_of(frame: pd.DataFrame, columns: Sequence[str]) -> pd.MultiIndex:
    """The senders or receivers in a table of paths, each once, by kind and layer.

    Args:
        frame: the table.
        columns: `SENDER` or `RECEIVER`.
    """
    kind, layer = columns
    found = frame[[kind, layer]].drop_duplicates()
    order = found.assign(**{kind: found[kind].map(ORDER.index)}).sort_values([kind, layer]).index
    return pd.MultiIndex.from_frame(found.loc[order])


def end_name(kind: str, layer: int) -> str:
    """A sender or a receiver in words, such as `attention 3`."""
    return SITE_LABELS[kind] + (f" {layer}" if layer >= 0 else "")
