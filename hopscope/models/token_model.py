"""Provides TokenModel: what decoder-only models and encoder-decoders have in common."""

from __future__ import annotations

import copy
import inspect
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hopscope.errors import ModelError, QueryError
from hopscope.models.chat import MARKERS, end_of_turn
from hopscope.models.evaluation import evaluating
from hopscope.models.fingerprint import digests, setup_of, weights_state
from hopscope.models.offload import device_of_module
from hopscope.models.reference import ModelReference
from hopscope.scripts import needs_space

FIRST_TOKENS = {"first_tokens": 2}
"""Version of the rule by which `TokenModel.first_tokens` and `answer_tokens` tell an entity. Parts
of a run that follow two rules cannot be one table."""

_ARTICLE = re.compile(r"^(?:the|a|an) (?=\S)", re.IGNORECASE)
_SOME_TEXT = "is"
"""What a name follows where no prompt is given."""


@dataclass(frozen=True)
class Encoded:
    """A tokenised text.

    Attributes:
        text: the text.
        ids: its token ids, with the special ones that the model expects.
        offsets: the half-open character range of each token; it is empty for special tokens.
        special: number of special tokens that were put before the text.
    """

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    special: int = 0

    def __len__(self) -> int:
        return len(self.ids)


class TokenModel:
    """A Hugging Face model that maps tokens to logits, with its tokenizer.

    Args:
        hf: the Hugging Face model. If TransformerLens has wrapped it in place, it is replaced by
            an unwrapped model that shares its parameters.
        tokenizer: its (fast) tokenizer.
        name: name of the model in results.
        wrapped: the object that the user passed, if it was a wrapper around `hf`.

    Attributes:
        keeps_end: whether special tokens that the tokenizer puts behind a text (an end-of-text
            token) belong to a prompt. If not they are dropped, since nothing follows them.
        answers_anew: whether an answer begins a text of its own, whatever the prompt is.
        probed: properties of the model that were found by a short run, by name; a cache.
        reference: what it was loaded by; None for a model that was given as an object.
        kept_digests: gives the digests of `hopscope.models.fingerprint.digests` where they may be
            known already; None to compute them.
    """

    keeps_end = False
    answers_anew = False

    def __init__(
        self,
        hf: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        wrapped: object | None = None,
    ) -> None:
        self.hf = plain_modules(hf)
        self.tokenizer = tokenizer
        self.name = name
        self.wrapped = wrapped
        self.probed: dict[str, Any] = {}
        self.reference: ModelReference | None = None
        self._turn_ends: dict[str, frozenset[int]] = {}
        self._digests: tuple[object, str, str] | None = None
        self.kept_digests: Callable[[PreTrainedModel], tuple[str, str]] | None = None
        self.config = self.hf.config.get_text_config()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name!r}, {self.hf.config.model_type}, "
            f"{self.n_layers} layers, d_model {self.d_model}, "
            f"{str(self.dtype).removeprefix('torch.')} on {self.device})"
        )

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        raise NotImplementedError

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """All blocks, those of an encoder first."""
        raise NotImplementedError

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.config.hidden_size)

    @property
    def n_heads(self) -> int:
        """Number of query heads of a block.

        Raises:
            ModelError: if the model has no attention.
        """
        n_heads = getattr(self.config, "num_attention_heads", None)
        if n_heads is None:
            raise ModelError(
                f"{self.name} ({self.config.model_type}) has no attention heads: read and patch "
                "the residual stream (resid_pre, resid_post), or choose a model with attention"
            )
        return int(n_heads)

    @property
    def head_dim(self) -> int:
        """Width of one head's output."""
        names = ("v_head_dim", "head_dim")  # latent attention has values of another width
        stated = next(filter(None, (getattr(self.config, name, None) for name in names)), None)
        return int(stated or self.d_model // self.n_heads)

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return int(self.config.vocab_size)

    @property
    def max_context(self) -> int | None:
        """The longest prompt in tokens; None if the configuration does not limit it."""
        limit = getattr(self.config, "max_position_embeddings", None)
        return None if limit is None else int(limit)

    @property
    def device(self) -> torch.device:
        """The device of the embeddings, to which token ids are moved."""
        return device_of_module(self.hf.get_input_embeddings())

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the weights."""
        return self.hf.dtype

    @property
    def quantization(self) -> dict[str, Any] | None:
        """How transformers has quantised the weights, as JSON; None if it has not.

        Checkpoints whose weights were dequantised when they were read are not quantised any more.
        """
        quantizer = getattr(self.hf, "hf_quantizer", None)
        if quantizer is None:
            return None
        return json.loads(quantizer.quantization_config.to_json_string(use_diff=False))  # type: ignore[no-any-return]

    @cached_property
    def cache_argument(self) -> str:
        """Name of the `forward` argument that takes the key-value cache."""
        parameters = inspect.signature(type(self.hf).forward).parameters
        return "cache" if "cache" in parameters else "past_key_values"

    @cached_property
    def takes_positions(self) -> bool:
        """Whether `forward` takes position ids."""
        return "position_ids" in inspect.signature(type(self.hf).forward).parameters

    @property
    def fingerprint(self) -> str:
        """sha256 over the names, types, shapes and bytes of all parameters."""
        return self._tensors()[0]

    @property
    def setup(self) -> dict[str, Any]:
        """What makes the outputs besides the parameters; see `hopscope.models.fingerprint`."""
        return setup_of(self.hf, self.tokenizer, self.end_tokens, self._tensors()[1])

    def _tensors(self) -> tuple[str, str]:
        """The digests of parameters and buffers, anew if a parameter was changed or replaced."""
        state = weights_state(self.hf)
        if self._digests is None or self._digests[0] != state:
            digested = self.kept_digests or digests
            self._digests = state, *digested(self.hf)
        return self._digests[1:]

    def forward(self, **inputs: Any) -> Any:
        """Run the Hugging Face model in evaluation mode; each pass of the engine is one such call.

        Args:
            inputs: keyword arguments of its forward pass.

        Returns:
            Its output object, such as one with `logits`.
        """
        with evaluating(self.hf):
            return self.hf(**inputs)

    def encode(self, text: str, room: int = 0, special: bool = True) -> Encoded:
        """Tokenise a prompt, with the special tokens that the model expects.

        Args:
            text: the prompt.
            room: number of tokens that will be generated after the prompt.
            special: whether to add the special tokens; the text of a chat has its own.

        Raises:
            QueryError: if the prompt has no token, or one that the model does not know, or does not
                fit into the context together with `room` further tokens.
        """
        encoded = self.tokenize(text, special)
        if not encoded.ids:
            raise QueryError(f"the prompt {text!r} has no token; give some text")
        if self.max_context is not None and len(encoded) + room > self.max_context:
            raise QueryError(
                f"the prompt has {len(encoded)} tokens and {room} are to be generated, but the "
                f"context of {self.name} is {self.max_context} tokens: {text[:80]!r}... "
                "Use fewer demonstrations (with_few_shot) or a shorter prompt."
            )
        return encoded

    def tokenize(self, text: str, special: bool = True) -> Encoded:
        """Tokenise a text of any length.

        A tokenizer may leave white space out of the character ranges. A token of nothing but white
        space is given its range nevertheless.

        Args:
            text: the text.
            special: whether to add the special tokens that the model expects.

        Raises:
            QueryError: if the model does not know one of the tokens.
        """
        row = self.tokenizer(
            text,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            add_special_tokens=special,
        )
        added = "".join(map(str, row["special_tokens_mask"])) if special else ""
        n = len(row["input_ids"]) - (0 if self.keeps_end else len(added) - len(added.rstrip("1")))
        offsets: list[tuple[int, int]] = []
        for start, end in row["offset_mapping"][:n]:
            before = offsets[-1][1] if offsets else 0
            offsets.append((min(start, before) if start == end else start, end))
        ids = self._known(row["input_ids"][:n])
        return Encoded(text, ids, tuple(offsets), len(added) - len(added.lstrip("1")))

    def _known(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Return token ids that the model knows.

        Raises:
            QueryError: if it does not know one of them.
        """
        unknown = [token for token in ids if token >= self.vocab_size]
        if unknown:
            raise QueryError(
                f"the tokenizer gives {self.tokenizer.convert_ids_to_tokens(unknown[0])!r} the id "
                f"{unknown[0]}, but {self.name} knows {self.vocab_size} tokens: pass the model's "
                "own tokenizer, or leave that token out of the text"
            )
        return tuple(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens but those that mark thoughts.

        Spaces stay as they are: a text is not changed by the tokens that follow it.
        """
        kept = [t for t in ids if t in self._markers or t not in self._special]
        text = self.tokenizer.decode(
            kept, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(text)

    @cached_property
    def _special(self) -> frozenset[int]:
        added = self.tokenizer.added_tokens_decoder
        return frozenset(token for token, each in added.items() if each.special)

    @cached_property
    def _markers(self) -> frozenset[int]:
        """The tokens that mark thoughts; see `hopscope.models.chat`."""
        added = self.tokenizer.added_tokens_decoder
        return frozenset(token for token, each in added.items() if each.content in MARKERS)

    @property
    def end_tokens(self) -> frozenset[int]:
        """The token ids that end a generated text, or a turn in the tokenizer's chat template."""
        template = str(self.tokenizer.chat_template)
        if template not in self._turn_ends:  # it may be set later
            self._turn_ends[template] = end_of_turn(self.tokenizer)
        turn = self._turn_ends[template]
        configured = getattr(self.hf.generation_config, "eos_token_id", None)
        if configured is None:
            configured = self.tokenizer.eos_token_id
        if configured is None:
            return turn
        return turn.union([configured] if isinstance(configured, int) else configured)

    def answer_tokens(
        self,
        names: Iterable[str],
        required: bool = True,
        after: str | None = None,
        beside: Iterable[str] = (),
    ) -> tuple[int, ...]:
        """Return the next tokens that tell an answer, over all of its names.

        Names that begin with an article are left out, because "the euro" and "the yen" have the
        same first token. So are tokens with which another entity begins, too; where the first
        token of the answer's first name is one of them ("Mexico City" beside "Mexico"), no token
        tells the answer.

        Args:
            names: the names; the first one is what the entity is usually called.
            required: whether to refuse an answer that no token tells.
            after: the prompt that the answer follows; see `first_tokens`.
            beside: names of another entity from which the answer must be told. A name of both
                counts for the answer.

        Raises:
            QueryError: if `required`, and no token tells the answer.
        """
        names = tuple(names)
        plain = [name for name in names if not _ARTICLE.match(name.strip())]
        found = self.first_tokens(plain, required=False, after=after)
        others = [name for name in beside if name not in names]
        shared = set(self.first_tokens(others, required=False, after=after))
        usual = self.first_tokens(plain[:1], required=False, after=after)
        told = () if shared.intersection(usual) else tuple(t for t in found if t not in shared)
        if required and names and not told:
            raise self._untold(names)
        return told

    def first_tokens(
        self,
        names: Iterable[str],
        variants: bool = False,
        required: bool = True,
        after: str | None = None,
        articles: bool = False,
    ) -> tuple[int, ...]:
        """Return the first token of each name in its place behind a prompt.

        That is the next token if the prompt is continued by the name: behind a space, unless the
        prompt ends with white space or in a script that is written without spaces. A name is
        composed (Unicode NFC), as text usually is.

        A name that its first token does not identify is left out: a space by itself, with which
        every number begins for some tokenizers, the first digit alone of a longer number, a part
        of a character, or the token of unknown words.

        Args:
            names: the names.
            variants: the rule of Hopping Too Late: include the first tokens of the name without
                the space and in lower case, also if they are parts of characters, and drop a
                leading article. `after` does not matter then.
            required: whether to refuse names none of which its first token identifies;
                otherwise there are no tokens for them.
            after: the prompt, or its end; "" for names that begin a text. If None, some text and
                a space.
            articles: keep leading articles among the variants, as the code of that paper does.

        Returns:
            Token ids without repeats, in the order of the names.

        Raises:
            QueryError: if `required`, and there are names but no tokens that identify them.
        """
        names = [name for name in (name.strip() for name in names) if name]
        before = "" if self.answers_anew else _SOME_TEXT if after is None else after
        tokens: dict[int | None, None] = {}
        for name in names:
            if not variants:
                tokens[self._first_token(before, unicodedata.normalize("NFC", name))] = None
                continue
            plain = name if articles else _ARTICLE.sub("", name)
            for spelling in (plain, plain.lower()):
                tokens[self._first_token(_SOME_TEXT, spelling, whole=False)] = None
                tokens[self._first_token("\n", spelling, whole=False)] = None
        found = tuple(token for token in tokens if token is not None)
        if required and names and not found:
            raise self._untold(names)
        return found

    def _untold(self, names: Sequence[str]) -> QueryError:
        """Return the error for names that no first token tells."""
        shown = " or ".join(map(repr, names[:3]))
        return QueryError(
            f"{self.name} cannot identify {shown} by its first token, with which others begin, "
            "too (a space, an article, a part of a character, the unknown token): leave the query "
            "out, add an alias that begins otherwise, or let the prompt end with the space"
        )

    def _first_token(self, before: str, name: str, whole: bool = True) -> int | None:
        """Return the token that continues a text by a name, or None if it tells nothing.

        Where the tokenizer would join the text's end with the name, that is the first token of the
        name by itself, behind a line break or, if line breaks are read as spaces, alone. With
        `whole`, a part of a character tells nothing.
        """
        space = " " if needs_space(before) else ""
        rest = self._continuation(before, f"{space}{name}") or self._continuation("\n", name)
        rest = rest or self._tokens(name)
        if not rest or rest[0] == self.tokenizer.unk_token_id:
            return None
        first = str(self.tokenizer.decode(rest[:1])).strip()
        if not first or (whole and "\ufffd" in first):
            return None
        if len(first) == 1 and first.isdigit() and name[1:2].isdigit():
            return None
        return self._known(rest[:1])[0]

    def _continuation(self, before: str, text: str) -> list[int]:
        """Return the tokens of a text behind another one; none if the two are joined."""
        alone, whole = self._tokens(before), self._tokens(before + text)
        return whole[len(alone) :] if whole[: len(alone)] == alone else []

    def texts_of(self, ids: Iterable[int]) -> str:
        """Return tokens as quoted texts with commas between, as tables show them."""
        return ", ".join(repr(self.decode([token])) for token in ids)

    def _tokens(self, text: str) -> list[int]:
        """Return the tokens of a text, without special ones."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def plain_modules(module: PreTrainedModel) -> PreTrainedModel:
    """Return the model without the wrappers of TransformerLens, sharing parameters and buffers.

    `TransformerBridge` replaces modules in place by bridges, which hold the original modules but
    compute attention in their own way. The copy that is returned has the original modules.
    """
    if not any("_original_component" in m._modules for m in module.modules()):
        return module
    plain: PreTrainedModel = _unwrapped(module, {})  # type: ignore[assignment]
    plain.config = copy.deepcopy(module.config)
    for part in plain.modules():
        if getattr(part, "config", None) is module.config:
            part.config = plain.config  # type: ignore[assignment]
    return plain


def _unwrapped(module: nn.Module, seen: dict[int, nn.Module]) -> nn.Module:
    """Return a copy of a module tree without bridges; `seen` holds the copies made so far."""
    while "_original_component" in module._modules:
        module = module._modules["_original_component"]  # type: ignore[assignment]
    if id(module) not in seen:
        clone = copy.copy(module)
        for name, value in vars(module).items():
            if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
                vars(clone)[name] = value.copy()  # hooks on the copy must not appear on the bridge
        seen[id(module)] = clone
        clone._modules = {
            name: None if child is None else _unwrapped(child, seen)
            for name, child in module._modules.items()
        }
    return seen[id(module)]
