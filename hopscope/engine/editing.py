"""Provides edit(), and the hooks that read and change the sites of a model's blocks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from itertools import product

import torch
from torch import Tensor, nn

from hopscope.engine.edits import Edit, Knockout, Patch, edits_of
from hopscope.engine.hooks import (
    beginning,
    blocking_attention,
    probed,
    reading_outputs,
    rewriting_input,
    rewriting_output,
    rewriting_residual,
    run_short_prompt,
)
from hopscope.engine.memory import out_of_memory
from hopscope.engine.sublayers import (
    INPUTS,
    SITES,
    SublayerInput,
    check_site,
    input_of,
    reading_layers,
    writer_of,
    writing_layers,
)
from hopscope.errors import ModelError, of_type, whole_number
from hopscope.interrupts import interrupt_safe
from hopscope.models.language_model import LanguageModel

logger = logging.getLogger(__name__)

SiteRewrite = Callable[[Tensor, float], Tensor | None]
"""Takes the states of a site and the number by which they are multiplied on their way."""


@interrupt_safe
def edit(model: LanguageModel, edits: Sequence[Edit] | Edit, n_tokens: int) -> Iterator[None]:
    """Make the same edits in every row of the forward passes that read a whole prompt.

    A pass may read more after the prompt, such as an answer. One that goes on from a key-value
    cache (a decoding step), or has fewer tokens than the prompt, is left as it is. So
    `model.hf.generate` may run inside, with a cache or without.

    Args:
        model: the model.
        edits: patches and knockouts, or one alone; of two patches in one place the later one
            counts.
        n_tokens: length of the prompt in tokens, padding included.

    Raises:
        UsageError: if an edit does not fit the model or the prompt.
        ModelError: if an edit does not do in this family what it says, or was never made though
            the prompt was read.

    Example:
        >>> with edit(model, [Patch(3, -1, vector)], n_tokens=ids.shape[1]):  # doctest: +SKIP
        ...     logits = model.hf(input_ids=ids).logits
    """
    of_type("model", model, LanguageModel, "load one with hs.load_model")
    whole_number("n_tokens", n_tokens, least=1)
    placed = [each.placed(model, n_tokens) for each in edits_of(edits, "edits")]
    check_edits(model, placed)
    with _making(model, placed, n_tokens):
        yield


@interrupt_safe
def _making(model: LanguageModel, placed: Sequence[Edit], n_tokens: int) -> Iterator[None]:
    """Make edits that have been placed and checked."""
    patches = [each for each in placed if isinstance(each, Patch)]
    knockouts = [each for each in placed if isinstance(each, Knockout)]
    made, attended, read = set[int](), set[int](), False

    def reads(hidden: Tensor) -> bool:
        return hidden.shape[1] >= n_tokens and begins()

    def replaced(hidden: Tensor, chosen: Sequence[Patch], scale: float = 1.0) -> Tensor | None:
        if not chosen or not reads(hidden):
            return None
        hidden = hidden.clone()
        for patch in chosen:
            hidden[:, patch.position, _part(patch)] = patch.vector.to(hidden) / scale
            made.add(id(patch))
        return hidden

    def residual(boundary: int, hidden: Tensor) -> Tensor | None:
        nonlocal read
        read = read or (boundary == model.n_layers and reads(hidden))
        return replaced(hidden, [p for p in patches if p.in_residual and p.boundary == boundary])

    def sublayer(patch: Patch) -> SiteRewrite:
        return lambda hidden, scale: replaced(hidden, [patch], scale)

    def attending(layer: int) -> Callable[[Tensor], None]:
        def note(hidden: Tensor) -> None:
            if reads(hidden):
                attended.add(layer)

        return note

    blocked = sorted({layer for knockout in knockouts for layer in knockout.layers})
    with ExitStack() as stack:
        begins = stack.enter_context(beginning(model))
        stack.enter_context(rewriting_residual(model, residual))
        for patch in patches:
            if not patch.in_residual:
                stack.enter_context(rewriting(model, patch.site, patch.layer, sublayer(patch)))
        for layer in blocked:
            chosen = [knockout for knockout in knockouts if layer in knockout.layers]
            attention = model.attention(layer)
            stack.enter_context(
                blocking_attention(attention, chosen, model.n_heads, n_tokens, begins)
            )
            stack.enter_context(rewriting_input(attention, attending(layer)))
        yield
    missed = [f"patch of {p.site} in block {p.layer}" for p in patches if id(p) not in made]
    missed += [f"knockout in block {layer}" for layer in blocked if layer not in attended]
    if read and missed:
        raise ModelError(
            f"the {missed[0]} was never made in {model.name} ({model.config.model_type}): the "
            "module that it changes did not run"
        )


def _part(patch: Patch) -> slice:
    """The components that a patch replaces in the vector at its place."""
    if patch.head is None:
        return slice(None)
    width = patch.vector.shape[0]
    return slice(patch.head * width, (patch.head + 1) * width)


@interrupt_safe
def rewriting(model: LanguageModel, site: str, layer: int, rewrite: SiteRewrite) -> Iterator[None]:
    """Pass what a sublayer reads or writes, or the heads' outputs (`z`), through `rewrite`.

    What a sublayer reads or writes is given in the shape of the residual stream: (rows, tokens,
    width). The residual stream itself stays as it is where another is read.
    """
    if site == "z":
        with rewriting_input(model.head_projection(layer), lambda hidden: rewrite(hidden, 1.0)):
            yield
        return
    if site in INPUTS:
        with _rereading(input_of(model, layer, site), lambda hidden: rewrite(hidden, 1.0)):
            yield
        return
    writer, shapes = writer_of(model, layer, site), list[torch.Size]()

    def note(hidden: Tensor) -> None:
        shapes[:] = [hidden.shape]

    def in_shape(output: Tensor) -> Tensor | None:
        changed = rewrite(output.view(shapes[0]), writer.scale)
        return None if changed is None else changed.view(output.shape)

    with _stream_into(model.layers[layer], note), rewriting_output(writer.module, in_shape):
        yield


@interrupt_safe
def _rereading(read: SublayerInput, rewrite: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Let a sublayer alone read what `rewrite` makes of the stream; None leaves it.

    The norm in between is asked anew, since the other sublayer may be given its output, too.
    """
    norm = read.norm
    if norm is None:
        with rewriting_input(read.sublayer, rewrite):
            yield
        return
    stream = list[Tensor]()

    def note(hidden: Tensor) -> None:
        stream[:] = [hidden]

    def reread(_: Tensor) -> Tensor | None:
        changed = rewrite(stream[0])
        return None if changed is None else norm.forward(changed)

    with rewriting_input(norm, note), rewriting_input(read.sublayer, reread):
        yield


