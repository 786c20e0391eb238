"""RowLayout and Histories against every cell run on its own, with symbols for hidden states.

A state is a number that stands for everything it was computed from: the tokens, the edit, and the
keys and values that its row has seen. Two states are equal only if all of that is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hopscope.engine.rows import Histories, RowLayout

State = int
Past = tuple[State, ...]
END, N_TOKENS_MADE_UP, N_STEPS = 0, 3, 5


@dataclass
class Symbols:
    """Numbers what is computed, so that equal computations are equal numbers."""

    known: dict[tuple[object, ...], State] = field(default_factory=dict)

    def __call__(self, *what: object) -> State:
        return self.known.setdefault(what, len(self.known))


@dataclass(frozen=True)
class Cells:
    """Cells as the engine has them: sorted by the boundary where they split off.

    Attributes:
        start: the suffix that each begins with.
        seed: decides which token follows which state.
    """

    n_layers: int
    split: tuple[int, ...]
    start: tuple[int, ...]
    seed: int

    def chosen(self, state: State) -> int:
        return random.Random(f"{self.seed} {state}").randrange(N_TOKENS_MADE_UP)

    def stop(self, tokens: tuple[int, ...]) -> bool:
        return random.Random(f"{self.seed} {tokens}").random() < 0.2


@st.composite
def some_cells(draw: st.DrawFn) -> Cells:
    n_layers = draw(st.integers(1, 4))
    cell = st.tuples(st.integers(0, n_layers + 1), st.integers(0, 2))
    cells = sorted(draw(st.lists(cell, min_size=1, max_size=9)), key=lambda both: both[0])
    split, start = zip(*cells, strict=True)
    return Cells(n_layers, split, start, draw(st.integers(0, 10**6)))


@dataclass
class Pass:
    """What one pass computes: at each boundary the state of each cell, its past included."""

    states: list[list[tuple[State, Past]]]
    final: list[State]


def run_alone(cells: Cells, symbols: Symbols) -> tuple[list[Pass], list[tuple[int, ...]]]:
    """Every cell on its own: a list of passes over the cells that still run, and their tokens."""
    pasts: list[list[Past]] = [[()] * cells.n_layers for _ in cells.split]
    inputs = [symbols("suffix", start) for start in cells.start]
    tokens: list[tuple[int, ...]] = [()] * len(cells.split)
    alive, passes = list(range(len(cells.split))), []
    for step in range(N_STEPS):
        made = Pass([[] for _ in range(cells.n_layers)], [])
        for cell in alive:
            state = inputs[cell]
            for layer in range(cells.n_layers):
                state = edited(cells, cell, layer, step, state, symbols)
                pasts[cell][layer] = (*pasts[cell][layer], state)
                made.states[layer].append((state, pasts[cell][layer]))
                state = symbols("block", layer, pasts[cell][layer])
            made.final.append(edited(cells, cell, cells.n_layers, step, state, symbols))
        passes.append(made)
        for cell, state in zip(list(alive), made.final, strict=True):
            token = cells.chosen(state)
            if token == END:
                alive.remove(cell)
                continue
            tokens[cell] += (token,)
            inputs[cell] = symbols("token", token)
            if cells.stop(tokens[cell]):
                alive.remove(cell)
        if not alive:
            break
    return passes, tokens


def edited(
    cells: Cells, cell: int, boundary: int, step: int, state: State, symbols: Symbols
) -> State:
    """The state of a cell at a boundary, which its edit replaces in the first pass."""
    if step > 0 or cells.split[cell] != boundary:
        return state
    return symbols("edit", cell, state)


class Rows:
    """The rows of the engine, moved as a layout says."""

    def __init__(self, cells: Cells, symbols: Symbols) -> None:
        self.cells, self.symbols = cells, symbols
        self.pasts: list[list[Past]] = [[] for _ in range(cells.n_layers)]

    def run(self, layout: RowLayout, inputs: Sequence[State], step: int) -> Pass:
        entries, parents = layout.on(torch.device("cpu"))
        rows, made = list(inputs), Pass([], [])
        for boundary, entry in enumerate(entries):
            if entry is not None:
                rows = [rows[i] for i in entry.tolist()]
            assert len(rows) == layout.shared[boundary] + layout.own[boundary]
            for cell in range(layout.own[boundary]):
                row = layout.shared[boundary] + cell
                number = int(layout.alive[cell])
                rows[row] = edited(self.cells, number, boundary, step, rows[row], self.symbols)
            if boundary < self.cells.n_layers:
                pasts = self._inherited(boundary, parents[boundary], len(rows), step)
                pasts = [(*past, row) for past, row in zip(pasts, rows, strict=True)]
                self.pasts[boundary] = pasts
                made.states.append(list(zip(rows, pasts, strict=True)))
                rows = [self.symbols("block", boundary, past) for past in pasts]
        made.final = rows
        return made

    def _inherited(
        self, layer: int, parents: torch.Tensor | None, n_rows: int, step: int
    ) -> list[Past]:
        if step == 0:
            return [()] * n_rows
        if parents is None:
            return self.pasts[layer]
        return [self.pasts[layer][i] for i in parents.tolist()]


def run_together(
    cells: Cells, symbols: Symbols
) -> tuple[list[tuple[Pass, RowLayout]], list[tuple[int, ...]]]:
    """All cells as rows, as the engine runs them."""
    rows, layout, passes = Rows(cells, symbols), None, []
    histories = Histories.first(np.array(cells.start), np.array(cells.split))
    inputs = [symbols("suffix", int(suffix)) for suffix in histories.suffixes]
    for step in range(N_STEPS):
        layout = histories.layout(cells.n_layers, before=layout)
        assert layout.inputs == len(inputs)
        made = rows.run(layout, inputs, step)
        passes.append((made, layout))
        chosen = np.array([cells.chosen(made.final[row]) for row in layout.read])
        histories = histories.grown(chosen, [END], cells.stop)
        inputs = [symbols("token", int(token)) for token in histories.last]
        if not len(histories.alive):
            break
    return passes, histories.generated


several_steps = settings(max_examples=150, deadline=None)


@several_steps
@given(some_cells())
@example(Cells(2, (0, 1, 2, 3), (0, 0, 0, 0), 0))
def test_each_cell_has_exactly_its_own_history(cells: Cells) -> None:
    symbols = Symbols()
    alone, tokens = run_alone(cells, symbols)
    together, generated = run_together(cells, symbols)
    assert generated == tokens
    for expected, (made, layout) in zip(alone, together, strict=True):
        assert [made.final[row] for row in layout.read] == expected.final


@several_steps
@given(some_cells())
@example(Cells(3, (1, 1, 2, 4), (0, 0, 0, 0), 0))
def test_no_block_runs_two_equal_rows_or_one_that_nobody_needs(cells: Cells) -> None:
    symbols = Symbols()
    alone, _ = run_alone(cells, symbols)
    together, _ = run_together(cells, symbols)
    for expected, (made, _) in zip(alone, together, strict=True):
        for needed, rows in zip(expected.states, made.states, strict=True):
            assert len(rows) == len(set(rows))
            assert set(rows) == set(needed)


@given(some_cells())
def test_rows_that_stay_are_not_moved(cells: Cells) -> None:
    histories = Histories.first(np.array(cells.start), np.array(cells.split))
    layout = histories.layout(cells.n_layers, before=None)
    entries, parents = layout.on(torch.device("cpu"))
    assert parents == [None] * cells.n_layers
    before = layout.inputs
    for kept, entry, shared, own in zip(
        entries, layout.entry, layout.shared, layout.own, strict=True
    ):
        stays = entry.tolist() == list(range(before))
        assert (kept is None) == stays
        assert kept is None or kept.tolist() == entry.tolist()
        before = shared + own


def test_a_layout_by_hand() -> None:
    """Three cells of one prompt: edits before block 1 and before the final norm, and none."""
    first = Histories.first(np.array([0, 0, 0]), np.array([1, 2, 3]))
    layout = first.layout(2, before=None)
    assert (layout.inputs, layout.shared, layout.own) == (1, (1, 1, 1), (0, 1, 2))
    assert [entry.tolist() for entry in layout.entry] == [[0], [0, 0], [0, 1, 0]]
    assert layout.read.tolist() == [1, 2, 0]
    second = first.grown(np.array([7, 8, 8]), [], None)
    assert second.generated == [(7,), (8,), (8,)]
    assert second.last.tolist() == [8, 7]
    layout = second.layout(2, before=layout)
    assert (layout.inputs, layout.shared, layout.own) == (2, (2, 1, 1), (0, 1, 2))
    assert [None if p is None else p.tolist() for p in layout.parents] == [[0, 0], None]


STOPS: dict[str, tuple[Callable[[tuple[int, ...]], bool] | None, list[int]]] = {
    "never": (None, [0, 2, 3]),
    "at a token": (lambda tokens: tokens[-1] == 5, [2, 3]),
    "always": (lambda tokens: True, []),
}


@pytest.mark.parametrize("when", STOPS)
def test_who_goes_on(when: str) -> None:
    stop, alive = STOPS[when]
    first = Histories.first(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 3]))
    grown = first.grown(np.array([5, END, 6, 6]), [END], stop)
    assert grown.alive.tolist() == alive
    assert grown.generated == [(5,), (), (6,), (6,)]
    assert grown.split.tolist() == [first.split[i] for i in alive]
    assert len(grown.last) == len({first.of_cell[i] for i in alive})
