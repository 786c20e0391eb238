"""Provides the report of a study: what was found, in words, with numbers and what controls say.

Reads results, draws the figure scripts, and writes a folder; computes nothing on a model.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import jinja2
import pandas as pd
from PIL import Image

from hopscope.display.notebook import picture_of
from hopscope.display.page import grid_html, page_script
from hopscope.errors import ResultError
from hopscope.experiments.analysis import Analysis
from hopscope.experiments.catalogue import analyses
from hopscope.files import make_folder, write_csv, write_text
from hopscope.plots.figures import SUBSET_TITLES
from hopscope.results.headline import Headline, how_sure
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.run_record import summary_of
from hopscope.results.wording import as_shown
from hopscope.study.figures import draw_figures
from hopscope.study.study import Study

T = TypeVar("T")
GLOSSARY = {
    "t1": "the last token of the first-hop phrase, such as “… the performer of Imagine”",
    "t2": "the last token of the prompt, after which the answer is to come; of more than two hops "
    "that of the second hop's phrase",
    "e1": "the source entity, which the question names",
    "e2": "the bridge entity: the answer of the first hop, which the question does not name",
    "e3": "the answer of the whole question; of more than two hops the second bridge",
    "r1": "the relation of the first hop, from the source entity to the bridge",
    "r2": "the relation of the second hop, from the bridge to the answer",
    "cell": "one edited version of a prompt, such as one pair of source and target layer",
    "IC": "how much attention a document gets: the mean over heads, summed over the blocks",
    "EntRec": "entity recall: the log-probability of the bridge's first token, read off a state",
    "nats": "units of natural logarithms: 1 nat is a factor of 2.7 in probability",
}
"""Terms of the page, explained when they are pointed at."""
_TERMS = re.compile(rf"\b({'|'.join(GLOSSARY)})\b")
DRAWN = (
    *("accuracy", "broken", "effect", "flip_rate", "logprob", "mass", "mean", "mean_first_layer"),
    *("rate", "recovery", "score", "share", "value"),
)
"""Columns of numbers that figures draw."""
MOST_ROWS = 400
"""Rows of a table that the page shows; its CSV has all."""
PAGE_DPI = 96
"""Pixels that an inch of a page has."""


@dataclass(frozen=True)
class Section:
    """One analysis on the page.

    Attributes:
        name: of the figure and of the tables.
        title: the heading.
        question: what is asked, in a sentence.
        findings: sentences.
        tables: by name; each is a CSV file, too.
        views: HTML of interactive grids.
        image: a picture as base64 where there is no figure script, or None.
        ran: whether there is a result; if not, the page lists it at its end.
        headline: what the page says of it at its top, or None.
    """

    name: str
    title: str
    question: str
    findings: list[str]
    tables: Tables = field(default_factory=dict)
    views: list[str] = field(default_factory=list)
    image: str | None = None
    ran: bool = True
    headline: Headline | None = None


def write(study: Study, out: Path, shown: Sequence[Section] | None = None) -> Path:
    """Write `figures/`, `tables/` and `index.html` into a folder; the same study, the same bytes.

    Args:
        study: what was run.
        out: the folder.
        shown: its `sections`; they are made if None.

    Returns:
        The page.
    """
    make_folder(out)
    shown = sections(study) if shown is None else shown
    drawn = {section.name: _figure(section.name, study.folder, out) for section in shown}
    _remove_stale(out / "figures", {name for name, image in drawn.items() if image}, "{}.*")
    _write_tables(shown, out / "tables")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hopscope.study", "."),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["explained"] = explained
    run = study.grading.run
    text = environment.get_template("report.html.j2").render(
        model=run["model"]["name"],
        queries=run["queries"]["name"],
        subtitle=_subtitle(study),
        first=_first(shown),
        sections=[
            {
                **vars(section),
                "image": (image := drawn[section.name] or section.image),
                "width": natural_width(image) if image else None,
                "all_zero": image is None and _has_script(section.name),
                "tables": {name: _html(table) for name, table in section.tables.items()},
            }
            for section in shown
            if section.ran
        ],
        not_run=[section for section in shown if not section.ran],
        provenance=summary_of(run),
        script=page_script() if any(section.views for section in shown) else "",
    )
    page = out / "index.html"
    write_text(page, text)
    return page


def _write_tables(shown: Sequence[Section], folder: Path) -> None:
    """Write each table as a CSV file, and remove those of analyses that are not among them."""
    _remove_stale(folder, {name for section in shown for name in section.tables}, "{}.*.csv")
    make_folder(folder)
    for section in shown:
        for name, table in section.tables.items():
            write_csv(folder / f"{name}.csv", table)


def _remove_stale(folder: Path, kept: set[str], pattern: str) -> None:
    """Remove what an earlier report of more analyses left; never what a report does not make."""
    for entry in analyses():
        for path in folder.glob(pattern.format(entry.name)):
            if path.suffix in (".png", ".svg", ".csv") and path.stem not in kept:
                path.unlink()


def _first(shown: Sequence[Section]) -> list[dict[str, str]]:
    """What the box at the top says: the headline of each analysis that names one, how sure it is.

    Which analyses name one, and of what, is settled before any number is seen, so that Holm's
    correction over them all is fair.
    """
    headlines = {each.name: each.headline for each in shown if each.headline is not None}
    sure = how_sure(list(headlines.values()))
    return [
        {"name": name, "sentence": headline.sentence, "sure": words}
        for (name, headline), words in zip(headlines.items(), sure, strict=True)
    ]


def explained(text: str) -> str:
    """A text as HTML, whose terms are explained when they are pointed at, each once."""
    left = dict(GLOSSARY)

    def explain(found: re.Match[str]) -> str:
        meaning = left.pop(found[0], None)
        return f'<abbr title="{escape(meaning)}">{found[0]}</abbr>' if meaning else found[0]

    return _TERMS.sub(explain, escape(text))


def sentences(shown: Sequence[Section]) -> list[str]:
    """All sentences of the report, in its order."""
    return [sentence for section in shown for sentence in section.findings]


def sections(study: Study) -> list[Section]:
    """What the study says, analysis by analysis."""
    results: dict[str, Any] = {"grading": study.grading, **study.results}
    shown = []
    for entry in analyses():
        here, missing = _of(entry.name, results), _of(entry.name, study.left_out)
        if here or missing:
            shown.append(_section(entry, here, missing))
    return shown


def _of(name: str, found: Mapping[str, T]) -> dict[str, T]:
    """What there is of an analysis, by subset; keys are its name, a dot and the subset."""
    parts = ((key.partition("."), each) for key, each in found.items())
    return {subset: each for (analysis, _, subset), each in parts if analysis == name}


def _section(
    entry: Analysis, results: Mapping[str, Result], left_out: Mapping[str, str]
) -> Section:
    name = entry.name
    findings: list[str] = []
    tables: Tables = {}
    views: list[str] = []
    headline: Headline | None = None
    for subset, result in results.items():
        grid = result.grid()
        if headline is None and (first := result.headline()) is not None:
            headline = replace(first, sentence=_of_subset(first.sentence, subset, result))
        if grid is not None:
            views.append(grid_html(grid, NO_SCRIPTS, heading=SUBSET_TITLES.get(subset, subset)))
        own, found = result.findings(), result.tables()
        if own:
            own[0] = _of_subset(own[0], subset, result)
        findings += [sentence[0].upper() + sentence[1:] for sentence in own]
        suffix = f".{subset}" if subset else ""
        tables |= {f"{name}{suffix}.{what}": table for what, table in found.items()}
    for subset, reason in left_out.items():
        which = SUBSET_TITLES[subset] if subset == "documents" else f"queries graded {subset}"
        findings.append(f"Not run on {which}: {reason}.")
    image = None if _has_script(name) or not results else picture_of(next(iter(results.values())))
    asked, ran = entry.question_with_source, bool(results)
    return Section(name, entry.title, asked, findings, tables, views, image, ran, headline)


def _of_subset(sentence: str, subset: str, result: Result) -> str:
    """A sentence that says of which queries it is."""
    lead = SUBSET_TITLES.get(subset)
    if lead is not None:
        sentence = f"{lead} (n = {result.n_queries}): {sentence}"
    return sentence[0].upper() + sentence[1:]


NO_SCRIPTS = '<p class="note">With scripts, every cell can be read here.</p>'


def _scripts() -> Path:
    """The figure scripts of this version of hopscope."""
    return Path(str(import_module("hopscope.figures").__file__)).parent


def _has_script(name: str) -> bool:
    return (_scripts() / f"{name}.py").is_file()


def _figure(name: str, runs: Path, out: Path) -> str | None:
    """Draw a figure; the PNG as base64, or None without a script or where all it shows is 0."""
    if not _has_script(name):
        return None
    try:
        drawn: Sequence[Path] = draw_figures(_scripts(), [name], runs, out / "figures")
    except ResultError:
        return None
    png, numbers = (
        next(path for path in drawn if path.suffix == suffix) for suffix in (".png", ".csv")
    )
    if not shows_something(pd.read_csv(numbers)):
        return None
    return base64.b64encode(png.read_bytes()).decode()


def shows_something(numbers: pd.DataFrame) -> bool:
    """Whether some number that a figure shows is not zero; one without such columns shows all.

    Args:
        numbers: what the figure shows, among it columns of `DRAWN`.
    """
    drawn = numbers[[name for name in DRAWN if name in numbers]]
    return drawn.columns.empty or bool(drawn.fillna(0).ne(0).any(axis=None))


def natural_width(image: str) -> int:
    """How wide a picture is, in the pixels of a page.

    Args:
        image: a PNG as base64, which may say how many of its own pixels a metre has.
    """
    with Image.open(io.BytesIO(base64.b64decode(image))) as picture:
        per_inch: float = picture.info.get("dpi", (PAGE_DPI, PAGE_DPI))[0]
        return round(picture.width / per_inch * PAGE_DPI)


def _html(table: pd.DataFrame) -> str:
    shown = as_shown(table.head(MOST_ROWS))
    return str(shown.to_html(index=False, border=0, float_format="{:.3f}".format, na_rep=""))


def _subtitle(study: Study) -> str:
    run = study.grading.run
    few = run["queries"]["few_shot"]
    shots = f"{few} demonstrations in each prompt" if few else "no demonstrations"
    shots += ", in a chat" if "chat" in run["queries"] else ""
    model = run["model"]
    precision = model["dtype"]
    if "quantization" in model:
        precision += f", quantised by {model['quantization']['quant_method']},"
    return (
        f"{model['n_layers']} layers, {model['family']}, {precision} on {model['device']}; "
        f"{study.grading.n_queries} queries of “{run['queries']['name']}”, {shots}."
    )