def _stream_into(block: nn.Module, read: Callable[[Tensor], None]) -> AbstractContextManager[None]:
    """Call `read` with the residual stream that a block is given."""
    return rewriting_input(block, read)


@interrupt_safe
def recording(
    model: LanguageModel, sites: Sequence[str], into: Mapping[str, list[Tensor | None]]
) -> Iterator[None]:
    """Keep the named states of a forward pass.

    Args:
        model: the model.
        sites: any of `resid_pre`, `resid_post`, `attn_in`, `mlp_in`, `attn_out`, `mlp_out`,
            `head_input`.
        into: for each site a list with one place a block, filled with (rows, tokens, width).

    Raises:
        ModelError: if the family has no such site.
    """

    def residual(boundary: int, hidden: Tensor) -> None:
        if "resid_pre" in sites and boundary < model.n_layers:
            into["resid_pre"][boundary] = hidden
        if "resid_post" in sites and boundary > 0:
            into["resid_post"][boundary - 1] = hidden

    def keep(site: str, layer: int) -> SiteRewrite:
        def read(hidden: Tensor, scale: float) -> None:
            # A copy: some families add to the output of a sublayer in place.
            into[site][layer] = hidden.clone() if scale == 1 else hidden * scale

        return read

    def keep_input(layer: int) -> Callable[[Tensor], None]:
        def read(hidden: Tensor) -> None:
            into["head_input"][layer] = hidden

        return read

    sublayers = [site for site in (*INPUTS, *SITES) if site in sites]
    for site in sublayers:
        for layer in range(model.n_layers):
            check_site(model, layer, site)  # found before any hook is set
    with ExitStack() as stack:
        if {"resid_pre", "resid_post"} & set(sites):
            stack.enter_context(rewriting_residual(model, residual))
        for layer in range(model.n_layers):
            for site in sublayers:
                stack.enter_context(rewriting(model, site, layer, keep(site, layer)))
            if "head_input" in sites:
                projection = model.head_projection(layer)
                stack.enter_context(rewriting_input(projection, keep_input(layer)))
        yield


