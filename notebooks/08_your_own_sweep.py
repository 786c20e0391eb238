# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A sweep of your own
#
# *"The capital of the country containing Milan is"*: at `t1`, the end of *"the country containing
# Milan"*, the model has read the whole first hop. At `t2`, the last token, it has to answer. Between the
# two, attention carries over what `t1` has found. **What if we carried it over by hand**, and put the
# state of `t1` in the place of the state of `t2`?
#
# `hs.back_patch(positions=["t1->t2"])` asks whether the answer is then *said*, from later into earlier
# layers. Here we ask by how much it becomes *more or less probable*, for every pair of layers, and build
# that from the parts of which the analyses are built: edits (`hs.Patch`), many of them at once
# (`hs.sweep`), and what is read of each (`hs.ReadOut`). Then comes what makes a number worth quoting: a
# cell that is checked by a plain hook, two controls, and an interval.
#
# If you want to put a state into *another prompt*, look at `hs.cross_patch` first: it has eight such
# routes with their controls, and `hs.Route` makes more.
#
# For your own model: `papermill 08_your_own_sweep.ipynb mine.ipynb -p model_name my/model -p n_queries 100
# -y 'sources: []'`; the text speaks of the run that is shown.

# %% tags=["parameters"]
model_name = "smollm2-135m"
queries_name = "world"
sources = ["city"]  # types of e1 that are asked about; [] for all
relations = ["capital", "currency"]  # second relations that are asked for; [] for all
n_queries = 32
layer_step = 5  # between the layers that are read and written; 1 for all

# %%
import time

import pandas as pd
import torch
from matplotlib import pyplot as plt

import hopscope as hs
from hopscope.experiments.randomness import random_like
from hopscope.prompting.query_prompts import QueryPrompts
from hopscope.statistics import intervals, paired_intervals

model = hs.load_model(model_name)
queries = hs.load_queries(queries_name).filter(
    lambda q: (not sources or q.e1_type in sources) and (not relations or q.r2 in relations)
)
prompts = QueryPrompts.of(model, queries)
queries = queries.filter(prompts.answer_tokens).sample(n_queries, seed=0)
queries

# %% [markdown]
# `QueryPrompts` is a query set as one model reads it. It knows the tokens of each prompt, where `t1` and
# `t2` are, and by which next tokens the answer is told from the bridge. Queries of which no first token
# tells it are left out above.

# %%
query = queries[0]
prompt = prompts.prompt(query)
t1, t2 = prompt.position("t1"), prompt.position("t2")
print(query.two_hop(), "→", query.e2_label, "→", query.e3_label)
print("t1:", repr(model.decode([prompt.ids[t1]])), "  t2:", repr(model.decode([prompt.ids[t2]])))
print("the answer begins with:", [model.decode([each]) for each in prompts.answer_tokens(query)])

# %% [markdown]
# ## One edit, one cell, one sweep
#
# A **clean run** keeps the residual stream of every token after every block. A **patch** replaces one
# state of a later run by a vector of ours: here after block 8, at `t2`, by the state that `t1` had after
# block 12. A **cell** is a list of edits that are made together; the empty list is the unedited prompt.
# A **sweep** runs any number of cells of one prompt and reads the same of each.

# %%
clean = prompts.clean(prompt)
patch = hs.Patch(layer=8, position=t2, vector=clean.state(t1)[12])
read = hs.ReadOut(answer_tokens=prompts.answer_tokens(query), top_k=3)
outputs = hs.sweep(model, prompt.ids, [[], [patch]], read, clean=clean)
pd.DataFrame(
    {
        "cell": ["unedited", str(patch)],
        "log P(answer)": outputs.logprob.numpy().round(2),
        "rank of answer": outputs.rank.numpy(),
        "likeliest": [[model.decode([token]) for token in row] for row in outputs.top_tokens],
    }
)

# %% [markdown]
# ## Is that number right?
#
# A sweep shares work between its cells. What it gives is still what a plain PyTorch hook gives, one
# forward pass a cell, to rounding. Do not take our word for it: it takes ten lines, and the same ten
# lines check any sweep of yours.


# %%
def by_hook(patch: hs.Patch) -> float:
    """The log probability of the answer in one hooked forward pass over the whole prompt."""

    def put(block: torch.nn.Module, inputs: object, output: object) -> None:
        states = output[0] if isinstance(output, tuple) else output
        states[0, patch.position] = patch.vector

    hook = model.blocks[patch.layer].register_forward_hook(put)
    try:
        with torch.no_grad():
            logits = model.hf(torch.tensor([prompt.ids], device=model.device)).logits[0, -1]
    finally:
        hook.remove()
    return logits.float().log_softmax(-1)[list(read.answer_tokens)].max().item()


hooked, swept = by_hook(patch), outputs.logprob[1].item()
assert abs(hooked - swept) < 1e-3
hooked, swept

# %% [markdown]
# ## All cells, and two controls
#
# Any vector in the place of `t2` does damage: the last token no longer knows what it was. So a number
# for `own`, the query's own `t1`, means nothing until we know what other vectors do in the same cells:
#
# - `other`: the `t1` of another query with another bridge. It is as natural a state as `own`, and says
#   the wrong thing.
# - `random`: a Gaussian vector with the norm of `own`.

# %%
layers = range(0, model.n_layers, layer_step)
pairs = [(source, target) for source in layers for target in layers]


def partner(query: hs.TwoHopQuery) -> hs.TwoHopQuery:
    """The next query that has another bridge."""
    after = queries.queries.index(query) + 1
    ring = [*queries.queries[after:], *queries.queries[:after]]
    return next(each for each in ring if each.e2_label != query.e2_label)


