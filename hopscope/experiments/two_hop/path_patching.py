"""Path patching: what one sublayer or head tells another, or the logits, directly.

Path patching (Wang et al. 2022, section 3.1; Goldowsky-Dill et al. 2023): a receiver reads what it
would read if one sender before it had written what it writes in the partner's run, and everything
else, also what lies between the two, were as it is in the query's own. A path runs along the
residual stream alone, from a sender at a token to a receiver at the same token; what the receiver
makes of it goes on by every way. Wang et al. let the MLPs between two heads follow the sender; here
they are senders and receivers themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Unpack, cast

import pandas as pd
import torch
from torch import Tensor

from hopscope.display.progress import divided
from hopscope.engine.edits import Cell, Patch, PatchSite
from hopscope.engine.head_effects import check_head_effects, head_effects
from hopscope.engine.sublayers import INPUTS, input_of
from hopscope.errors import UsageError
from hopscope.experiments.analysis import RunKeywords, RunOptions, analysis
from hopscope.experiments.arguments import Layers, ListOf
from hopscope.experiments.two_hop.activation_patching import (
    CONTROLS,
    PLACE,
    POSITIONS,
    Patcher,
    Where,
    beside_random,
    flips_above_chance,
    flips_at_most,
    mean_of_heads,
    recoveries_and_flips,
)
from hopscope.experiments.two_hop.path_ends import (
    EMBED,
    LOGITS,
    RECEIVER,
    RECEIVERS,
    SENDER,
    SENDERS,
    end_name,
    ends_of,
)
from hopscope.models.language_model import LanguageModel
from hopscope.models.token_model import FIRST_TOKENS
from hopscope.prompting.capture import Site, capture
from hopscope.prompting.tokenized import TokenizedPrompt
from hopscope.queries.query import Query
from hopscope.queries.query_set import QuerySet
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.wording import (
    largest_row,
    row_where,
    value_with_interval,
    with_interval,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hopscope.display.grid import Grid

READ: Mapping[str, Site] = {EMBED: "resid_pre", LOGITS: "resid_post"}
"""Where a sender's or receiver's state is read, where it is no site by that name."""
SOME = 0.005
"""Recovery below which, either way, a path does nothing."""
PATH = {**PLACE, "receiver": "str", "receiver_layer": "int64"}
"""Columns that say which path is patched in which query, and their types."""
KEYS = [name for name in PATH if name != "query"]


@dataclass(frozen=True, repr=False)
class PathPatching(Result):
    """What the direct path from one sender to one receiver does to the answer.

    `frame` has one row a query and path: `position`, the token of both; the sender's `site`,
    `layer` (-1 for `embed`, which comes before block 0) and `head` (-1 but for `z`); `control`; the
    `receiver` and its `receiver_layer` (-1 for `logits`). `logit_diff`, `recovery` and `flipped`,
    and `details`, are as those of `ActivationPatching`.
    """

    kind = "path_patching"
    rules = FIRST_TOKENS
    columns: ClassVar = {
        **PATH,
        "logit_diff": "float32",
        "recovery": "float64",
        "flipped": "bool",
    }

    def summary(self, seed: int = 0) -> pd.DataFrame:
        """Mean recovery and flip rate by position, sender, control and receiver.

        Returns:
            Columns `position, site, control, layer, head, receiver, receiver_layer`, and those of
            `ActivationPatching.summary`.
        """
        return recoveries_and_flips(self.frame, KEYS, seed)

    def above_chance(self, seed: int = 0) -> pd.DataFrame:
        """How much oftener the partner's state flips the answer than a random vector, in pairs.

        Returns:
            Columns `position, site, layer, head, receiver, receiver_layer`, and those of
            `ActivationPatching.above_chance`.
        """
        return flips_above_chance(self.frame, KEYS, seed)

    def paths(self, position: str | None = None, control: str = "none") -> pd.DataFrame:
        """Mean recovery by each path at a position, but for those of single heads.

        Args:
            position: the token; the first one of the run if None.
            control: whose states are sent.

        Returns:
            Rows are senders, columns receivers, both with their layers; NaN where there is no path.

        Raises:
            UsageError: if the run has no such paths.
        """
        frame = self.frame[self.frame["site"] != "z"]
        if frame.empty:
            raise UsageError("the run has nothing but heads: see heads()")
        frame = self.rows_with(frame, position=position, control=control)
        means = frame.groupby([*SENDER, *RECEIVER])["recovery"].mean().unstack([*RECEIVER])
        rows, columns = (ends_of(frame, ends) for ends in (SENDER, RECEIVER))
        table: pd.DataFrame = means.reindex(index=rows, columns=columns)
        return table

    def heads(
        self, position: str = "t2", receiver: str | None = None, receiver_layer: int | None = None
    ) -> pd.DataFrame:
        """Mean recovery by the direct path of each head to one receiver; rows layer, columns head.

        Args:
            position: the token.
            receiver: the first one of the run if None.
            receiver_layer: its first layer if None.

        Raises:
            UsageError: if the run has no such paths.
        """
        frame = self.frame[self.frame["site"] == "z"]
        if len(frame):
            frame = self.rows_with(frame, receiver=receiver, receiver_layer=receiver_layer)
        return mean_of_heads(frame, position)

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"summary": self.summary(), "above_chance": self.above_chance()}

    def printed(self, seed: int = 0) -> dict[str, pd.DataFrame]:
        return {"summary": self.summary(seed)}

    def findings(self) -> list[str]:
        summary, gains = self.summary(), self.above_chance()
        groups = summary.groupby(["receiver", "site", "position"], sort=False)
        found = (_found(rows, gains) for _, rows in groups if _tells(rows))
        return [*found, flips_at_most(self.details)]

    def grid(self) -> Grid | None:
        """What the interactive heatmap shows."""
        from hopscope.experiments.two_hop.grids import PathGrid, PathHeadsGrid

        return PathGrid(self) if (self.frame["site"] != "z").any() else PathHeadsGrid(self)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the mean recovery by sender and receiver at the first position, or by head."""
        if (self.frame["site"] == "z").all():
            return self.plot_heads(str(self.in_run("position")), ax)
        if (self.frame["receiver"] == LOGITS).all():
            return self.plot_lines(ax)
        return self.plot_paths(ax=ax)

    def plot_lines(self, ax: Axes | None = None) -> Axes:
        """Draw the mean recovery by the direct paths to the logits, by layer of the sender.

        Raises:
            UsageError: if the run has no paths to the logits.
        """
        from hopscope.experiments.two_hop import plots

        table = self.rows_with(self.summary(), receiver=LOGITS)
        return plots.sender_lines(table[table["site"] != "z"], ax)

    def plot_paths(
        self, position: str | None = None, control: str = "none", ax: Axes | None = None
    ) -> Axes:
        """Draw the mean recovery by sender and receiver, as `paths()` has it."""
        from hopscope.experiments.two_hop import plots

        title = f"paths at {self.in_run('position', position)}"
        return plots.path_heatmap(self.paths(position, control), ax, title)

    def plot_heads(
        self,
        position: str = "t2",
        ax: Axes | None = None,
        receiver: str | None = None,
        receiver_layer: int | None = None,
    ) -> Axes:
        """Draw the mean recovery by the direct path of each head to one receiver."""
        from hopscope.plots import heatmaps

        table = self.heads(position, receiver, receiver_layer)
        frame = self.frame[self.frame["site"] == "z"]
        rows = self.rows_with(frame, receiver=receiver, receiver_layer=receiver_layer)
        (to,) = {end_name(*end) for end in ends_of(rows, RECEIVER).to_list()}
        return heatmaps.head_heatmap(table, ax, title=f"heads at {position} to {to}")


