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
# # Back-patching: does the second hop come too late?
#
# To answer *"The capital of the country containing the Colosseum is"* a model has to resolve the
# bridge entity (Italy), then ask the second relation of it (Rome). Biran et al. (2024) found that
# the bridge is often resolved only in layers where the knowledge of the second hop lies behind it
# already. Their remedy is a diagnosis, too: **back-patching** copies a token's state after a later
# block to the same token after an earlier block, and lets the model read on from there.
#
# Here: which queries fail although both hops are known, how many of them some back-patch repairs,
# and, what the paper does not ask, how many an *arbitrary* vector repairs in the same places.

# %%
import hopscope as hs

model = hs.load_model("smollm2-135m")
model

# %% [markdown]
# ## Queries
#
# `world` holds real two-hop queries with aliases for every entity. Each prompt comes with five
# demonstrations that never contain the query's own source, bridge or answer.

# %%
queries = hs.load_queries("world").filter(
    lambda q: q.e1_type in ("city", "landmark", "us-city") and q.r2 in ("capital", "currency")
)
queries.sample(5, seed=1)

# %%
print(queries[0].two_hop(), "→", queries[0].e2_label, "→", queries[0].e3_label)
print(queries.prompts()[0].text)

# %% [markdown]
# ## Grading
#
# A failure is a failure of *composition* only if both hops are known, and a success is one only if
# the answer does not come by a shortcut. So five prompts are asked of each query: both hops, the
# composition, the second relation of the source entity, and the composition without the source.

# %%
graded = hs.grade(model, queries.sample(120, seed=0))
graded.summary()

# %%
graded.plot();

# %%
wrong = graded.incorrect()
wrong

# %% [markdown]
# ## Back-patching
#
# `t1` is the last token of the first-hop phrase, `t2` the last token of the prompt. For each cell
# (source layer > target layer) the state is copied and ten tokens are generated greedily. To be
# quick, we take every third layer here, and eight queries; leave `cells` out for all 435 cells.

# %%
layers = range(0, model.n_layers, 3)
cells = [(source, target) for source in layers for target in layers if source > target]
result = hs.back_patch(model, wrong[:8], cells=cells)
result

# %%
result.frame.head()

# %% [markdown]
# A query counts as repaired if **any** cell has the answer. `other` patches the state of another
# query with another answer into the same cells, `random` a Gaussian vector of the same norm.

# %%
result.success_rate()

# %%
result.above_chance()

# %% [markdown]
# If the intervals of `above_chance` hold zero, then "there is a patch that works" says nothing
# about the model's hops: enough arbitrary changes do the same. Where do the hits lie?

# %%
result.plot("t1");

# %%
result.examples(5)

# %% [markdown]
# The figure that does not pick its cell after the fact: the best cell of one half of the queries,
# scored on the other half. (With eight queries its interval is wide: take more.)

# %%
result.best_cell()

# %% [markdown]
# ## Keep it
#
# A saved result carries what it was made from: weights, queries, settings, versions.

# %%
import tempfile
from pathlib import Path

path = result.save(Path(tempfile.mkdtemp()) / "back_patching")
again = hs.load_result(path)
assert again.frame.equals(result.frame)
{key: again.run["model"][key] for key in ("name", "n_layers", "dtype")}

# %% [markdown]
# ## Your own model
#
# `hs.load_model` takes a hub id, a folder, a GGUF file, or a model that you have loaded in
# transformers, TransformerLens or nnsight; everything above stays the same. States can be read
# with `hs.capture`, and edits made in your own code with `hs.edit`.

# %%
acts = hs.capture(model, wrong[:8].prompts(), sites=("resid_post", "attn_out"), positions=("t1", "t2"))
acts