def t1_states(query: hs.TwoHopQuery) -> torch.Tensor:
    """The residual stream at t1 after each block, shape (layer, d_model)."""
    prompt = prompts.prompt(query)
    return prompts.clean(prompt).state(prompt.position("t1"))


def hand_over(query: hs.TwoHopQuery) -> pd.DataFrame:
    """Put each state of t1, and each control, in the place of each state of t2."""
    prompt, own = prompts.prompt(query), t1_states(query)
    vectors = {
        "own": own,
        "other": t1_states(partner(query)),
        "random": random_like(own, 0, query.id),  # the same whenever it is drawn
    }
    t2 = prompt.position("t2")
    keys = [(vector, *pair) for vector in vectors for pair in pairs]
    cells = [[hs.Patch(target, t2, vectors[v][source])] for v, source, target in keys]
    read = hs.ReadOut(answer_tokens=prompts.answer_tokens(query))
    logprob = hs.sweep(model, prompt.ids, [[], *cells], read).logprob
    table = pd.DataFrame(keys, columns=["vector", "source_layer", "target_layer"])
    return table.assign(query=query.id, change=(logprob[1:] - logprob[0]).numpy())


# %% [markdown]
# What does it cost? Every cell is a forward pass of its own by name, and a part of one by work. One
# query tells:

# %%
started = time.perf_counter()
first = hand_over(queries[0])
seconds = time.perf_counter() - started
print(
    f"{len(first)} cells in {seconds:.1f} s; {n_queries} queries take about {n_queries * seconds:.0f} s"
)

# %% [markdown]
# The cells share the tokens before the first edited one, and those that are written at the same layer
# share the blocks below it. Early target layers cost most. If it is too long, take fewer queries or a
# larger `layer_step` before you take fewer controls.

# %%
frame = pd.concat([hand_over(query) for query in queries], ignore_index=True)
frame.groupby("vector", sort=False)["change"].describe().round(2)

# %% [markdown]
# `change` is in nats: −3 means that the answer has become 20 times less probable. All three vectors
# harm: the last token has lost what it was. `own` harms least.
#
# ## A statistic, with an interval
#
# There are as many differences to choose from as there are cells, and the best of 36 looks good
# whatever the vector. So the statistic is fixed before anybody looks at a cell: for each query the
# mean over **all** cells. Queries are what was sampled, so the interval is over queries; and `own` and
# its control were measured on the same queries, so it is one of paired differences. (The number of queries was
# not fixed: a first run, of 16 and every fourth layer, left own − other open, 0.45 nats [−0.08, 0.97]; this one
# has 32. Data that are added after a look make an interval too sure.)

# %%
per_query = frame.groupby(["query", "vector"])["change"].mean().unstack()
compared = pd.concat(
    paired_intervals(per_query.assign(control=control), ["control"], control, "own")
    for control in ("other", "random")
)
compared.round(2)

# %% [markdown]
# If an interval holds zero, stop here: more queries, or nothing to see. Neither does: what is handed over
# from `t1` is worth half a nat to the answer, which neither another query's `t1` nor a random vector
# has. It is about *this* question. It is also little beside what the last token loses: `t1` is no
# stand-in for `t2`.
#
# Mind what this does not say. `own` and `other` differ in all that their prompts differ in, the source
# entity above all: that the *bridge* is what helps would take a partner with another source entity and
# the same bridge. You have all you need to write that control: it is one line in `partner`.
#
# ## Where?
#
# Cells are for looking, after the statistic has spoken.

# %%
change = frame.pivot(index=["query", "source_layer", "target_layer"], columns="vector")["change"]
gain = (change["own"] - change["other"]).groupby(level=["source_layer", "target_layer"]).mean()
lines = intervals(
    frame.groupby(["query", "vector", "source_layer"], as_index=False)["change"].mean(),
    ["vector", "source_layer"],
    "change",
    "mean",
)

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
grid = gain.unstack("source_layer")  # target layers are rows
most = gain.abs().max()
image = left.imshow(grid, origin="lower", cmap="RdBu", vmin=-most, vmax=most)
left.set_xticks(range(len(layers)), list(layers))
left.set_yticks(range(len(layers)), list(layers))
left.set(xlabel="source layer (t1, read)", ylabel="target layer (t2, written)", title="own − other")
figure.colorbar(image, ax=left, label="nats")
for (vector, rows), color in zip(
    lines.groupby("vector", sort=False), ["C3", "C0", "0.5"], strict=True
):
    right.plot(rows["source_layer"], rows["mean"], color=color, label=vector)
    right.errorbar(
        rows["source_layer"],
        rows["mean"],
        [rows["mean"] - rows["low"], rows["high"] - rows["mean"]],
        fmt="none",
        color=color,
        lw=0.8,
    )
right.set(xlabel="source layer (t1, read)", ylabel="change of log P(answer), nats")
right.set_title("mean over target layers, 95 % intervals")
right.legend(frameon=False);

# %% [markdown]
# ## Keep it
#
# A figure with its numbers beside it, and the table of all cells. What made them is part of the result.

# %%
import tempfile
from pathlib import Path

from hopscope.plots.figures import save_figure

folder = Path(tempfile.mkdtemp())
save_figure(figure, lines, folder, "hand_over")
frame.assign(model=model.name, layer_step=layer_step, seed=0).to_parquet(folder / "cells.parquet")
sorted(path.name for path in folder.iterdir())

# %% [markdown]
# When a sweep has proved itself, make an analysis of it: `@analysis` gives it a command with help and
# options, runs that go on after a kill, a step of `hopscope study` and a section of its report.
# *Write your own analysis* (`docs/write_your_own.md`) does that with one much like this, on one page.
