"""Provides mean_states(): a text as one vector, the mean of a model's states over its tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hopscope.models.encoder_decoder import EncoderDecoder
from hopscope.models.evaluation import evaluating
from hopscope.models.language_model import LanguageModel

TOKENS_PER_BATCH = 4096


@torch.no_grad()
def mean_states(
    model: LanguageModel | EncoderDecoder, texts: Sequence[str]
) -> Float[Tensor, "text d_model"]:
    """The mean, over the tokens of each text, of the states that leave the last block and norm.

    Texts of about one length are read together; padding neither is seen nor counts.

    Args:
        model: a decoder-only model, or a T5-like one, of which the encoder reads.
        texts: the texts.

    Returns:
        float32 on the CPU, shape (text, d_model).

    Raises:
        UsageError: if a text has no token, or does not fit into the context.
    """
    reader = model.encoder if isinstance(model, EncoderDecoder) else model.stack
    rows = [torch.tensor(model.encode(text).ids) for text in texts]
    means = torch.empty(len(rows), model.d_model)
    shortest_first = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    with evaluating(model.hf):
        while shortest_first:
            size = max(1, TOKENS_PER_BATCH // len(rows[shortest_first[-1]]))
            batch, shortest_first = shortest_first[-size:], shortest_first[:-size]
            ids = pad_sequence([rows[index] for index in batch], batch_first=True)
            lengths = torch.tensor([len(rows[index]) for index in batch])
            seen = (torch.arange(ids.shape[1]) < lengths[:, None]).to(model.device)
            states = reader(
                input_ids=ids.to(model.device), attention_mask=seen.long(), use_cache=False
            ).last_hidden_state.float()
            summed = (states * seen[..., None]).sum(dim=1).cpu()
            means[batch] = summed / lengths[:, None]
    return means
