"""Draws what distractors of several retrievers do to answers: from saved results."""

from __future__ import annotations

import pandas as pd

from hopscope.experiments.documents import plots as document_plots
from hopscope.experiments.documents.haystack import BLOCK, LOGPROB, Haystacks
from hopscope.plots import figures
from hopscope.plots.figures import Drawn
from hopscope.plots.style import panels, shared_legend
from hopscope.study.figures import figure_script, main, of_documents


@figure_script("haystack", of_documents("haystack", Haystacks))
def draw(result: Haystacks) -> Drawn:
    """Draw the figure, and give the numbers that it shows."""
    tables = {
        "f1": result.accuracy("f1"),
        "gain": result.compare(measure=LOGPROB),
        "attention": _in_last_order(result.attention_by_rank()),
        "cut": _in_last_order(result.cuts()),
    }
    figure, axes = panels(2, 2, 5.4)
    first, second, third, fourth = axes.flat
    document_plots.retriever_points(tables["f1"], first, "Answers", "f1")
    document_plots.retriever_gains(tables["gain"], second, "The answer's probability")
    order = tables["attention"]["order"].iloc[0].replace("_", " ")
    document_plots.rank_lines(tables["attention"], third, f"Attention by rank, {order}")
    document_plots.cut_points(tables["cut"], fourth, f"One distractor blocked, {order}")
    shared_legend(figure, axes)
    n, tokens = result.n_queries, result.run["settings"]["tokens"]
    title = figures.title_of(result, f"Haystacks with {tokens} tokens of distractors")
    figure.suptitle(f"{title} (n = {n})")
    return figure, pd.concat([each.assign(panel=name) for name, each in tables.items()])


def _in_last_order(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last order under the usual mask: shuffled, unless others were asked for."""
    usual = table[table["mask"] != BLOCK] if "mask" in table else table
    last: pd.DataFrame = usual[usual["order"] == usual["order"].iloc[-1]]
    return last


if __name__ == "__main__":
    main(draw)
