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
# # Probes in your own code
#
# `hopscope.probes` takes tensors and gives tensors. It needs torch alone: no model code, no
# transformers. So the states may come from anywhere; here from hopscope's `capture`.

# %%
import tempfile
from collections import Counter
from pathlib import Path

import torch

import hopscope as hs
from hopscope.probes import LinearProbe, LogitLens, TunedLens, cross_validate, selectivity

model = hs.load_model("smollm2-135m")
queries = hs.load_queries("world")
countries = ("Australia", "Canada", "France", "Germany", "Italy", "United States")
asked = queries.filter(lambda q: q.e2_label in countries and q.e1_type == "city")
rows = Counter(q.e1_label for q in asked)
asked = asked.filter(lambda q: rows[q.e1_label] > 1)  # several questions about each city
asked

# %%
acts = hs.capture(model, asked.prompts(), sites=["resid_post"], positions=["t1", "t2"])
t1, t2 = acts["resid_post"].unbind(1)  # each (query, layer, d_model)
t1.shape

# %% [markdown]
# ## Logit lens
#
# A model's final norm and unembedding, applied to any state of its residual stream.

# %%
lens = LogitLens(model.final_norm, model.unembedding)
bridge = torch.tensor([model.first_tokens([q.e2_label])[0] for q in asked])
rank = lens.rank(t1, bridge[:, None]).float()  # (query, layer)
rank.median(dim=0).values

# %% [markdown]
# ## Linear probe
#
# Can the bridge be read off `t1` by a linear map, and from which layer on? Held-out accuracy alone
# says little: a probe that knows the *source* entity by heart scores as high. So, first, folds that
# keep the questions about one entity together; second, a control task whose labels are drawn at
# random for each entity (Hewitt and Liang 2019).

# %%
names = sorted({q.e2_label for q in asked})
sources = sorted({q.e1_label for q in asked})
labels = torch.tensor([names.index(q.e2_label) for q in asked])
entities = torch.tensor([sources.index(q.e1_label) for q in asked])
every = slice(0, None, 5)

new = cross_validate(t1[:, every], labels, groups=entities, folds=3, l2=100.0).mean(dim=0)
new

# %%
known = selectivity(t1[:, every], labels, entities, folds=3, l2=100.0)
known.accuracy, known.control_accuracy, known.selectivity

# %%
probe = LinearProbe(len(names), classes=names, l2=100.0).fit(t1[:, every], labels)
probe.score(t1[:, every], labels)

# %%
path = probe.save(Path(tempfile.mkdtemp()) / "bridge_probe.safetensors")
again = LinearProbe.load(path)
assert torch.equal(again.predict(t1[:, every]), probe.predict(t1[:, every]))
again.classes

# %% [markdown]
# ## Tuned lens
#
# A learned affine map before the norm makes up for what later layers would still change. The one
# that comes with hopscope was trained on SmolLM2-135M; its card says how, and how good it is.

# %%
from hopscope.probes import shipped

tuned = TunedLens.load(shipped("smollm2-135m.tuned_lens"), model.final_norm, model.unembedding)
says = lens(t2[:, -1]).argmax(-1)  # what the model says next
torch.stack([lens.score(t2, says), tuned.score(t2, says)], dim=1)[::5]  # by layer: logit, tuned
