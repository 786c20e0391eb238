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
#
# For your own model: `papermill 01_back_patching.ipynb mine.ipynb -p model_name my/model -p limit 1000
# -y 'sources: []'`; the
# text speaks of the run that is shown.

# %% tags=["parameters"]
model_name = "smollm2-135m"
queries_name = "world"
sources = ["city", "landmark", "us-city"]  # types of e1 that are asked about; [] for all
relations = ["capital", "currency"]  # second relations that are asked for; [] for all
limit = 120  # queries that are graded
n_patched = 8  # failures that are back-patched

# %%
import hopscope as hs

model = hs.load_model(model_name)
model

# %% [markdown]
# ## Queries
#
# `world` holds real two-hop queries with aliases for every entity. Each prompt comes with five
# demonstrations that never contain the query's own source, bridge or answer.

# %%
queries = hs.load_queries(queries_name).filter(
    lambda q: (not sources or q.e1_type in sources) and (not relations or q.r2 in relations)
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
graded = hs.grade(model, queries.sample(limit, seed=0))
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
# quick, we take every third layer here, and few queries (`n_patched`); leave `cells` out for all cells.

# %%
layers = range(0, model.n_layers, 3)
cells = [(source, target) for source in layers for target in layers if source > target]
result = hs.back_patch(model, wrong[:n_patched], cells=cells)
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
acts = hs.capture(model, wrong[:n_patched].prompts(), sites=("resid_post", "attn_out"), positions=("t1", "t2"))
acts
