"""Provides Result: a tidy table, what was done to get it, and how it is saved."""

from __future__ import annotations

import logging
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pandas as pd

from hopscope.errors import (
    DamagedResultError,
    NearNames,
    NoResultError,
    TakenError,
    UsageError,
    one_of,
    path_of,
)
from hopscope.files import replacing_folder, write_json
from hopscope.results.headline import Headline
from hopscope.results.run_folder import (
    ENOUGH,
    OF_FOLDER,
    PLAN,
    RECORD,
    Tables,
    enough_of,
    is_of_run,
    is_taken,
    read_parts,
    read_run,
    write_part,
)
from hopscope.results.wording import OWN

if TYPE_CHECKING:
    from hopscope.display.grid import Grid
    from hopscope.display.widgets import GridWidget

logger = logging.getLogger(__name__)

IMPORTS_KINDS = "hopscope.experiments.catalogue:import_all"
"""The function that makes all kinds known, by its address, like an entry point."""


@dataclass(frozen=True, repr=False)
class Result(NearNames):
    """What an experiment found.

    Attributes:
        frame: the tidy table.
        details: one row a query (and position): prompts, answers, clean outputs.
        run: what was asked, and provenance.
    """

    kind: ClassVar[str] = ""
    columns: ClassVar[Mapping[str, str]] = {}
    """The columns of `frame` and their types."""
    further: ClassVar[Mapping[str, Any]] = {}
    """Columns that `frame` has only where they apply, behind the others."""
    rules: ClassVar[Mapping[str, int]] = {}
    """Versions of rules that its numbers follow, beside what was asked; for its run's record."""
    added_settings: ClassVar[Mapping[str, Any]] = {}
    """Settings that records of earlier versions lack, and what they were then."""
    kinds: ClassVar[dict[str, type[Result]]] = {}

    frame: pd.DataFrame
    details: pd.DataFrame
    run: Mapping[str, Any] = field(default_factory=dict)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Result.kinds[cls.kind] = cls

    def __repr__(self) -> str:
        name = self.run.get("model", {}).get("name", "?")
        return (
            f"{type(self).__name__}({name}, {self.run.get('queries', {}).get('name', '?')}, "
            f"{self.n_queries} queries, {len(self.frame)} rows)"
        )

    def _repr_mimebundle_(self, **_: Any) -> Mapping[str, Any]:
        from hopscope.display.notebook import bundle_of

        return bundle_of(self)

    def view(self) -> GridWidget:
        """The interactive heatmap that a notebook shows of this result, to keep and to steer.

        Raises:
            UsageError: if this kind of result has none.

        Example:
            >>> view = result.view()                            # doctest: +SKIP
            >>> view.chosen = {**view.chosen, "control": "random"}  # doctest: +SKIP
        """
        from hopscope.display.notebook import picture_of
        from hopscope.display.widgets import GridWidget
        from hopscope.results.run_record import summary_of

        grid = self.grid()
        if grid is None:
            raise UsageError(
                f"this result of kind {self.kind!r} has no interactive view; plot() it. Results of "
                f"the kinds {', '.join(_kinds_with_grids())} have one where they have cells"
            )
        return GridWidget(grid, lambda: picture_of(self), summary_of(self.run))

    def to_html(self, path: str | Path) -> Path:
        """Write the result as one HTML file, to be read and linked to without Python.

        The file asks nothing outside and opens without a kernel. It shows the interactive heatmap:
        click a cell, and the address of the page leads to it, as in
        `found.html#query=…&cell=18,3` (across, then upwards), so that a finding can be sent to a
        colleague. At most 50 megabytes of queries are written; the page says how many are left
        out. A result of a kind without cells shows what it found in words, and its picture.

        Args:
            path: the file, which is replaced if it is there; its folder must be there.

        Returns:
            The path.

        Raises:
            PlaceError, WriteError: if the file cannot be written.

        Example:
            >>> result.to_html("found.html")  # doctest: +SKIP
        """
        from hopscope.display.notebook import still_of
        from hopscope.display.page import write_page
        from hopscope.results.run_record import summary_of

        if self.grid() is not None:
            return self.view().to_html(path)
        return write_page(path, repr(self), still_of(self, self.findings()), summary_of(self.run))

    @property
    def n_queries(self) -> int:
        """How many queries, or whatever `details` has, the result is of."""
        return int(self.details["query"].nunique())

    def in_run(self, column: str, value: Any = None, table: pd.DataFrame | None = None) -> Any:
        """A value that a column has; the first one if None.

        Args:
            column: a column of the table.
            value: what was asked for; the control `none` may be called `own`, as it is shown.
            table: where it is looked for; `frame` if None.

        Raises:
            UsageError: with the values that there are.
        """
        table = self.frame if table is None else table
        there = list(dict.fromkeys(table[one_of("column", column, map(str, table.columns))]))
        if (column, value) == ("control", OWN):
            value = "none"
        if value is not None and value not in there:
            raise UsageError(f"no {column} {value!r}: the run has {', '.join(map(str, there))}")
        return there[0] if value is None else value

    def rows_with(self, table: pd.DataFrame, **where: Any) -> pd.DataFrame:
        """The rows of a table that have a value in each of some columns.

        Args:
            table: `frame`, or one that is made of it.
            **where: the value of each column; the first one there if None.

        Raises:
            UsageError: with the values that there are.
        """
        for column, value in where.items():
            table = table[table[column] == self.in_run(column, value, table)]
        return table

    def summary(self) -> pd.DataFrame:
        """The table to look at first: that which a terminal prints first; `frame` if there is none.

        Example:
            >>> load_result("runs/mine").summary()              # doctest: +SKIP
        """
        return next(iter(self.printed().values()), self.frame)

    def tables(self) -> dict[str, pd.DataFrame]:
        """The numbers by name: what a report shows, and what its CSV files hold."""
        return {}

    def printed(self, seed: int = 0) -> Mapping[str, Any]:
        """The tables (or named tuples, each a row) that a terminal and `--json` show, by name.

        Args:
            seed: of the bootstrap.
        """
        return self.tables()

    def findings(self) -> list[str]:
        """Sentences with numbers, their intervals and their controls, for a report."""
        return []

    def headline(self) -> Headline | None:
        """The one comparison that a report puts at its top; None if this kind names none."""
        return None

    def grid(self) -> Grid | None:
        """What the interactive heatmap of this result shows; None if it has none."""
        return None

    def save(self, path: str | Path) -> Path:
        """Write the result as a run folder, replacing one that is there; never half of it.

        Files beside those of the run stay in the folder. Of several that are saved to one place
        at once, one is there in the end.

        Raises:
            TakenError: if the path is something else than a run folder.
            PlaceError, WriteError: if it cannot be written.
        """
        path = path_of("path", path)
        if is_taken(path, RECORD):
            raise TakenError(f"{path} is not a run folder of hopscope; choose another place")
        with replacing_folder(path, is_of_run) as temporary:
            write_part(temporary, 0, {"frame": self.frame, "details": self.details})
            write_json(temporary / RECORD, {**self.run, "kind": self.kind})
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a run folder that holds a result of this kind.

        Raises:
            ResultError: if there is none, it is damaged, or of another kind.
        """
        result = read_result(path_of("path", path), {cls.kind: cls} if cls.kind else cls.kinds)
        assert isinstance(result, cls)
        return result

    @classmethod
    def joined(cls, frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
        """Frames as one with the columns of this kind; an empty one has their types, too."""
        filled = [frame for frame in frames if len(frame)]
        if not filled:
            series = {name: pd.Series(dtype=kind) for name, kind in cls.columns.items()}
            return pd.DataFrame(series)
        frame = pd.concat(filled, ignore_index=True)
        return frame[[*cls.columns, *(name for name in cls.further if name in frame)]]

    @classmethod
    def gathered(cls, done: Iterable[tuple[pd.DataFrame, Sequence[Mapping[str, Any]]]]) -> Tables:
        """The tables of several queries, from the frame and the rows of details of each."""
        frames, details = zip(*done, strict=True)
        rows = [row for several in details for row in several]
        return {"frame": cls.joined(frames), "details": pd.DataFrame(rows)}

    @classmethod
    def of(cls, tables: Tables, run: Mapping[str, Any]) -> Self:
        """The result in these tables."""
        return cls(tables["frame"], tables["details"], dict(run))


def _kinds_with_grids() -> list[str]:
    """The kinds of results that may have an interactive heatmap."""
    pkgutil.resolve_name(IMPORTS_KINDS)()
    return sorted(name for name, each in Result.kinds.items() if each.grid is not Result.grid)


def upgrade_record(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run's record with the settings that those of earlier versions lack, as they were then.

    Args:
        run: the record; settings may themselves be those of other kinds, by name.
    """
    settings = run.get("settings")
    if not isinstance(settings, Mapping):
        return dict(run)
    filled = {
        name: upgrade_record({"kind": name, "settings": value})["settings"]
        if name in Result.kinds and isinstance(value, Mapping)
        else value
        for name, value in settings.items()
    }
    kind = Result.kinds.get(str(run.get("kind")), Result)
    return {**run, "settings": {**kind.added_settings, **filled}}


