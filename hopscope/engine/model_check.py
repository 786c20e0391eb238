"""Provides check_model(): which readings and edits of a model hold, and how they are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch

from hopscope.engine.editing import check_edits, tried
from hopscope.engine.edits import Edit, Knockout, Patch
from hopscope.engine.finite import refuse_not_finite
from hopscope.engine.logit_lens import logit_lens
from hopscope.engine.plain import check_masks
from hopscope.engine.sublayers import SITES, writer_of
from hopscope.engine.support import position_limit, why_plain
from hopscope.errors import ModelError, of_type
from hopscope.models.language_model import LanguageModel

if TYPE_CHECKING:
    import pandas as pd

HOLDS, PLAIN, REFUSED = "holds", "plain", "refused"


def check_model(model: LanguageModel) -> pd.DataFrame:
    """Try every reading and edit of a model, as is done before each is first used.

    Args:
        model: the model.

    Returns:
        A row for each reading or edit (`what`), with its `verdict` and the `detail`: how it is
        made, or why not. The verdict is `holds`; `refused`, where an analysis that needs it ends in
        an error; or `plain`, where each version of a prompt is a whole forward pass, which is slow.

    Raises:
        ModelError: if the model's logits are not finite numbers.

    Example:
        >>> from hopscope.models.load import load_model
        >>> check_model(load_model("tiny-random-llama", device="cpu"))["verdict"].unique().tolist()
        ['holds']
    """
    import pandas as pd

    of_type("model", model, LanguageModel, "load one with hs.load_model")
    ids, _, logits = tried(model)
    if not logits.isfinite().all():
        refuse_not_finite(model, "logits", ids[0].tolist())
    return pd.DataFrame(_rows(model), columns=["what", "verdict", "detail"])


def _rows(model: LanguageModel) -> Iterator[tuple[str, str, str]]:
    """What is checked, its verdict, and the detail."""
    reason, limit = why_plain(model), position_limit(model)
    layer = next(iter(model.attention_layers), 0)
    yield "prompts share prefixes", PLAIN if reason else HOLDS, reason or ""
    yield (
        "prompts of any length share prefixes",
        HOLDS if limit is None else PLAIN,
        "" if limit is None else f"past {limit} tokens, the positions of all tokens change",
    )
    yield "attn_out and mlp_out add up", *_verdict(partial(_writers, model))
    yield "logit lens", *_verdict(partial(_lens, model))
    vector = torch.zeros(model.d_model)
    edits: dict[str, Callable[[], Edit]] = {
        "patches of the residual stream": lambda: Patch(0, -1, vector),
        "patches of attn_out and mlp_out": lambda: Patch(layer, -1, vector, "attn_out"),
        "patches of attn_in and mlp_in": lambda: Patch(layer, -1, vector, "attn_in"),
        "patches of z": lambda: Patch(layer, -1, torch.zeros(model.head_dim), "z", head=0),
        "knockouts": lambda: Knockout([layer], [-1], [0]),
    }
    for what, make in edits.items():
        yield what, *_verdict(partial(_check_edit, model, make))
    yield "masks", *_verdict(partial(check_masks, model))


def _verdict(check: Callable[[], str | None]) -> tuple[str, str]:
    """Whether a check passes, and what it tells; or why it does not."""
    try:
        return HOLDS, check() or ""
    except ModelError as error:
        return REFUSED, str(error)


def _check_edit(model: LanguageModel, make: Callable[[], Edit]) -> None:
    """Try an edit; making it may already tell that the model has no such place."""
    check_edits(model, [make()])


def _writers(model: LanguageModel) -> str:
    """By which modules each sublayer writes to the stream, and times what."""
    names = dict[str, None]()
    for layer, block in enumerate(model.layers):
        paths = {module: path for path, module in block.named_modules()}
        for site in SITES:
            writer = writer_of(model, layer, site)
            scale = "" if writer.scale == 1 else f" × {writer.scale:.3g}"
            names[f"{paths[writer.module]}{scale}"] = None
    return ", ".join(names)


def _lens(model: LanguageModel) -> str:
    """The scale and the soft cap of the lens, where there are any."""
    lens = logit_lens(model)
    scale = [] if lens.scale == 1 else [f"× {lens.scale:.3g}"]
    return ", ".join([*scale, *([] if lens.softcap is None else [f"soft cap {lens.softcap:g}"])])