def _sender_name(row: Mapping[str, Any]) -> str:
    """A sender in words, such as `head 4 of layer 3`."""
    head, layer = row["head"], row["layer"]
    if row["site"] == EMBED:
        return "the embedding"
    return end_name(row["site"], layer) if head < 0 else f"head {head} of layer {layer}"


def _tells(rows: pd.DataFrame) -> bool:
    """Whether some path changes anything: a token that both questions share has one embedding."""
    return bool((rows.loc[rows["control"] == "none", "recovery"].abs() >= SOME).any())


def _found(rows: pd.DataFrame, gains: pd.DataFrame) -> str:
    """Which direct path of one kind brings most of the partner's answer, in a sentence."""
    own = rows[rows["control"] == "none"]
    best = largest_row(own, "recovery")
    place = {name: best[name] for name in KEYS if name != "control"}
    to = (
        "the logits"
        if best["receiver"] == LOGITS
        else f"what {end_name(best['receiver'], best['receiver_layer'])} reads"
    )
    sentence = (
        f"the direct path from {_sender_name(best)} at {best['position']} to {to} brings most of "
        f"the other question's answer, the largest of {len(own)} of this kind: recovery "
        f"{value_with_interval(best['recovery'], best['low'], best['high'])}, answer flipped in "
        f"{with_interval(best['flip_rate'], best['flip_low'], best['flip_high'])}"
    )
    control = row_where(rows, **place, control="random")
    return f"{sentence}{beside_random(control, row_where(gains, **place))}."


