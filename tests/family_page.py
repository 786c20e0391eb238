"""Writes the table of families into docs/families.md: what `check_model` finds of a tiny model."""

from __future__ import annotations

import logging
from pathlib import Path

from families import FAMILIES, model_of

from hopscope.engine.model_check import HOLDS, REFUSED, check_model
from hopscope.files import write_text
from hopscope.study.readme import marked

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
HEAD = "| family | prompts share prefixes | attn_out and mlp_out | logit lens | refused |"


def row(name: str) -> str:
    """The line of one family."""
    checks = check_model(model_of(name)).set_index("what")

    def cell(what: str) -> str:
        verdict, detail = checks.loc[what, ["verdict", "detail"]]
        if verdict == REFUSED:
            return REFUSED
        return ": ".join(filter(None, [verdict if verdict != HOLDS or not detail else "", detail]))

    shares = cell("prompts share prefixes")
    if shares == HOLDS:
        shares = cell("prompts of any length share prefixes")
    refused = checks.index[checks["verdict"] == REFUSED]
    cells = [shares, cell("attn_out and mlp_out add up"), cell("logit lens"), ", ".join(refused)]
    return " | ".join([f"| {name}", *cells]) + " |"


def table() -> str:
    """The lines of all families."""
    return "\n".join([HEAD, "|---" * HEAD.count(" | ") + "|---|", *map(row, FAMILIES)])


if __name__ == "__main__":
    for talkative in ("hopscope", "transformers"):
        logging.getLogger(talkative).setLevel(logging.ERROR)
    page = marked("families").sub(lambda _: table(), PAGE.read_text("utf-8"))
    write_text(PAGE, page)
