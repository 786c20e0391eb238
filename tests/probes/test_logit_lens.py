"""LogitLens against the model that it is taken from, and by hand."""

import pytest
import torch
from hopscope.probes import LogitLens
from torch import nn

from hopscope.errors import UsageError


@pytest.fixture
def lens() -> LogitLens:
    unembedding = nn.Linear(2, 3, bias=False)
    unembedding.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    return LogitLens(nn.Identity(), unembedding)


def test_ranks_and_log_probabilities_by_hand(lens: LogitLens) -> None:
    states = torch.tensor([[2.0, 1.0], [-1.0, 0.5]])
    assert lens.rank(states, torch.tensor(1)).tolist() == [1, 1]
    assert lens.rank(states, torch.tensor([0, 0])).tolist() == [0, 2]
    expected = torch.log_softmax(torch.tensor([[2.0, 1.0, -2.0], [-1.0, 0.5, 1.0]]), -1)[:, 1]
    torch.testing.assert_close(lens.logprob(states, torch.tensor(1)), expected)


def test_softcap_bounds_the_logits() -> None:
    unembedding = nn.Linear(1, 1, bias=False)
    unembedding.weight.data.fill_(100.0)
    lens = LogitLens(nn.Identity(), unembedding, softcap=5.0)
    assert lens(torch.ones(1)).item() == pytest.approx(5.0)


@pytest.mark.parametrize("name", ["tiny-random-llama", "tiny-random-gemma2", "tiny-random-gpt2"])
def test_last_state_gives_the_models_own_logits(name: str) -> None:
    from hopscope.models.load import load_model
    from hopscope.prompting.capture import capture

    model = load_model(name, device="cpu")
    text = "The capital of France is"
    state = capture(model, [text])["resid_post"][0, 0, -1]
    softcap = getattr(model.config, "final_logit_softcapping", None)
    lens = LogitLens(model.final_norm, model.unembedding, softcap)
    ids = torch.tensor([model.encode(text).ids])
    torch.testing.assert_close(lens(state), model.hf(ids).logits[0, -1], atol=1e-4, rtol=0)


def test_score_is_the_share_of_likeliest_tokens(lens: LogitLens) -> None:
    acts = torch.tensor([[2.0, 1.0], [-1.0, 0.5], [0.0, 3.0], [5.0, 0.0]])
    labels = torch.tensor([0, 1, 1, 0])
    for batch_size in (1, 3, 128):
        score = lens.fit(acts, labels).score(acts, labels, batch_size=batch_size)
        assert score.shape == ()
        assert score == 0.75
    layers = torch.stack([acts, -acts], dim=1)
    assert lens.score(layers, labels).tolist() == [0.75, 0.0]
    with pytest.raises(UsageError, match=r"\(3,\) for 4 rows"):
        lens.score(acts, labels[:3])


def test_states_are_read_in_the_models_dtype(lens: LogitLens) -> None:
    states = torch.randn(5, 2)
    assert torch.equal(lens(states.double()), lens(states))
    assert torch.equal(lens(states.bfloat16()), lens(states.bfloat16().float()))
