"""Provides superposition(): which vertices a continuous thought holds, and what it attends to.

Reasoning by Superposition (Zhu et al. 2025): after c steps a thought points to all vertices that
can be reached in c steps at once, most to those that are reached last. What the paper does not
compare with is a pause in place of the thought, which gives as many tokens to compute in, but no
state to go on from: all of them are read in one pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Unpack

import pandas as pd
import torch
from torch import Tensor

from hopscope.errors import UsageError
from hopscope.experiments.analysis import RunKeywords, RunOptions, analysis, run_numbered
from hopscope.experiments.arguments import AtLeast, OneOf, SeveralOf
from hopscope.interrupts import interrupt_safe
from hopscope.models.evaluation import evaluating
from hopscope.models.language_model import LanguageModel
from hopscope.models.linear import unembedding_rows
from hopscope.queries.graph_paths import PathSet, reachable
from hopscope.results.result import Result
from hopscope.results.run_folder import Tables
from hopscope.results.run_record import provenance
from hopscope.statistics import SHARE, t_intervals
from hopscope.worlds.tasks.graph_reachability import GraphReachability, Maze
from hopscope.worlds.thoughts import Thinking, think
from hopscope.worlds.train import answered, thought_of
from hopscope.worlds.world import World, check_distinct

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("optimal", "frontier", "reachable", "unreachable")
"""Of a vertex: on the way at this step; reached at this step; before it; not yet, or never."""
GROUPS = ("disjoint", "nested")
"""How vertices are grouped: each in one group; or, as in the paper, the optimal ones also among
the frontier, and these among the reachable, with the mean over all that a seed's graphs have."""
INSIDE = {"optimal": KINDS[:3], "frontier": KINDS[1:3]}
"""Of which groups a vertex is, if they are nested; of its own alone if it is not named."""
EMBEDDINGS = ("output", "input")
READ_AT = {"before": 1, "at": 0}
"""How many tokens before a thought's own; the state at the one before it is given back as it."""
KEYS = ["world", "measure", "read_at", "thought", "vertices"]
ROWS_AT_ONCE = 256


@dataclass(frozen=True, repr=False)
class Superposition(Result):
    """What the thoughts of worlds hold.

    `frame` has one row a world, seed, query and what was measured: `world, seed, query, measure,
    read_at, thought, vertices, value`. `thought` counts from 1. It is read at two tokens: `before`
    it, where the state is formed that is given back as the thought (of a pause, would be), and
    `at` its own, where the model goes on from it. Which of them makes the step is the model's
    choice: one that makes the first step at the first thought makes the last at the answer.

    `vertices` are `optimal` (the vertex on the way to the answer at this step), `frontier` (others
    that take as many steps from the root as there were thoughts), `reachable` (that take fewer),
    `unreachable` (all others). The measures:

    - `product`: the mean inner product of the last state and the unembeddings of such vertices,
      which is their logit; or, as in the paper, and their input embeddings.
    - `attention`: how much the token attends in the last block to an edge, summed over its tokens
      and all heads, the mean over edges. Edges are told apart by the vertex that they leave, one
      step earlier; `optimal` is the next edge on the way.
    - `correct`: whether the answer is right; `thought` is their number, `read_at` and `vertices`
      are `none`.

    If groups are nested, there is `n_items`, the number of vertices or edges of which `value` is
    the mean. `details` has one row a query.
    """

    kind: ClassVar[str] = "superposition"
    added_settings: ClassVar = {"groups": "disjoint", "embeddings": "output"}

    def summary(self) -> pd.DataFrame:
        """The mean of each measure over seeds, with its 95 % t interval over them.

        A seed's mean is that of its queries; with nested groups, that of all vertices or edges.

        Returns:
            Columns world, measure, read_at, thought, vertices, n_seeds, n (queries of all seeds),
            value, low, high. The interval of the share of right answers is cut to [0, 1].
        """
        frame, keys = self.frame, [*KEYS, "seed"]
        weight = frame["n_items"] if "n_items" in frame else pd.Series(1, index=frame.index)
        weighted = frame.assign(total=frame["value"] * weight, weight=weight)
        by_seed = weighted.groupby(keys, sort=False)[["total", "weight"]].sum()
        by_seed = by_seed.assign(value=by_seed["total"] / by_seed["weight"])
        counted = by_seed.assign(n=frame.groupby(keys, sort=False).size()).reset_index()
        return t_intervals(counted, KEYS, "value", {"correct": SHARE})

    def findings(self) -> list[str]:
        """At which token each world's thoughts have made their step."""
        told = {
            "at": "makes each step one token later than in the paper, at the thought and not at "
            "the token that forms it",
            "before": "makes each step at the token that forms the thought, as in the paper",
        }
        table = first_steps(self.summary())
        return [
            f"{world} {told[makes]}: the vertex after the first step has the product "
            f"{before:.2f} at the token before the first thought, {at:.2f} at its own."
            for world, before, at, makes in table.reset_index().to_numpy()
        ]

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"summary": self.summary()}

    def plot(self) -> Figure:
        """Draw both measures at the tokens that make the first world's steps."""
        from hopscope.experiments.worlds import graph_plots

        summary = self.summary()
        makes = first_steps(summary)["makes"]
        return graph_plots.superposition_figure(summary, makes.iloc[0] if len(makes) else "at")


