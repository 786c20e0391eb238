"""Draws the masks that hopscope knows over the words of one small prompt; needs no model."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import matplotlib as mpl
import pandas as pd

from hopscope.documents.lay_out import lay_out
from hopscope.documents.layout import Layout
from hopscope.documents.question_set import Document, Hop, MultiDocQuestion
from hopscope.masks.algebra import Mask
from hopscope.masks.named import (
    causal,
    document_bidirectional,
    document_block,
    knock_out,
    prefix_bidirectional,
    visibility_order,
)
from hopscope.plots.figures import Drawn
from hopscope.plots.style import panels
from hopscope.study.figures import figure_script, main, runs_folder

QUESTION = MultiDocQuestion(
    "imagine",
    "Who is the spouse of the performer of Imagine?",
    "Yoko Ono",
    (
        Document("John Lennon", "Yoko Ono is the spouse of John Lennon."),
        Document("Hey Jude", "The Beatles sang Hey Jude."),
        Document("Imagine", "John Lennon is the performer of Imagine."),
    ),
    (Hop("", "John Lennon", 2), Hop("", "Yoko Ono", 0)),
)
TITLES = {
    "causal": causal(),
    "prefix bidirectional": prefix_bidirectional(),
    "bidirectional in documents": document_bidirectional(),
    "document block": document_block(),
    "document block, instruction seen": document_block(instruction=True),
    "causal in the order forward": visibility_order("forward"),
    "causal, question → hop 1 knocked out": causal() & knock_out("question", "gold 1"),
    "document block | hop 1 → hop 2": document_block() | ~knock_out("gold 1", "gold 2"),
}


def words(text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """A tokenizer without a model: a token for each word."""
    found = list(re.finditer(r"\S+", text))
    return list(range(len(found))), [match.span() for match in found]


@figure_script("mask_gallery", runs_folder)
def draw(_: Path) -> Drawn:
    """Draw the masks; this needs no result."""
    layout = lay_out(words, QUESTION, template="answer_only", label="none")
    figure, axes = panels(2, 4, 4.6, sharex=True, sharey=True)
    label = {"fontsize": mpl.rcParams["axes.labelsize"]}
    for ax, (title, mask) in zip(axes.flat, TITLES.items(), strict=True):
        mask.show(layout, ax)
        ax.set_title(textwrap.fill(_joined(title), 22))
    figure.suptitle("Attention masks over one prompt (blue: may attend)")
    figure.supylabel("words that attend (queries)", **label)
    figure.supxlabel("words that are attended to (keys)", **label)
    table = pd.concat([_edges(title, mask, layout) for title, mask in TITLES.items()])
    return figure, table


def _joined(title: str) -> str:
    """Keep the words of a part and of an edge on one line."""
    return re.sub(r"(?<=hop) (?=\d)| (?=→)|(?<=→) ", "\u00a0", title)


def _edges(title: str, mask: Mask, layout: Layout) -> pd.DataFrame:
    seen = mask.keep(layout)[0].numpy()
    counts = seen.sum(axis=1)
    return pd.DataFrame({"mask": title, "token": range(len(layout)), "sees": counts})


if __name__ == "__main__":
    main(draw)
