"""Provides View and GridWidget: widgets for JupyterLab, Notebook 7 and VS Code.

The kernel sends a slice when the view requests it. HTML pages, which contain all slices, use the
same JavaScript; `to_html` writes one.
"""

from __future__ import annotations

import html
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import anywidget
import traitlets
from IPython.display import display, update_display

from hopscope.display.front_end import WIDGET, creates_views, in_notebook
from hopscope.display.grid import Grid, first_choice, key_of, slice_json, spec_of
from hopscope.display.page import MOST_BYTES_ALONE, grid_html, view_html, write_page
from hopscope.display.static_files import module, static
from hopscope.errors import UsageError


class View(anywidget.AnyWidget):
    """A widget whose output holds a picture, so that it can be read where no kernel answers.

    The output is HTML with the picture. While there is a kernel, the model finds the output by
    `place` and shows the view there (`outputs.js`). A front end that creates views itself gets the
    MIME type of widgets, too.

    Attributes:
        kind: the kind of view, as `page.js` calls it.
        place: name of the outputs that show this view.
    """

    kind: ClassVar[str]
    place = traitlets.Unicode().tag(sync=True)

    @traitlets.default("place")
    def _new_place(self) -> str:
        return uuid.uuid4().hex

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @property
    def caption(self) -> str:
        """What the view shows, in words."""
        return repr(self)

    def picture(self) -> str | None:
        """Return the image as PNG in base64; None if there is nothing to draw."""

    def made(self) -> Mapping[str, str]:
        """Return how what is shown was made, for a page that leaves the notebook."""
        return {}

    def to_html(self, path: str | Path) -> Path:
        """Write the view, as it is now, as one HTML file that opens without a kernel.

        The file asks nothing outside. Click a cell, and the address of the page leads to it, as in
        `found.html#query=…&cell=18,3`: the values of the axes across and upwards.

        Args:
            path: the file, which is replaced if it is there; its folder must be there.

        Returns:
            The path.

        Raises:
            UsageError: if there is nothing to show yet.
            PlaceError, WriteError: if the file cannot be written.
        """
        return write_page(path, self.caption, self._html(), self.made())

    def _html(self) -> str:
        """Return the HTML of the view in a page."""
        own = set(self.traits(sync=True)) - set(View.class_trait_names())
        state = self.get_state(sorted(name for name in own if not name.startswith("_")))
        return view_html(self.kind, state, self._picture_html(self.picture()))

    def _picture_html(self, picture: str | None) -> str:
        """Return the HTML that stands where the view cannot be shown."""
        name = html.escape(self.caption)
        if not picture:
            return f"<p>{name} is shown where its cell is run.</p>"
        return f'<img alt="{name}" src="data:image/png;base64,{picture}">'

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        bundle: Any = super()._repr_mimebundle_(**kwargs) or {}
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        if not creates_views():
            data = {mime: each for mime, each in data.items() if mime != WIDGET}
        picture = self.picture()
        inside = self._picture_html(picture)
        data["text/html"] = f'<div data-hopscope-view="{self.place}">{inside}</div>'
        return {**data, **({"image/png": picture} if picture else {})}, metadata

    def _ipython_display_(self) -> None:
        """Display the view under a name, so that `renew_outputs` reaches its outputs."""
        data, metadata = self._repr_mimebundle_()
        display(  # type: ignore[no-untyped-call]
            data, metadata=metadata, raw=True, display_id=self.place
        )

    def renew_outputs(self) -> None:
        """Replace the picture in the outputs, which a notebook that is saved from now on shows."""
        if in_notebook():
            data, metadata = self._repr_mimebundle_()
            update_display(  # type: ignore[no-untyped-call]
                data, metadata=metadata, raw=True, display_id=self.place
            )


class GridWidget(View):
    """An interactive heatmap: select a cell with the mouse or arrow keys, choose query and control.

    Attributes:
        chosen: the option of each choice. It can be set from code:
            `view.chosen = {**view.chosen, "query": id}`.
    """

    kind = "grid"
    _esm = module("grid.js", render="renderGrid")
    _css = static("view.css")
    spec = traitlets.Dict().tag(sync=True)
    slices = traitlets.Dict().tag(sync=True)
    chosen = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        grid: Grid,
        picture: Callable[[], str | None] = lambda: None,
        made: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Create the widget of a grid.

        Args:
            grid: the grid.
            picture: returns the image for front ends without widgets, as PNG in base64.
            made: how what is shown was made, for `to_html`.
        """
        self._grid, self._picture, self._made = grid, picture, dict(made or {})
        super().__init__(spec=spec_of(grid), chosen=first_choice(grid), **kwargs)

    @property
    def caption(self) -> str:
        return str(self.spec["title"])

    def picture(self) -> str | None:
        """Return the image of the whole result, regardless of the choices."""
        return self._picture()

    def made(self) -> Mapping[str, str]:
        """Return how the result was made."""
        return self._made

    def _html(self) -> str:
        """Return the HTML of the grid with all slices, not only those that were requested."""
        picture = self._picture_html(self.picture())
        return grid_html(self._grid, picture, chosen=self.chosen, most_bytes=MOST_BYTES_ALONE)

    @traitlets.validate("chosen")
    def _is_a_choice(self, proposal: Any) -> dict[str, str]:
        chosen: dict[str, str] = proposal["value"]
        for choice in self._grid.choices:
            known = [option.value for option in choice.options]
            if chosen.get(choice.name) not in known:
                raise UsageError(
                    f"{choice.name} cannot be {chosen.get(choice.name)!r}: choose one of "
                    f"{', '.join(known[:8])}{', ...' if len(known) > 8 else ''}"
                )
        return chosen

    @traitlets.observe("chosen")
    def _on_chosen(self, change: Any) -> None:
        chosen = change["new"]
        self.slices = {key_of(self._grid, chosen): slice_json(self._grid, chosen)}