def first_steps(summary: pd.DataFrame) -> pd.DataFrame:
    """Which token makes the first step in each world whose thoughts are read at both tokens.

    Args:
        summary: `Superposition.summary()`.

    Returns:
        Indexed by world; the products with the vertex after the first step, in columns `before` and
        `at`, and in `makes` which of the two is larger.
    """
    first = "measure == 'product' and thought == 1 and vertices == 'optimal'"
    table = summary.query(first).pivot(index="world", columns="read_at", values="value")
    table = table.reindex(index=summary["world"].unique(), columns=list(READ_AT)).dropna()
    return table.assign(makes=table.idxmax(axis=1) if len(table) else "")


@analysis(
    None,
    title="Superposition in continuous thoughts",
    question="Do continuous thoughts hold many vertices at once?",
    source="Zhu et al. 2025",
    control="pauses in place of thoughts",
    asks="models",
    order=320,
    keywords=("progress", "out"),
    accepts={
        "worlds": SeveralOf(World),
        "limit": AtLeast(1),
        "groups": OneOf(GROUPS),
        "embeddings": OneOf(EMBEDDINGS),
    },
)
def superposition(
    worlds: Sequence[World],
    limit: int = 300,
    groups: Literal["disjoint", "nested"] = "disjoint",
    embeddings: Literal["output", "input"] = "output",
    **run: Unpack[RunKeywords],
) -> Superposition:
    """Measure what thoughts point to and attend to, by how far from the root vertices are.

    Args:
        worlds: whose task is `GraphReachability`, with thoughts or pauses; several seeds of each.
        limit: queries of each world.
        groups: `disjoint`; or `nested` and pooled over vertices and edges, as in the paper.
        embeddings: with which states are multiplied: `output`, or `input`, as in the paper.

    Raises:
        UsageError: for no world, a repeated one, or one of another task.

    Example:
        >>> names = "reachability", "reachability-pause"
        >>> superposition([load_world(name) for name in names]).plot()  # doctest: +SKIP
    """
    options = RunOptions(**run)
    worlds = check_distinct(worlds)
    everything = []
    for world in worlds:
        if not isinstance(world.task, GraphReachability):
            raise UsageError(f"{world.name} has no thoughts; take a world such as 'reachability'")
        of_world = world.task.path_prompts()[:limit]
        everything += [replace(each, id=_id(world, each.id)) for each in of_world]
    models = [[world.name, world.seed, world.model.fingerprint] for world in worlds]
    settings = {"worlds": models, "limit": limit, "groups": groups, "embeddings": embeddings}
    prompts = PathSet(tuple(everything), "worlds")
    first, *others = [world.model for world in worlds]
    record = provenance(first, prompts, Superposition.kind, settings, others)

    def compute(number: int) -> Tables:
        return _tables(worlds[number], limit, groups == "nested", embeddings == "input")

    return run_numbered(Superposition, len(worlds), compute, record, options, unit="world")


def _id(world: World, query: str) -> str:
    return f"{world.name}@{world.seed}.{query}"


