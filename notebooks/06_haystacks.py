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
# # What does a retriever put into the haystack?
#
# Benchmarks of long contexts hide a few gold documents among many others. Which others? A real
# retriever brings passages that look like an answer, and brings them in its own order (HaystackCraft,
# *Haystack Engineering* 2025). Here distractors come from BM25, from personalised PageRank over links
# and, as a control, at random, always the same number of tokens of them; and then we look at what the
# nearest one does inside the model.
#
# For your own model: `papermill 06_haystacks.ipynb mine.ipynb -p model_name my/model -p limit 100`; the
# text speaks of the run that is shown.

# %% tags=["parameters"]
model_name = "smollm2-135m"
questions_name = "world-docs-shared"
limit = 6  # questions that are asked
tokens = 64  # of distractors, in each prompt

# %%
import hopscope as hs

model = hs.load_model(model_name)
questions = hs.load_questions(questions_name).sample(limit, seed=0)

# %% [markdown]
# ## A haystack
#
# `hs.haystack` keeps the gold documents and replaces the others by what the retriever finds for the
# question. Passages that name the answer are never taken. The documents stand in the order of their
# scores.

# %%
found = hs.haystack(questions, "bm25", size=6)
question = found[0]
print(question.question, "->", question.answer)
for index, document in enumerate(question.documents):
    hop = f"hop {question.gold.index(index) + 1}" if index in question.gold else ""
    print(f"  {question.extra['scores'][index]:5.2f}  {document.text:60} {hop}")

# %% [markdown]
# PageRank walks along links, in both directions, from what BM25 found: from "A is in B" to other facts
# about A and B. It scores what hangs together, not what has the same words. The score of a passage is
# how often the walk is there.

# %%
walked = hs.haystack(questions, "ppr", size=6)[0]
for index, document in enumerate(walked.documents):
    hop = f"hop {walked.gold.index(index) + 1}" if index in walked.gold else ""
    print(f"  {walked.extra['scores'][index]:5.2f}  {document.text:60} {hop}")

# %% [markdown]
# ## The same number of tokens from each
#
# All prompts of a question share their demonstrations and have as many tokens of distractors. Beside
# them stand the gold documents alone, and a mask under which no document sees another and no position
# tells their order.

# %%
result = hs.compare_retrievers(
    model, questions, ["bm25", "ppr", "random"], ["retrieved", "forward_0", "shuffle_0"], tokens=tokens
)
result.accuracy().round(2)

# %% [markdown]
# Few answers of so small a model are right, so the log-probability of the answer tells more. Against
# random distractors, paired by question:

# %%
result.compare(measure="answer_logprob").round(2)

# %% [markdown]
# A retriever also decides where the gold documents stand, 0 first and 1 last. So `retrieved` compares
# places and distractors together; in `forward_0` the gold documents of all haystacks come last, and
# only distractors differ.

# %%
result.gold_places().round(2)

# %% [markdown]
# ## Does the nearest distractor take attention?
#
# In shuffled order the rank of a distractor says nothing of its place.

# %%
result.attention_taken().query("order == 'shuffle_0'").round(2)

# %%
from hopscope.experiments.documents import plots

shuffled = result.attention_by_rank().query("order == 'shuffle_0' and mask == 'causal'")
plots.rank_lines(shuffled);

# %% [markdown]
# ## And does it change the answer?
#
# Without the attention from the question to it, beside the same cut to another distractor of its length.

# %%
result.cut_gains().round(2)

# %% [markdown]
# Layer by layer, with `hs.masked_paths`; the control (dotted) is another distractor.

# %%
paths = hs.masked_paths(
    model,
    hs.haystack(questions, "bm25", size=6)[:2],
    ["question->distractor 1", "question->gold 2"],
    order="shuffle_0",
    layers=range(1, model.n_layers, 6),
)
paths.plot(measure="answer_change");

# %% [markdown]
# ## What to make of it
#
# In the order of retrieval the answer is some four nats more probable beside distractors of BM25 or
# PageRank than beside random ones. That is no merit of the distractors: these retrievers put the first
# hop's document first and the second hop's last, next to the question, and a random order does not. With
# the gold documents in one place (`forward_0`) the difference is about zero. So a comparison of
# retrievers in their own order is one of places. Whether near distractors mislead, and whether the
# nearest takes attention that the answer would need, six questions cannot tell; the intervals say how
# large it may be. More questions, in a shell:
# `hopscope haystack --limit 200 --tokens 256 -o runs/haystack`, and with the model's own vectors
# `--retrievers bm25,dense,ppr,random`.
