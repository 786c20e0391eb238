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
# # Where is the bridge?
#
# *"The capital of the country containing Chattanooga is"*: to answer, the model has to know, on its
# way, which state or country it is speaking of. This notebook looks for that **bridge entity** in
# five ways that do not share their weaknesses: the model's own description of its states, the
# logit lens on each sublayer, blocked attention, states swapped between questions, and causal
# tracing. Every one of them comes with a chance level.
#
# For your own model: `papermill 02_where_is_the_bridge.ipynb mine.ipynb -p model_name my/model
# -y 'sources: []'`; the
# text speaks of the run that is shown.

# %% tags=["parameters"]
model_name = "smollm2-135m"
queries_name = "world"
sources = ["city", "us-city"]  # types of e1 that are asked about; [] for all
relations = ["capital", "largest-city"]  # second relations that are asked for; [] for all
limit = 120  # queries that are graded
n_right = 6  # right compositions that are looked into

# %%
import hopscope as hs

model = hs.load_model(model_name)
cities = hs.load_queries(queries_name).filter(
    lambda q: (not sources or q.e1_type in sources) and (not relations or q.r2 in relations)
)
graded = hs.grade(model, cities.sample(limit, seed=0))
right = graded.correct()[:n_right]
right

# %% [markdown]
# ## Described by the model itself
#
# A state at `t1` (the end of the first-hop phrase) is put in the place of `x` in a prompt that lists
# entities with descriptions, and the model goes on. If the text names the bridge, the state held
# something of it. How often it names *another* query's bridge is the chance level.

# %%
layers = range(0, model.n_layers, 5)
described = hs.describe(model, right, source_layers=layers, target_layers=layers)
described.described().round(2)

# %%
described.plot("e2", "t1");

# %%
hits = described.frame[described.frame["e2"].astype(bool)]
hits[["query", "position", "source_layer", "target_layer", "generation"]].head(8)

# %% [markdown]
# ## Read off attention and MLP
#
# What a sublayer writes goes through the final norm, once, and the unembedding. Rank 0 is the
# paper's criterion; a small model rarely reaches it, so look at the ten likeliest tokens, too,
# beside those of another query's bridge.

# %%
projected = hs.project(model, right)
table = projected.summary(rank=9)
table[table["target"].isin(["e2", "e2_other", "prediction"])].round(2)

# %% [markdown]
# ## Blocked on its way
#
# If the bridge is made at `t1`, its information must travel to the last token `t2`, and only
# attention can carry it. So we take the edge t2 → t1 away in windows of seven layers.

# %%
knocked = hs.knockout(model, right, edges=["t2->t1", "t2->r1"])
knocked.plot();

# %%
knocked.above_chance().round(2)

# %% [markdown]
# ## Swapped between questions
#
# The same question about another source entity has another bridge and another answer. Put one of
# its states in: where does the answer follow? Up to some layer everything is in `t1`; from there on
# it is in `t2`. The attention output between the two is where it moves.

# %%
swapped = hs.activation_patch(model, right)
swapped.plot();

# %%
moves = swapped.summary().query("control == 'none' and site == 'attn_out' and position == 't2'")
moves.nlargest(3, "recovery").round(2)

# %% [markdown]
# And which heads move it:

# %%
heads = hs.activation_patch(model, right[:3], positions=["t2"], sites=["z"], controls=[])
heads.plot_heads("t2");

# %% [markdown]
# ## Noised and restored
#
# Noise on the source entity's embeddings spoils the answer. One clean state put back shows how much
# runs through there.

# %%
traced = hs.trace(model, right[:4], draws=2)
traced.total_effect().round(2)

# %%
traced.plot();

# %% [markdown]
# ## In the paper's order?
#
# The first layers of all stages on one axis. The means may stand in the paper's order while single
# queries break it, so both are told.

# %%
from hopscope.experiments import combine

knocked_t1 = hs.knockout(model, right, edges=["t2->t1"], progress=False)
stages = combine(described, knocked_t1, projected)
stages.plot();

# %%
stages.broken().round(2)

# %% [markdown]
# `hopscope study -m smollm2-135m --limit 60 -o study` runs all of this, and writes figures, tables
# and a page that says in words what was found.
