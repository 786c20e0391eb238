"""Provides the checks of arguments that several analyses share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hopscope.documents.orders import Order, order_name
from hopscope.engine.masked.reader import reader_of
from hopscope.errors import UsageError
from hopscope.masks.algebra import Mask
from hopscope.masks.named import mask_of
from hopscope.prompting.document_prompts import DocumentReader


def check_orders(orders: Sequence[Order]) -> list[Order]:
    """The orders, each once.

    Raises:
        UsageError: for a bare string or none.
    """
    if isinstance(orders, str) or not len(orders):
        raise UsageError(f"give a list of orders such as ['original', 'forward'], not {orders!r}")
    return list({order_name(order): order for order in orders}.values())


def check_masks(
    masks: Sequence[str | Mask] | str | Mask | None, model: DocumentReader
) -> list[Mask]:
    """The masks, each once; one alone may be given as it is; the model's usual one if None.

    Raises:
        UsageError: for none, or an unknown name.
    """
    if masks is None:
        masks = reader_of(model).usual_mask
    given = [masks] if isinstance(masks, str | Mask) else list(masks)
    if not given:
        raise UsageError("give at least one mask, such as 'causal'")
    return list({mask.name: mask for mask in map(mask_of, given)}.values())


def check_choice(what: str, given: Sequence[str], known: Sequence[str]) -> list[str]:
    """The given names, each once.

    Raises:
        UsageError: for a bare string, an empty list, or a name that is not known.
    """
    if isinstance(given, str) or not given:
        raise UsageError(f"give a list of {what}s with any of {', '.join(known)}, not {given!r}")
    for name in given:
        if name not in known:
            raise UsageError(f"unknown {what} {name!r}: choose from {', '.join(known)}")
    return list(dict.fromkeys(given))


def check_layers(layers: Iterable[int] | None, n_layers: int) -> list[int]:
    """The given layers, each once; all if None.

    Raises:
        UsageError: for a layer that the model has not, or none.
    """
    if layers is None:
        return list(range(n_layers))
    given = list(dict.fromkeys(int(layer) for layer in layers))
    wrong = [layer for layer in given if not 0 <= layer < n_layers]
    if wrong or not given:
        raise UsageError(
            f"layers are numbers from 0 to {n_layers - 1}; got {wrong[0] if wrong else 'none'}"
        )
    return given
