"""Writes the table of analyses into the pages that mark its place, such as the README."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from hopscope.experiments.catalogue import as_markdown
from hopscope.files import write_text


def marked(name: str) -> re.Pattern[str]:
    """What stands between the marks `<!-- name -->` and `<!-- /name -->` of a page."""
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=\n<!-- /{name} -->)", re.DOTALL)


def main(*pages: str) -> None:
    """Write the table into pages."""
    table = as_markdown()
    for page in map(Path, pages):
        write_text(page, marked("analyses").sub(lambda _: table, page.read_text("utf-8")))


if __name__ == "__main__":
    main(*sys.argv[1:])
