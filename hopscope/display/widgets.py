"""Provides View and GridWidget: widgets for JupyterLab, Notebook 7 and VS Code.

The kernel sends a slice when the view requests it. HTML pages, which contain all slices, use the
same JavaScript.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anywidget
import traitlets

from hopscope.display.grid import Grid, first_choice, key_of, slice_json, spec_of
from hopscope.display.static_files import module, static
from hopscope.errors import UsageError


class View(anywidget.AnyWidget):
    """A widget with an image for front ends that cannot display widgets."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def picture(self) -> str | None:
        """Return the image as PNG in base64; None if there is nothing to draw."""

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        bundle: Any = super()._repr_mimebundle_(**kwargs) or {}
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        picture = self.picture()
        return {**data, **({"image/png": picture} if picture else {})}, metadata


class GridWidget(View):
    """An interactive heatmap: select a cell with the mouse or arrow keys, choose query and control.

    Attributes:
        chosen: the option of each choice. It can be set from code:
            `view.chosen = {**view.chosen, "query": id}`.
    """

    _esm = module("dom.js", "grid.js", render="renderGrid")
    _css = static("view.css")
    spec = traitlets.Dict().tag(sync=True)
    slices = traitlets.Dict().tag(sync=True)
    chosen = traitlets.Dict().tag(sync=True)

    def __init__(
        self, grid: Grid, picture: Callable[[], str | None] = lambda: None, **kwargs: Any
    ) -> None:
        """Create the widget of a grid.

        Args:
            grid: the grid.
            picture: returns the image for front ends without widgets, as PNG in base64.
        """
        self._grid, self._picture = grid, picture
        super().__init__(spec=spec_of(grid), chosen=first_choice(grid), **kwargs)

    def picture(self) -> str | None:
        """Return the image of the whole result, regardless of the choices."""
        return self._picture()

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