def read_result(path: Path, kinds: Mapping[str, type[Result]]) -> Result:
    """Read a run folder that holds a result of one of some kinds.

    Raises:
        ResultError: if there is none, it is damaged, or of another kind.
    """
    run = read_run(path)
    name = str(run.get("kind"))
    if name not in Result.kinds:
        pkgutil.resolve_name(IMPORTS_KINDS)()
    if name not in kinds:
        newer = "" if name in Result.kinds else " It may come from a newer version of hopscope."
        raise NoResultError(
            f"{path} holds a result of kind {run.get('kind')!r}; expected "
            f"{', '.join(sorted(filter(None, kinds)))}.{newer}"
        )
    if "n" not in run.get("queries", {}):
        raise DamagedResultError(f"{path / 'run.json'} is damaged: it does not say what was asked")
    enough, told = enough_of(run), ENOUGH in run.get(PLAN, {})
    for of_folder in OF_FOLDER:
        run.pop(of_folder, None)
    run, tables = upgrade_record(run), read_parts(path, None if enough is None else range(enough))
    found, asked = tables["details"]["query"].nunique(), enough or run["queries"]["n"]
    if found < asked and (told or "need" not in run.get("settings", {})):
        most = "at most " if told and enough is None else ""
        logger.warning("%s is not finished: %d of %s%d queries", path, found, most, asked)
    return kinds[name].of(tables, run)
