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
# # One query: where does a two-hop question go wrong?
#
# *"The spouse of the performer of Imagine is"* takes two hops: the model must find John Lennon, then
# Yoko Ono. Here one query is looked at from all sides: what the model says to each hop, what its states
# would say in every layer, and what it says when a later state is put back into an earlier layer.
#
# Run it for your own model: `papermill 00_one_query.ipynb mine.ipynb -p model_name my/model`.

# %% tags=["parameters"]
model_name = "smollm2-135m"
queries_name = "world"
text = "The capital of [the country containing [Leeds]] is"
bridge, answer = "the United Kingdom | UK | Great Britain | England", "London"

# %%
import hopscope as hs

model = hs.load_model(model_name)
queries = hs.load_queries(queries_name)

# %% [markdown]
# ## Explore
#
# In JupyterLab the cell below is a small workbench. Type a query with its first hop and its entity in
# brackets, or choose one, and press Enter. An entity may have several names, with | between; names that
# you leave empty are what the model itself says to the single hops. From code the same is `explorer.ask(text, bridge, answer)`.

# %%
explorer = hs.explore(model, queries)
result = explorer.ask(text, bridge, answer)
explorer

# %% [markdown]
# Both hops and the composition, as the model answers them behind five demonstrations:

# %%
import pandas as pd

pd.DataFrame(explorer.answers)

# %% [markdown]
# ## Back-patching this query
#
# Each cell copies the state after a later block (the source) to the same token after an earlier block
# (the target) and lets the model answer. Point at a cell to read what it says, with the rank and the
# probability of bridge and answer; choose the position, and the random vector beside it.

# %%
result

# %%
best = result.frame.sort_values("answer_logprob", ascending=False)
columns = ["position", "source_layer", "target_layer", "control", "answer_rank", "bridge_rank"]
best[[*columns, "generation"]].head(6)

# %% [markdown]
# ## A mask, painted
#
# Questions over documents have their answer in the prompt, and who sees whom decides whether it is found.
# Paint on the mask below and ask under it; `painter.mask` is a mask like any other.

# %%
painter = hs.paint_mask(model, hs.load_questions("world-docs", distractors=1))
painter.ask()
painter

# %% [markdown]
# ## So where does it go wrong?

# %%
said = pd.DataFrame(explorer.answers).set_index("form")
own = result.frame[result.frame["control"] == "none"]
random = result.frame[result.frame["control"] == "random"]
hops = ["right" if said.loc[form, "correct"] else "wrong" for form in ("first_hop", "second_hop")]
print(f"First hop {hops[0]}, second hop {hops[1]}; the composition is "
      f"{'right' if said.loc['two_hop', 'correct'] else 'wrong'}: “{said.loc['two_hop', 'says']}”.")
print(f"With its own later state the answer is said in {own['hit'].sum()} of {len(own)} cells, with a "
      f"random vector in {random['hit'].sum()} of {len(random)}.")

# %% [markdown]
# One query proves nothing: a cell that answers may do so by chance, and a wrong one may be a hop that is
# not known. The next notebook asks many, with controls: [01_back_patching](01_back_patching.ipynb).