def _tables(world: World, limit: int, nested: bool, of_inputs: bool) -> Tables:
    """What one world shows."""
    task = world.task
    assert isinstance(task, GraphReachability)
    mazes = task.mazes()[:limit]
    written = [task.example(maze, task.depth) for maze in mazes]
    right = answered(world.model, written, thought_of(task, world.model)).tolist()
    vocabulary = world.model.tokenizer.get_vocab()
    vertices = torch.tensor([vocabulary[vertex] for vertex in task.vertices])
    embedded = unembedding_rows(world.model)[vertices]
    if of_inputs:
        hf: Any = world.model.hf
        embedded = hf.get_input_embeddings()(vertices.to(world.model.device)).detach().float().cpu()
    rows: list[tuple[object, ...]] = []
    for start in range(0, len(mazes), ROWS_AT_ONCE):
        some = mazes[start : start + ROWS_AT_ONCE]
        passed = _thinking(world, task, some)
        for row, maze in enumerate(some):
            query = _id(world, str(start + row))
            verdict = float(right[start + row])
            rows.append((query, "correct", "none", task.n_thoughts, "none", verdict, 1))
            found = _of_maze(embedded, task, maze, passed, row, nested)
            rows += [(query, *each) for each in found]
    columns = ["query", "measure", "read_at", "thought", "vertices", "value"]
    columns += ["n_items"] if nested else []
    frame = pd.DataFrame([each[: len(columns)] for each in rows], columns=columns)
    frame = frame.assign(world=world.name, seed=world.seed)
    details = pd.DataFrame(
        {
            "query": _id(world, str(number)),
            "world": world.name,
            "seed": world.seed,
            "prompt": " ".join(each.prompt),
            "answer": each.answer[0],
            "correct": right[number],
        }
        for number, each in enumerate(written)
    )
    return {"frame": frame[["world", "seed", *columns]], "details": details}


@torch.no_grad()
def _thinking(world: World, task: GraphReachability, mazes: Sequence[Maze]) -> Thinking:
    """The states and the attention of the last block, on the CPU."""
    model = world.model
    vocabulary = model.tokenizer.get_vocab()
    texts = [task.example(maze, task.depth).prompt for maze in mazes]
    ids = torch.tensor([[vocabulary[word] for word in text] for text in texts])
    with _eager(model), evaluating(model.hf):
        passed = think(model, ids.to(model.device), thought_of(task, model), attention=True)
    last = passed.attention[-1].sum(dim=1)  # over heads
    return Thinking(passed.logits.cpu(), passed.states.float().cpu(), (last.float().cpu(),))


@interrupt_safe
def _eager(model: LanguageModel) -> Iterator[None]:
    """Let the model keep attention weights while the context is open."""
    before = model.config._attn_implementation
    model.config._attn_implementation = "eager"
    try:
        yield
    finally:
        model.config._attn_implementation = before


def _of_maze(
    embedded: Tensor,
    task: GraphReachability,
    maze: Maze,
    passed: Thinking,
    row: int,
    nested: bool,
) -> Iterator[tuple[str, str, int, str, float, int]]:
    """Rows of one graph: measure, read_at, thought, vertices, value, how many it is the mean of."""
    steps = reachable(maze.edges, maze.way[0])
    first = len(maze.prompt)
    to_tokens = passed.attention[0][row, :, : 3 * len(maze.edges)]
    to_edges = to_tokens.reshape(-1, len(maze.edges), 3).sum(dim=-1)
    for thought in range(1, task.n_thoughts + 1):
        kinds = [_kind(steps.get(each), each, maze, thought) for each in task.vertices]
        # A step goes along edges out of what was reached so far.
        following = maze.way[thought - 1 : thought + 1]
        at = {each: _kind(steps.get(each), each, maze, thought - 1) for each in task.vertices}
        out_of = [
            "frontier" if at[u] == "optimal" and (u, v) != following else at[u]
            for u, v in maze.edges
        ]
        for read_at, before in READ_AT.items():
            place = first + thought - 1 - before
            products = embedded @ passed.states[row, place]
            for measure, values, own in (
                ("product", products, kinds),
                ("attention", to_edges[place], out_of),
            ):
                for kind, value, n in _means(values, own, nested):
                    yield measure, read_at, thought, kind, value, n


def _kind(step: int | None, vertex: str, maze: Maze, thought: int) -> str:
    """Where a vertex stands, that takes so many steps from the root, or none does."""
    if step is None or step > thought:
        return "unreachable"
    if step < thought:
        return "reachable"
    return "optimal" if maze.way[thought] == vertex else "frontier"


def _means(values: Tensor, kinds: Sequence[str], nested: bool) -> Iterator[tuple[str, float, int]]:
    """The mean of each kind that there is, and of how many."""
    found: Mapping[str, list[float]] = {kind: [] for kind in KINDS}
    for value, kind in zip(values.tolist(), kinds, strict=True):
        for each in INSIDE.get(kind, (kind,)) if nested else (kind,):
            found[each].append(value)
    for kind, own in found.items():
        if own:
            yield kind, sum(own) / len(own), len(own)