@analysis(
    "path-patch",
    title="Path patching",
    question="Which sublayers and heads tell the answer to later ones, or to the logits, directly?",
    source="Wang et al. 2022; Goldowsky-Dill et al. 2023",
    control="a random vector of the same norm",
    order=67,
    accepts={
        "positions": ListOf(POSITIONS),
        "sites": ListOf(SENDERS),
        "receivers": ListOf(RECEIVERS),
        "receiver_layers": Layers(),
        "controls": ListOf(CONTROLS, empty=True),
    },
    layers=lambda layers: {"receiver_layers": layers},
)
def path_patch(
    model: LanguageModel,
    queries: QuerySet,
    positions: Sequence[str] = ("t2",),
    sites: Sequence[str] = ("attn_out", "mlp_out"),
    receivers: Sequence[str] = (LOGITS,),
    receiver_layers: Sequence[int] | None = None,
    controls: Sequence[str] = CONTROLS,
    **run: Unpack[RunKeywords],
) -> PathPatching:
    """Patch the direct path from a sender to a receiver with what r2(r1(e1′)) sends in its place.

    The receiver's input is the query's own, and on top of it the difference of what the sender
    writes in the partner's run and in the query's own. Every sender is patched into every receiver
    that reads the residual stream behind it at the same token; `logits` read that of `t2`. Paths to
    the logits are quick; those to every sublayer grow with the square of the number of layers.

    Args:
        model: the model.
        queries: usually `graded.correct()`; partners come from the set it was chosen from.
        positions: any of `t1`, `t2`, `e1` (the last token of the source entity).
        sites: the senders: any of `attn_out`, `mlp_out`, `z` for each head's own part of
            `attn_out`, and `embed` for the token's embedding.
        receivers: any of `logits`, `attn_in` and `mlp_in`: what attention (queries, keys and values
            of the token) and MLP read.
        receiver_layers: layers of `attn_in` and `mlp_in`; all if None.
        controls: `random`: a Gaussian vector of the norm of what the partner sends; () for none.

    Raises:
        UsageError: for an empty set, an unknown position, sender, receiver, layer or control, if no
            sender has a path to a receiver, or if no query has a partner.
        ModelError: if it cannot be said in the model's family what its sublayers read or write.

    Example:
        >>> path_patch(model, graded.correct(), sites=["z"]).plot()  # doctest: +SKIP
    """
    options = RunOptions(**run)
    settings = {
        "positions": positions,
        "sites": sites,
        "receivers": receivers,
        "receiver_layers": receiver_layers,
        "controls": controls,
    }
    if "z" in sites:
        check_head_effects(model)
    patcher = _PathPatcher.of(model, queries, settings, options)
    if not any(patcher.receivers(*each) for each in patcher.senders()):
        raise UsageError(
            f"no path from {', '.join(sites)} to {', '.join(receivers)} at {', '.join(positions)} "
            f"in the layers {receiver_layers}: a receiver reads what is written before it at its "
            "own token, and the logits read t2"
        )
    return patcher.run(PathPatching, patcher.tables, options)