def stacked(states: Sequence[Tensor | None], device: torch.device | str | None = None) -> Tensor:
    """The states of all blocks as one tensor with a layer axis behind the tokens."""
    found = [state for state in states if state is not None]
    assert len(found) == len(states), "a block did not run"
    return torch.stack([state.to(device or found[0].device) for state in found], dim=2)


def check_edits(model: LanguageModel, edits: Sequence[Edit]) -> None:
    """Refuse kinds of edits that do not do in a family what they say.

    Each kind is tried once a model, when it is first made.

    Raises:
        ModelError: names the kind and the family.
    """
    for each in edits:
        if isinstance(each, Knockout):
            for layer in each.layers:
                model.attention(layer)
            require(model, "knockouts", _knockouts_hold)
        elif each.in_residual:
            require(model, "patches of the residual stream", _residual_patches_hold)
        else:
            if each.site == "z":
                model.attention(each.layer)
            check_site(model, each.layer, each.site)
            require(model, f"patches of {each.site}", _HOLD[each.site])


def require(model: LanguageModel, what: str, holds: Callable[[LanguageModel], bool]) -> None:
    """Try something once a model, and refuse it where it does not hold.

    Args:
        model: the model.
        what: its name in the message, in the plural.
        holds: tries it on a short prompt.

    Raises:
        ModelError: if it does not hold.
    """
    if not probed(model, "finite logits", lambda model: bool(tried(model)[2].isfinite().all())):
        return  # what is not a number is told of where it is read

    def find(model: LanguageModel) -> bool:
        try:
            return holds(model)
        except (LookupError, RuntimeError, TypeError) as error:
            if out_of_memory(error):
                raise
            return False  # a module did not run, or is given another shape or type

    if not probed(model, what, find):
        raise ModelError(
            f"{what} do not hold in {model.name} ({model.config.model_type}): tried on a short "
            "prompt they change something else, or nothing; choose something else, or another model"
        )


TRIED_TOKENS = 6


def tried(model: LanguageModel, shift: int = 0) -> tuple[Tensor, list[Tensor], Tensor]:
    """A short prompt (1, token), the residual stream before each block and behind all, logits."""
    return run_short_prompt(model, TRIED_TOKENS, shift)


