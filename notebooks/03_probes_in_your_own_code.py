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
# `hopscope.probes` takes tensors and gives tensors, or NumPy arrays. It needs torch alone: no model
# code, no transformers. So the states may come from anywhere; here from hopscope's `capture`.
#
# For your own model: `papermill 03_probes_in_your_own_code.ipynb mine.ipynb -p model_name my/model
# -p tuned_lens my/lens.safetensors`; the text speaks of the run that is shown.

# %% tags=["parameters"]
model_name = "smollm2-135m"
queries_name = "world"
bridges = ["Australia", "Canada", "France", "Germany", "Italy", "United States"]
sources = ["city"]  # types of e1 that are asked about; [] for all
tuned_lens = "smollm2-135m.tuned_lens"  # one that comes with hopscope, or a file; "" for none

# %%
import tempfile
from collections import Counter
from pathlib import Path

import torch

import hopscope as hs
from hopscope.probes import LinearProbe, LogitLens, TunedLens, cross_validate, selectivity

model = hs.load_model(model_name)
queries = hs.load_queries(queries_name)
asked = queries.filter(
    lambda q: q.e2_label in bridges and (not sources or q.e1_type in sources)
)
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
labels = [q.e2_label for q in asked]
entities = [q.e1_label for q in asked]
every = slice(0, None, 5)

new = cross_validate(t1[:, every], labels, groups=entities, folds=3, l2=100.0).mean(dim=0)
new

# %%
known = selectivity(t1[:, every], labels, entities, folds=3, l2=100.0)
known.accuracy, known.control_accuracy, known.selectivity

# %%
probe = LinearProbe(l2=100.0).fit(t1[:, every], labels)
probe.score(t1[:, every], labels)

# %% [markdown]
# Each layer is a classifier of its own. `LinearProbe` has scikit-learn's `fit`, `predict`,
# `predict_proba`, `score` and `classes_`, and takes NumPy arrays as well.

# %%
X = t1[:, 10].float().numpy()  # the states of one layer
single = LinearProbe(l2=100.0).fit(X, labels)
single.predict(X[:3]), single.predict_proba(X[:3]).round(2), single.classes_

# %%
path = probe.save(Path(tempfile.mkdtemp()) / "bridge_probe.safetensors")
again = LinearProbe.load(path)
assert (again.predict(t1[:, every]) == probe.predict(t1[:, every])).all()
again.classes_

# %% [markdown]
# ## Tuned lens
#
# A learned affine map before the norm makes up for what later layers would still change. The one
# that comes with hopscope was trained on SmolLM2-135M; its card says how, and how good it is.

# %%
from hopscope.probes import shipped

says = lens(t2[:, -1]).argmax(-1)  # what the model says next
scores = [lens.score(t2, says)]
if tuned_lens:
    file = tuned_lens if Path(tuned_lens).is_file() else shipped(tuned_lens)
    tuned = TunedLens.load(file, model.final_norm, model.unembedding)
    scores.append(tuned.score(t2, says))
torch.stack(scores, dim=1)[::5]  # by layer: logit, tuned