@dataclass(frozen=True)
class _Path(Where):
    """Which path is patched, as the frame's columns have it."""

    receiver: str
    receiver_layer: int


@dataclass(frozen=True)
class _PathPatcher(Patcher):
    """Patches the paths of one query after the other."""

    def tables(self, queries: QuerySet) -> Tables:
        return PathPatching.gathered(self.query(query) for query in divided(queries))

    def states(self, prompt: TokenizedPrompt) -> Mapping[str, Tensor]:
        """What each sender writes; the embedding as that of a single layer."""
        found = self._captured(prompt, self.settings["sites"])
        return {site: each[:, :1] if site == EMBED else each for site, each in found.items()}

    def _captured(self, prompt: TokenizedPrompt, names: Sequence[str]) -> dict[str, Tensor]:
        """States of senders or receivers: (position, layer, ...)."""
        sites = [cast(Site, READ.get(name, name)) for name in names]
        model, store = self.prompts.model, self.prompts.store
        acts = capture(model, [prompt.prompt], sites, self.settings["positions"], store=store)
        return {name: acts[site][0] for name, site in zip(names, sites, strict=True)}

    def senders(self) -> Iterator[tuple[str, str, int]]:
        """The site, position and layer of each sender, all heads of a layer as one."""
        for site in self.settings["sites"]:
            for position in self.settings["positions"]:
                for layer in [-1] if site == EMBED else range(self.prompts.model.n_layers):
                    yield site, position, layer

    def receivers(self, site: str, position: str, layer: int) -> list[tuple[str, int]]:
        """The receivers that read what a sender has written, with their layers."""
        found = [(LOGITS, -1)] if position == "t2" else []
        found += [(name, at) for name in INPUTS for at in self.settings["receiver_layers"]]
        return [
            (name, at)
            for name, at in found
            if name in self.settings["receivers"]
            and (name == LOGITS or self._reads(name, at, site, layer))
        ]

    def _reads(self, receiver: str, receiver_layer: int, site: str, layer: int) -> bool:
        """Whether a sublayer comes behind a sender."""
        read = input_of(self.prompts.model, receiver_layer, receiver)
        beside = layer == receiver_layer and read.after_attention and site in ("attn_out", "z")
        return layer < receiver_layer or beside

    def cells(self, query: Query) -> tuple[Sequence[Where], list[Cell]]:
        prompt, model = self.prompts.prompt(query), self.prompts.model
        positions = self.settings["positions"]
        own, read = self.states(prompt), self._captured(prompt, self.settings["receivers"])
        where: list[_Path] = []
        cells: list[Cell] = []
        for site, position, control, sent in self.donors(query):
            place, at = positions.index(position), prompt.position(position)
            for number, (state, other) in enumerate(zip(own[site][place], sent, strict=True)):
                layer = -1 if site == EMBED else number
                changes = self._changes(site, layer, state, other)
                for head, change in enumerate(changes, 0 if site == "z" else -1):
                    for name, into in self.receivers(site, position, layer):
                        vector = read[name][place, into].float() + change
                        target = cast(PatchSite, READ.get(name, name))
                        cells.append([Patch(into % model.n_layers, at, vector, target)])
                        where.append(_Path(position, site, control, layer, head, name, into))
        return where, cells

    def _changes(self, site: str, layer: int, own: Tensor, other: Tensor) -> Tensor:
        """By how much what a sender writes changes, in float32: (head or 1, d_model)."""
        if site == "z":
            return head_effects(self.prompts.model, layer, own, other)
        return torch.unsqueeze(other.float() - own.float(), 0)