@torch.no_grad()
def _knockouts_hold(model: LanguageModel) -> bool:
    """Whether a token no longer takes from another, and still from others, in all attention.

    Each block is given the same states, in one row with those of the blocked token replaced, in
    another with those of the one before it: only the second may show behind it.
    """
    ids, states, _ = tried(model)
    key, n_rows = TRIED_TOKENS - 3, 3
    queries = range(key + 1, TRIED_TOKENS)
    knockout = Knockout(model.attention_layers, queries, [key])
    given = [each.repeat(n_rows, 1, 1) for each in states]
    for hidden in given:
        hidden[1, key] = hidden[1, key - 2]
        hidden[2, key - 1] = hidden[2, key - 2]

    def differences(edits: Sequence[Edit]) -> tuple[Tensor, Tensor]:
        """By block how much the rows differ from the first, and the size of what is compared."""
        outputs: dict[nn.Module, Tensor] = {}

        def keep(module: nn.Module, output: Tensor) -> None:
            outputs[module] = output.reshape(n_rows, TRIED_TOKENS, -1)[:, key + 1 :].float().cpu()

        modules = [model.attention(layer) for layer in model.attention_layers]
        with (
            rewriting_residual(model, lambda boundary, _: given[boundary]),
            _making(model, edits, TRIED_TOKENS),
            reading_outputs(modules, keep),
        ):
            model.forward(input_ids=ids.repeat(n_rows, 1))
        found = torch.stack([outputs[module] for module in modules])
        return (found[:, 1:] - found[:, :1]).abs().amax(dim=(2, 3)), found.abs().amax(dim=(1, 2, 3))

    free, size = differences([])
    cut, _ = differences([knockout])
    rounding = 4 * torch.finfo(model.dtype).eps * size
    silent = bool((cut[:, 0] <= 0.01 * free[:, 0] + rounding).all())
    others = bool(((cut[:, 1] > 0) | (free[:, 1] <= rounding)).all())
    return silent and others and bool((free[:, 0] > rounding).any())


@torch.no_grad()
def _residual_patches_hold(model: LanguageModel) -> bool:
    """Whether each block runs once, on what is put before it, and the logits come from the last.

    Another prompt is given the states of the first before every block: what follows must change,
    and the logits be those of the first. Where something else differs, blocks read more than the
    stream: the tokens' embeddings (Zamba 2, Gemma 4), or keys of earlier blocks. A warning says so.
    """
    _, states, logits = tried(model)
    other, unchanged, _ = tried(model, shift=TRIED_TOKENS)
    found: list[Tensor] = []
    boundaries: list[int] = []

    def reset(boundary: int, hidden: Tensor) -> Tensor:
        boundaries.append(boundary)
        found.append(hidden.clone())
        return states[boundary]

    with rewriting_residual(model, reset):
        given = model.forward(input_ids=other).logits
    if boundaries != list(range(model.n_layers + 1)) or not same(given, logits, model.dtype):
        return False
    behind = [*zip(found, states, unchanged, strict=True)][1:]
    if any(torch.equal(a, before) for a, _, before in behind):  # whatever was put before the block
        return False
    if not all(same(a, b, model.dtype) for a, b, _ in behind):
        logger.warning(
            "blocks of %s read more than the residual stream, such as the tokens' embeddings or "
            "the keys of earlier blocks: a patch of the stream leaves that as it is",
            model.name,
        )
    return True


@torch.no_grad()
def _sublayer_patches_hold(model: LanguageModel) -> bool:
    """Whether what is written in place of both sublayers' outputs is what a block adds.

    Blocks that no two modules write to are left out; patches there are refused one by one.
    """
    layers = writing_layers(model)  # found before the hooks below are set
    ids, states, _ = tried(model)
    generator = torch.Generator().manual_seed(0)
    directions = torch.rand(2, model.d_model, generator=generator) - 0.5
    # As large as the stream's largest component, which may lie far above the others.
    written = [directions.to(each.device) * each[:, -1].float().abs().max() for each in states[:-1]]
    found: list[Tensor] = []

    def reset(boundary: int, hidden: Tensor) -> Tensor:
        found.append(hidden[:, -1].clone())
        return states[boundary]

    last, patches = TRIED_TOKENS - 1, list[Edit]()
    for layer in layers:
        attention, mlp = written[layer]
        patches.append(Patch(layer, last, attention, "attn_out"))
        patches.append(Patch(layer, last, mlp, "mlp_out"))
    with rewriting_residual(model, reset), _making(model, patches, TRIED_TOKENS):
        model.forward(input_ids=ids)
    sums = {i: states[i][:, -1] + written[i].sum(dim=0).to(states[i]) for i in layers}
    return all(same(found[i + 1], expected, model.dtype) for i, expected in sums.items())


