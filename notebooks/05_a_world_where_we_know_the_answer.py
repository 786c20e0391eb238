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
# # Do the instruments read right where the truth is known?
#
# Of a large model nobody can say how it composes two hops, so nobody can say whether back-patching,
# knock-out and the logit lens tell the truth about it. Here are two small models that were trained on
# the same atomic facts, `h r -> b`. One has learned to compose them, the other has memorised
# compositions. What do the instruments say?
#
# For worlds that you have trained: `papermill 05_a_world_where_we_know_the_answer.ipynb mine.ipynb -p
# composer_name my/world`; the
# text speaks of the run that is shown.

# %% tags=["parameters"]
composer_name = "two-hop-looped"
memoriser_name = "two-hop-memoriser"

# %%
import pandas as pd

import hopscope as hs

composer = hs.load_world(composer_name)
memoriser = hs.load_world(memoriser_name)
pd.DataFrame({world.name: world.accuracy for world in (composer, memoriser)}).round(2)

# %% [markdown]
# Both know all atoms and all compositions of their training. Held-out compositions
# (`in_distribution`) the composer answers and the memoriser does not. Some atoms were only ever seen
# alone: with one of them as the first hop (`first_hop_ood`) the composer is right for about two in
# three, as the second hop (`second_hop_ood`) for few.
#
# A world's questions are ordinary two-hop queries, and its model is an ordinary GPT-2.

# %%
late = composer.queries("first_hop_ood")
print(late[0].two_hop(), "->", late[0].e2_label, "->", late[0].e3_label)
graded = hs.grade(composer.model, late, progress=False)
wrong = graded.incorrect()
graded.summary().round(2)

# %% [markdown]
# ## Back-patching
#
# These are the questions that *Hopping Too Late* is about: each hop alone is right, the composition is
# wrong. If the bridge only comes too late, an earlier look at it must repair the answer.

# %%
patched = hs.back_patch(composer.model, wrong, positions=("t1",), progress=False)
patched.plot("t1");

# %%
patched.success_rate().round(2)

# %%
patched.best_cell()  # chosen on one half of the questions, scored on the other

# %% [markdown]
# A single cell, the state after the last block put in place of that after the second, repairs nineteen
# in twenty, and some cell every one; another question's state one in ten. Where it is the second hop that
# was never composed, a look at the bridge in time helps few, though more than the controls do:

# %%
other = hs.grade(composer.model, composer.queries("second_hop_ood"), progress=False).incorrect()
hs.back_patch(composer.model, other.sample(60), positions=("t1",), progress=False).success_rate().round(2)

# %% [markdown]
# And the memoriser, which has nothing to compose with:

# %%
forgot = hs.grade(memoriser.model, memoriser.queries("first_hop_ood"), progress=False).incorrect()
hs.back_patch(memoriser.model, forgot.sample(60), positions=("t1",), progress=False).success_rate().round(2)

# %% [markdown]
# No more than the controls. "Some cell repairs it" alone would have said that one in eight of its
# compositions came too late.
#
# ## Where the edge is
#
# The composer must hand the bridge from the first relation (t1) to the second (t2). Where does cutting
# that edge bite?

# %%
known = composer.queries("in_distribution").sample(80)
cut = hs.knockout(composer.model, known, ["t2->t1", "t2->e1"], controls=(), window=0, progress=False)
cut.plot();

# %% [markdown]
# In the third block, and nowhere before: the bridge is resolved in the first pass through the two
# blocks, and used in the second. The edge to the entity itself does not matter.
#
# ## When it emerges
#
# A smaller world trains in under a minute. With the weights of some steps kept, any analysis becomes a
# film.

# %%
import tempfile
from pathlib import Path

from hopscope.trainer import Schedule
from hopscope.worlds import Recipe
from hopscope.worlds.blocks import Shape
from hopscope.worlds.two_hop_facts import TwoHopFacts

small = Recipe(
    "a small composer",
    TwoHopFacts(n_entities=25, n_relations=8, held_out=200),
    Shape(n_blocks=2, n_loops=2),
    Schedule(steps=900),
)
steps = [0, 150, 300, 450, 600, 900]
folder = Path(tempfile.mkdtemp()) / "small"
hs.train_world("small", recipe=small, out=folder, snapshots=steps, progress=False)


# %%
def patched_at(world):
    some = world.queries("first_hop_ood").sample(40)
    return hs.back_patch(
        world.model, some, positions=("t1",), controls=(), criterion="first_token", progress=False
    )


emergence = hs.over_checkpoints(folder, patched_at, progress=False)
emergence.plot_film("hit", "target_layer", "source_layer");

# %% [markdown]
# At first no patch helps, for there are no facts to compose. Then (step 300) the composition is there
# but the bridge comes too late, so that a later state at the first layer brings most answers; in the end
# most of them are right whatever is patched, since back-patching is no longer needed.
#
# ## So do they?
#
# Where the model composes, back-patching repairs what came too late, the knock-out bites where the
# bridge is used, and the controls stay low. Where it has memorised, none of this shows.
# What an oracle over cells repairs says little without them. Three seeds of both, in one picture:
# `hopscope figures world_circuit`.
