"""Provides JacobianLens: a logit lens through the average Jacobian of the layers that follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from hopscope.errors import ModelError, UsageError

from .translating_lens import TranslatingLens, check_sizes


class Transport(nn.Module):
    """A linear map `J h` of the states of one layer, in at least float32; initially the identity.

    Args:
        d_model: width of the residual stream.
    """

    jacobian: Tensor

    def __init__(self, d_model: int):
        super().__init__()
        self.register_buffer("jacobian", torch.eye(d_model, dtype=torch.float32))

    def forward(self, states: Tensor) -> Tensor:
        """Return transported states of the same shape (..., d_model)."""
        dtype = torch.promote_types(states.dtype, self.jacobian.dtype)
        return functional.linear(states.to(self.jacobian.device, dtype), self.jacobian.to(dtype))


class JacobianLens(TranslatingLens):
    """Maps the states of each layer to logits through what the layers after it do on average.

    Jacobian lens (Gurnee et al. 2026, "Verbalizable Representations Form a Global Workspace in
    Language Models", arXiv 2607.15495): `W_U · norm(J h)`, where J is the Jacobian of the residual
    stream after the last block, before the final norm, with respect to that after the layer. It is
    summed over the tokens that come next, the own one included, and averaged over tokens and
    texts, as in the authors' code. So it reads what a state makes the model say now or later,
    whereas the tuned lens reads what it will say next. The last layer's J is the identity. Before
    `fit` all are, so that the lens equals the logit lens.

    The norm and the unembedding are not changed, and are not saved. The Jacobians (d_model² numbers
    per layer) are in float32 on the device of the unembedding, regardless of the dtype of the
    model.

    Args:
        norm: the final norm.
        unembedding: the map from normalised states to logits.
        n_layers: number of layers.
        d_model: width of the residual stream.
        softcap: soft cap of the logits, in families that have one (Gemma 2).
        scale: by what logits are multiplied, before any cap (Cohere, Granite).

    Raises:
        UsageError: if a size is not positive, or if the norm has weights of another size.

    Example:
        >>> norm, unembedding = nn.LayerNorm(4), nn.Linear(4, 10, bias=False)
        >>> blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        >>> model = nn.Sequential(nn.Embedding(10, 4), *blocks).eval()
        >>> lens = JacobianLens(norm, unembedding, n_layers=3, d_model=4)
        >>> lens = lens.fit(model, blocks, [[1, 2, 3, 4], [5, 6, 7]], skip=1)
        >>> lens(torch.randn(8, 4), layer=1).shape
        torch.Size([8, 10])
        >>> torch.allclose(lens.jacobians[1], blocks[2].weight)
        True
    """

    kind = "JacobianLens"
    setting_names = ("n_layers", "d_model", "softcap", "scale")

    def __init__(
        self,
        norm: nn.Module,
        unembedding: nn.Module,
        n_layers: int,
        d_model: int,
        softcap: float | None = None,
        scale: float = 1.0,
    ):
        check_sizes(norm, n_layers, d_model)
        translators = [Transport(d_model) for _ in range(n_layers)]
        super().__init__(norm, unembedding, translators, d_model, softcap, scale)

    @property
    def jacobians(self) -> list[Tensor]:
        """J of each layer, shape (d_model, d_model): the change of each output by each input."""
        return [cast(Transport, translator).jacobian for translator in self.translators]

    @property
    def settings(self) -> dict[str, int | float | None]:
        """The settings by name, as JSON."""
        return {
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "softcap": self.logit_lens.softcap,
            "scale": self.logit_lens.scale,
        }

    def fit(
        self,
        run: Callable[[Tensor], object],
        blocks: Sequence[nn.Module],
        ids: Sequence[Sequence[int] | Tensor],
        *,
        max_tokens: int = 128,
        skip: int = 16,
        batch_size: int = 8,
        outputs_per_text: int | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> Self:
        """Average the Jacobians over texts.

        A batch of texts takes one forward pass, and a backward pass for each output dimension. The
        states and gradients of one batch are in memory at a time. The cost of a large model can be
        divided among texts with `outputs_per_text`: each output dimension is then averaged over
        other texts, and over fewer. Texts of one length lose no time to padding.

        Args:
            run: runs a causal model that is not in training mode on token ids, shape
                (text, token): the model itself, or a function such as
                `lambda ids: hf(ids, use_cache=False)`. Its unembedding may be left out. What it
                returns is not read. With a `LanguageModel`: `model.run_blocks`.
            blocks: the modules whose outputs, or the first of each, are the residual stream after
                each layer, in order.
            ids: token ids of each text. The authors take 1,000 texts of 128 tokens from data like
                those of pretraining, and find 100 enough.
            max_tokens: number of tokens at the beginning of a text that are used.
            skip: number of tokens at the beginning of a text that are neither differentiated nor
                differentiated by, because many heads attend to the first ones whatever the text
                is. The last token is not either.
            batch_size: texts per batch, padded on the right.
            outputs_per_text: output dimensions per text, in turn, so that together the texts
                cover all; d_model by default.
            progress: called after each backward pass with the number done and the total number.

        Returns:
            The lens itself.

        Raises:
            UsageError: if there are no texts, or too few for `outputs_per_text`, if a text is
                too short, if the blocks are in training mode or not those of `n_layers` layers, or
                if a Jacobian is not finite.
            ModelError: if the blocks give no gradients, such as some quantised ones.
        """
        texts = [torch.as_tensor(each).flatten()[:max_tokens] for each in ids]
        n_outputs = self.d_model if outputs_per_text is None else outputs_per_text
        self._check_texts([len(text) for text in texts], n_outputs, skip)
        if min(batch_size, len(blocks)) < 1 or any(block.training for block in blocks):
            raise UsageError(
                f"there are {len(blocks)} blocks, and batch_size={batch_size}; give at least one "
                "of each, and blocks that are not in training mode (model.eval())"
            )
        sums = [torch.zeros_like(jacobian) for jacobian in self.jacobians[:-1]]
        device = self.jacobians[-1].device
        starts = range(0, len(texts), batch_size)
        for number, start in enumerate(starts):
            batch, used = _padded(texts[start : start + batch_size], skip)
            states = self._states_after(run, blocks, batch)
            used, rows = used.to(device), torch.arange(start, start + len(batch), device=device)
            for step in range(n_outputs if sums else 0):
                outputs = (rows * n_outputs + step) % self.d_model
                means = _mean_gradients(states, used, outputs, again=step < n_outputs - 1)
                for total, mean in zip(sums, means, strict=True):
                    total.index_add_(0, outputs, mean.to(device))
                if progress is not None:
                    progress(number * n_outputs + step + 1, len(starts) * n_outputs)
        given = torch.arange(len(texts) * n_outputs) % self.d_model
        n_texts = torch.bincount(given, minlength=self.d_model)[:, None]
        if not all(total.isfinite().all() for total in sums):
            raise UsageError(
                "the Jacobians have infinite or not-a-number entries; load the model in float32 "
                "or bfloat16 (the largest float16 is 65504)"
            )
        for jacobian, total in zip(self.jacobians[:-1], sums, strict=True):
            jacobian.copy_(total / n_texts.to(device))
        return self

    @torch.enable_grad()
    def _states_after(
        self, run: Callable[[Tensor], object], blocks: Sequence[nn.Module], ids: Tensor
    ) -> list[Tensor]:
        """Run a model on texts; return its states after each block, with the graph in between."""
        states: list[Tensor] = []

        def keep(_: nn.Module, __: object, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            if not states:  # nothing before the first block's output is differentiated
                hidden = hidden.detach().requires_grad_()
            states.append(hidden)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        devices = (p.device for p in blocks[0].parameters() if not p.is_meta)
        with ExitStack() as stack:
            for block in dict.fromkeys(blocks):
                stack.callback(block.register_forward_hook(keep).remove)
            run(ids.to(next(devices, torch.device("cpu"))))
        expected = [(*ids.shape, self.d_model)] * self.n_layers
        if (shapes := [tuple(each.shape) for each in states]) != expected:
            raise UsageError(
                f"{len(shapes)} blocks ran and gave states of shapes {sorted(set(shapes))}; give "
                f"the {self.n_layers} blocks between which the residual stream passes, (text, "
                f"token, d_model) = {expected[0]}, and what runs all of them"
            )
        if not states[-1].requires_grad:
            raise ModelError(
                "the blocks give no gradients; load the model without quantization, or use the "
                "logit lens or the tuned lens, which need none"
            )
        return states

    def _check_texts(self, lengths: Sequence[int], n_outputs: int, skip: int) -> None:
        """Check the texts of `fit`, given by their numbers of tokens."""
        if not lengths or skip < 0 or min(lengths) < skip + 2:
            short = f", the shortest of {min(lengths)} tokens" if lengths else ""
            raise UsageError(
                f"there are {len(lengths)} texts{short}, and skip={skip}; give one or more texts "
                f"of at least skip + 2 = {skip + 2} tokens each (max_tokens cuts them)"
            )
        if not 1 <= n_outputs <= self.d_model or len(lengths) * n_outputs < self.d_model:
            raise UsageError(
                f"outputs_per_text={n_outputs} for {len(lengths)} texts; give at most "
                f"{self.d_model}, and enough for the texts to cover all {self.d_model} outputs"
            )


def _padded(texts: Sequence[Tensor], skip: int) -> tuple[Tensor, Tensor]:
    """Return the ids of texts as a batch, and which tokens are used: both (text, token)."""
    longest = max(map(len, texts))
    # In a causal model, what stands behind a text does not change it.
    ids = torch.stack([torch.cat([t, t[-1:].expand(longest - len(t))]) for t in texts])
    ends = torch.tensor([[len(text) - 1] for text in texts])
    places = torch.arange(longest)
    return ids, (places >= skip) & (places < ends)


def _mean_gradients(
    states: Sequence[Tensor], used: Tensor, outputs: Tensor, again: bool
) -> list[Tensor]:
    """Return the gradients of outputs of the last layer by the states of each layer before it.

    Args:
        states: of each layer, shape (text, token, d_model).
        used: the tokens over which outputs are summed and gradients are averaged, (text, token).
        outputs: one output dimension for each text.
        again: whether the graph is needed again.

    Returns:
        For each layer but the last the mean over tokens in float32, shape (text, d_model).
    """
    *sources, final = states
    cotangent = torch.zeros_like(final)
    rows = torch.arange(len(outputs), device=final.device)
    cotangent[rows, :, outputs.to(final.device)] = used.to(final)
    found = torch.autograd.grad(final, sources, cotangent, retain_graph=again)
    weights = used / used.sum(dim=1, keepdim=True)
    return [torch.einsum("nt,ntd->nd", weights.to(each.device), each.float()) for each in found]