@torch.no_grad()
def _head_patches_hold(model: LanguageModel) -> bool:
    """Whether the output projections of all attention run on the heads side by side."""
    ids, _, _ = tried(model)
    widths: list[int] = []
    with ExitStack() as stack:
        for layer in model.attention_layers:
            projection = model.head_projection(layer)
            stack.enter_context(rewriting_input(projection, lambda x: widths.append(x.shape[-1])))
        model.forward(input_ids=ids)
    return widths == [model.n_heads * model.head_dim] * len(model.attention_layers)


@torch.no_grad()
def _input_patches_hold(model: LanguageModel) -> bool:
    """Whether each sublayer makes of a patched input what it makes of a stream that has it.

    Two rows have other states of the last token before every block. What attention reads in the
    first and the MLP in the second is put before the sublayers of an unchanged prompt: they must
    write the same as there, to the unchanged stream.
    """
    layers = reading_layers(model)  # found before the hooks below are set
    ids, states, _ = tried(model)
    generator, last = torch.Generator().manual_seed(0), TRIED_TOKENS - 1
    directions = torch.rand(2, model.d_model, generator=generator) - 0.5
    others = [each.repeat(2, 1, 1) for each in states]
    for each in others:
        each[:, last] = directions.to(each) * each[:, last].float().abs().max()

    def run(stream: Sequence[Tensor], patches: Sequence[Edit]) -> dict[tuple[str, int], Tensor]:
        """The last token's states by site and block, `resid_post` included: (row, width)."""
        found: dict[tuple[str, int], Tensor] = {}

        def reset(boundary: int, hidden: Tensor) -> Tensor:
            found["resid_post", boundary - 1] = hidden[:, last].clone().cpu()
            return stream[boundary]

        def keep(site: str, layer: int) -> SiteRewrite:
            def read(hidden: Tensor, scale: float) -> None:
                found[site, layer] = hidden[:, last].clone().cpu() * scale

            return read

        with ExitStack() as stack:
            stack.enter_context(rewriting_residual(model, reset))
            stack.enter_context(_making(model, patches, TRIED_TOKENS))
            for site, layer in product((*INPUTS, *SITES), layers):
                stack.enter_context(rewriting(model, site, layer, keep(site, layer)))
            model.forward(input_ids=ids.repeat(len(stream[0]), 1))
        return found

    there = run(others, [])
    rows = ("attn", 0), ("mlp", 1)
    here = run(
        states,
        [
            Patch(layer, last, there[f"{name}_in", layer][row], f"{name}_in")  # type: ignore[arg-type]
            for layer in layers
            for name, row in rows
        ],
    )

    def holds(layer: int) -> bool:
        stream, attended = others[layer][:, last].cpu(), there["attn_out", layer]
        after = input_of(model, layer, "mlp_in").after_attention
        reads = {"attn_in": stream, "mlp_in": stream + attended if after else stream}
        if not all(same(there[site, layer], each, model.dtype) for site, each in reads.items()):
            return False
        written = [there[f"{name}_out", layer][row] for name, row in rows]
        expected = {"attn_out": written[0], "mlp_out": written[1]}
        expected["resid_post"] = states[layer][0, last].cpu() + sum(written)
        return all(
            same(here[site, layer][0], state, model.dtype) for site, state in expected.items()
        )

    return all(map(holds, layers))


_HOLD: Mapping[str, Callable[[LanguageModel], bool]] = {
    **dict.fromkeys(INPUTS, _input_patches_hold),
    **dict.fromkeys(SITES, _sublayer_patches_hold),
    "z": _head_patches_hold,
}
"""What tries the patches of each site beside the residual stream."""


def same(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    """Whether two tensors are the same to the rounding of a few sums."""
    a, b = a.float().cpu(), b.float().cpu()
    tolerance = max(1e-4, 8 * torch.finfo(dtype).eps)
    return bool((a - b).abs().max() <= tolerance * b.abs().max())
