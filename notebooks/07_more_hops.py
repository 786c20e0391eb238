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
# # Three hops and four
#
# "The capital of the country of birth of the author of Nausea is": the model must find Jean-Paul Sartre,
# then France, then Paris. Does it find them one after the other, layer by layer? *Layer-Order Inversion*
# (Liu et al. 2026) says no: a later entity is often decodable first, the oftener the more hops there are.
# Here a chain is asked in all its parts, its entities are looked for in every layer, beside those of
# another query, and the same is done in a small world whose steps are known.
#
# For your own model: `papermill 07_more_hops.ipynb mine.ipynb -p model_name my/model -p limit 200`; the text
# speaks of the run that is shown.

# %% tags=["parameters"]
model_name = "smollm2-135m"
limit = 24  # chains that are asked

# %%
import hopscope as hs

model = hs.load_model(model_name)
chains = hs.load_queries("world-three-hops").sample(limit, seed=1)
chains

# %% [markdown]
# ## A chain and its parts
#
# Entities are called e1 to e4, relations r1 to r3. A prompt can ask all hops, each hop, and each longer
# part; a shortcut leaves out a relation, or an entity with all that comes before it.

# %%
query = chains[0]
print(" → ".join(query.labels))
for form in query.forms:
    print(f"{form:11} {query.compose(form)[0]}")

# %% [markdown]
# One of your own is made from names and noun phrases; `hs.load_queries` reads tables of them, and MuSiQue's
# decompositions, which are then asked without their documents.

# %%
imagine = hs.MultiHopQuery(
    "imagine",
    ("Imagine", "John Lennon", "Yoko Ono", "Japan"),
    ("The performer of {}", "The spouse of {}", "The home country of {}"),
)
imagine.compose()[0]

# %% [markdown]
# ## Which parts are right?
#
# *incorrect* are chains of which every single hop is right and the whole is wrong, without a shortcut.

# %%
graded = hs.grade(model, chains)
graded.plot();

# %% [markdown]
# ## In which layer is each entity decoded?
#
# An entity counts as decoded where its first token is among the ten likeliest of the logit lens. Grey are
# the entities of another query. At the end of the prompt:

# %%
order = hs.layer_order(model, chains)
order.plot();

# %%
inversions = order.inversions()
inversions[(inversions["position"] == order.end) & (inversions["earlier"] == "any")].round(2)

# %% [markdown]
# Only queries in which two entities are decoded at all can tell. What the control adds: entities of another
# query, which have nothing to do with the prompt, can be "inverted", too.
#
# Where the templates end in their argument, as here, all phrases end at one token: t1 and t2 are the last
# token of e1. Each bridge can be looked for there, too (`order.decoded()` has all positions).
#
# ## A world where the truth is known
#
# A small model, trained on chains of three random facts, must solve them in order: e2 at the first
# relation's token (t1), e3 at the second's, e4 at the third's. Each entity is looked for where it is due.

# %%
world = hs.load_world("three-hop-looped")
known = world.queries().sample(100, seed=0)
in_world = hs.layer_order(world.model, known, rank=0)
in_world.plot(position="own hop");

# %% [markdown]
# Two blocks run three times. Blocking attention from one relation to the one before shows when each hop
# hands over, and that none is skipped: t3 → t1 and t3 → e1 change nothing.

# %%
blocked = hs.knockout(world.model, known[:40], window=0, max_new_tokens=1)
blocked.plot();

# %% [markdown]
# ## Every analysis of two hops
#
# `as_two_hop` divides a chain at a bridge: all before it is the first hop, all after it the second. So
# whatever takes two hops takes chains.

# %%
at_e3 = chains.as_two_hop("e3")
print(at_e3[0].first_hop(), at_e3[0].e2_label)
patched = hs.back_patch(
    model, at_e3[:4], positions=["t1"], cells=[(20, 5), (25, 5), (25, 10)], max_new_tokens=5
)
patched.success_rate().round(2)

# %% [markdown]
# ## What to make of it
#
# In the world the order is that of the hops. In SmolLM2-135M few entities can be decoded at the end of the
# prompt, and two dozen chains cannot tell how often the order is inverted beyond another query's; the
# intervals say how often it may be. More chains, in a shell:
# `hopscope layer-order --queries world-three-hops --subset all --limit 400 -o runs/order`, and the figure of
# two, three and four hops: `hopscope figures more_hops`.
