"""Provides `load_model`: a LanguageModel from a name, a hub id, a folder, a file or an object.

`load_encoder_decoder` does the same for T5-like models, and `load_any` for both.
"""

import difflib
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hopscope.errors import ModelError, UnknownModelError, UsageError
from hopscope.models.encoder_decoder import EncoderDecoder
from hopscope.models.gguf import read_gguf
from hopscope.models.kinds import (
    _check_code,
    _check_kind,
    _check_type,
    _is_t5,
    _Kind,
    _Loaded,
    _wrong_kind,
)
from hopscope.models.language_model import LanguageModel
from hopscope.models.tiny import TINY_ENCODER_DECODERS, TINY_FAMILIES, build_tiny
from hopscope.models.token_model import TokenModel
from hopscope.models.wrapped import _unwrap
from hopscope.models.zoo import pull, zoo

logger = logging.getLogger(__name__)

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
SAFE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
RESOLVERS: dict[str, Callable[[str, torch.device | None], tuple[Path, str]]] = {}
"""By what stands before the colon of a name, such as `world:`: gives the folder of a model and what
results call it. Those who know such names add themselves."""
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def load_model(
    x: object,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: str | dict[str, Any] | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    name: str | None = None,
) -> LanguageModel:
    """Loads a causal language model, or takes one that is already loaded, in eval mode.

    Args:
        x: One of: a name of the zoo (`"smollm2-135m"`, fetched on first use) or of a tiny random
            model (`"tiny-random-llama"`); a world (`"world:two-hop-looped"`, seed 0, or
            `"world:two-hop-looped@1"`; one that is not shipped is trained on first use); a hub
            id (`"org/name"`); a folder with safetensors; a `.gguf` file; a `PreTrainedModel`; a
            TransformerLens `TransformerBridge`; an nnsight model; or a `LanguageModel`, which is
            returned as it is.
        device: Where to put the model. By default a model that is loaded here goes to CUDA if
            there is any, else to the CPU, and a model that is already loaded stays where it is.
        dtype: Such as `torch.bfloat16`, `"bfloat16"`, or `"auto"` for the checkpoint's own. By
            default float32 on the CPU and the checkpoint's own on CUDA; a model that is already
            loaded keeps its own.
        device_map: As for `from_pretrained`, for a model spread over several devices; instead of
            `device`.
        tokenizer: The tokenizer to use instead of the one that comes with the model.
        trust_remote_code: Run the Python code that a checkpoint brings along, if it needs it.
        allow_pickle: Read pickled weights (`*.bin`, `*.pt`) where there are no safetensors.
        name: What results call the model; by default its name, hub id, or the folder's name.

    Returns:
        The model, whose parameters no longer require gradients.

    Raises:
        UnknownModelError: `x` is neither a known name nor a hub id, folder or file that exists.
        ModelError: The model cannot be fetched, trusted, read, or is not a causal language model.
        UsageError: `device` or `dtype` cannot be used.

    Example:
        >>> load_model("tiny-random-llama", device="cpu").n_layers
        4
    """
    if isinstance(x, LanguageModel):
        return x
    how = _How(device, dtype, device_map, tokenizer, trust_remote_code, allow_pickle)
    return LanguageModel(*_load(x, name, how, (LanguageModel,)))


def load_encoder_decoder(
    x: object,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: str | dict[str, Any] | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    name: str | None = None,
) -> EncoderDecoder:
    """Loads a T5-like encoder-decoder, or takes one that is already loaded, in eval mode.

    Args:
        x: A hub id such as `"google/flan-t5-base"`, a folder with safetensors, the tiny random
            model `"tiny-random-t5"`, a `PreTrainedModel`, or an `EncoderDecoder`, which is
            returned as it is.
        device, dtype, device_map: As in `load_model`.
        tokenizer, trust_remote_code, allow_pickle, name: As in `load_model`.

    Returns:
        The model, whose parameters no longer require gradients.

    Raises:
        UnknownModelError: `x` is neither a known name nor a hub id, folder or file that exists.
        ModelError: The model cannot be fetched, trusted, read, or is no T5-like one.
        UsageError: `device` or `dtype` cannot be used.

    Example:
        >>> load_encoder_decoder("tiny-random-t5", device="cpu").n_encoder_layers
        4
    """
    if isinstance(x, EncoderDecoder):
        return x
    how = _How(device, dtype, device_map, tokenizer, trust_remote_code, allow_pickle)
    return EncoderDecoder(*_load(x, name, how, (EncoderDecoder,)))


def load_any(
    x: object,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: str | dict[str, Any] | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    name: str | None = None,
) -> LanguageModel | EncoderDecoder:
    """Loads what `load_model` or `load_encoder_decoder` loads, whichever kind `x` is of.

    Args:
        x: What either of them takes; an `EncoderDecoder` or `LanguageModel` is returned as it is.
        device, dtype, device_map: As in `load_model`.
        tokenizer, trust_remote_code, allow_pickle, name: As in `load_model`.

    Raises:
        UnknownModelError: `x` is neither a known name nor a hub id, folder or file that exists.
        ModelError: The model cannot be fetched, trusted, read, or is of neither kind.
        UsageError: `device` or `dtype` cannot be used.
    """
    if isinstance(x, (LanguageModel, EncoderDecoder)):
        return x
    how = _How(device, dtype, device_map, tokenizer, trust_remote_code, allow_pickle)
    hf, found, called, wrapped = _load(x, name, how, (LanguageModel, EncoderDecoder))
    view: _Kind = EncoderDecoder if _is_t5(hf.config.to_dict()) else LanguageModel
    return view(hf, found, called, wrapped)


@dataclass(frozen=True)
class _How:
    """Where a model is to go, as which numbers, and whom to trust."""

    device: str | torch.device | None
    dtype: str | torch.dtype | None
    device_map: str | dict[str, Any] | None
    tokenizer: PreTrainedTokenizerBase | None
    trust_remote_code: bool
    allow_pickle: bool


def _load(
    x: object, name: str | None, how: _How, kinds: tuple[_Kind, ...]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str, object | None]:
    """What a view of one of `kinds` is made of: the model, its tokenizer, its name, and `x`.

    The last is None where `x` is no wrapper around the model.
    """
    wrapped = None
    if isinstance(x, TokenModel):
        raise _wrong_kind(x.config.to_dict(), x.name, kinds)
    if isinstance(x, (str, Path)):
        hf, found, default_name = _Reader(how, kinds)(x)
    else:
        hf, found, default_name = _unwrap(x, how.tokenizer)
        _move(hf, how.device, how.dtype, how.device_map)
        wrapped = None if hf is x else x
    _check_kind(hf.config.to_dict(), default_name, kinds)
    _check_fast(found, default_name)
    hf.eval()  # type: ignore[no-untyped-call]
    hf.requires_grad_(False)
    return hf, found, name or default_name, wrapped


class _Reader:
    """Reads a model of one of some kinds from a name or a path."""

    def __init__(self, how: _How, kinds: tuple[_Kind, ...]) -> None:
        if how.device is not None and how.device_map is not None:
            raise UsageError("give either device or device_map, not both")
        self.device = device_of(how.device)
        self.dtype = _dtype(how.dtype, self.device if how.device_map is None else None)
        self.device_map = how.device_map
        self.tokenizer = how.tokenizer
        self.trust_remote_code = how.trust_remote_code
        self.allow_pickle = how.allow_pickle
        self.kinds = kinds

    def __call__(self, x: str | Path) -> _Loaded:
        text = str(x)
        path = Path(x).expanduser()
        if isinstance(x, str) and x in zoo():
            advice = f"Run `hopscope models pull {x} --force` to make it again."
            return self._checkpoint(pull(x), x, advice)
        if isinstance(x, str) and x in (*TINY_FAMILIES, *TINY_ENCODER_DECODERS):
            return self._placed(*build_tiny(x), x)
        scheme = x.partition(":")[0] if isinstance(x, str) else ""
        if scheme in RESOLVERS:
            folder, name = RESOLVERS[scheme](text, self.device)
            return self._checkpoint(folder, name, "Make it again.")
        if path.is_dir():
            self._check_folder(path)
            return self._checkpoint(path, path.resolve().name, "The files may be incomplete.")
        if path.is_file():
            return self._file(path)
        if isinstance(x, str) and HUB_ID.fullmatch(x) and not x.startswith("."):
            return self._checkpoint(x, x, _hub_advice(x))
        raise _unknown(text, self.kinds)

    def _file(self, path: Path) -> _Loaded:
        if path.suffix != ".gguf":
            raise ModelError(
                f"{path} is a file, but not a .gguf one; give the folder that holds config.json "
                "and the safetensors"
            )
        dtype = self.dtype if isinstance(self.dtype, torch.dtype) else torch.float32
        return self._placed(*read_gguf(path, dtype), path.stem)

    def _placed(
        self,
        hf: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
    ) -> _Loaded:
        if self.device_map is not None:
            raise UsageError(f"{name} takes a device, not a device_map")
        _to(hf, self.device, self.dtype)
        return hf, self.tokenizer or tokenizer, name

    def _check_folder(self, folder: Path) -> None:
        if not (folder / "config.json").is_file():
            gguf = sorted(path.name for path in folder.glob("*.gguf"))
            hint = f"; give the file itself: {folder / gguf[0]}" if gguf else ""
            raise ModelError(
                f"{folder} has no config.json, so it is not the folder of a saved model{hint}"
            )
        if any((folder / weights).is_file() for weights in SAFE_WEIGHTS):
            return
        pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
        if not pickled:
            raise ModelError(
                f"{folder} has a config.json but no weights; expected {' or '.join(SAFE_WEIGHTS)}"
            )
        if not self.allow_pickle:
            raise ModelError(_pickle_refusal(f"{folder} ({', '.join(pickled)})"))

    def _checkpoint(self, place: str | Path, name: str, advice: str) -> _Loaded:
        """Loads a folder or a hub id; a failure becomes a ModelError that ends in `advice`."""
        config = self._read(
            lambda: PreTrainedConfig.get_config_dict(str(place))[0], "configuration", place, advice
        )
        _check_code(config, name, self.trust_remote_code)
        _check_type(config, name, self.kinds)
        auto = AutoModelForSeq2SeqLM if _is_t5(config) else AutoModelForCausalLM
        hf = self._read(lambda: self._weights(auto, place), "weights", place, advice)
        tokenizer = self.tokenizer or self._read(
            lambda: AutoTokenizer.from_pretrained(
                str(place), trust_remote_code=self.trust_remote_code
            ),
            "tokenizer",
            place,
            advice,
        )
        return hf, tokenizer, name

    def _weights(self, auto: Any, place: str | Path) -> PreTrainedModel:
        read = auto.from_pretrained
        hf, report = read(
            str(place),
            dtype=self.dtype,
            device_map=self.device_map,
            use_safetensors=None if self.allow_pickle else True,
            trust_remote_code=self.trust_remote_code,
            output_loading_info=True,
        )
        missing = sorted(report["missing_keys"])
        if missing:
            raise ValueError(
                f"{len(missing)} parameters are not among the weights, such as {missing[0]}; "
                "they would be random"
            )
        if self.device_map is None:
            _to(hf, self.device, None)
        return hf  # type: ignore[no-any-return]

    def _read(self, read: Callable[[], Any], what: str, place: str | Path, advice: str) -> Any:
        try:
            return read()
        except torch.OutOfMemoryError:
            raise
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            reason = str(error).strip() or type(error).__name__
            if not self.allow_pickle and "safetensors" in reason and "appear to have" in reason:
                raise ModelError(_pickle_refusal(str(place))) from error
            raise ModelError(f"cannot read the {what} of {place}: {reason}\n{advice}") from error


def _unknown(text: str, kinds: tuple[_Kind, ...]) -> UnknownModelError:
    known = [*zoo(), *TINY_FAMILIES] if LanguageModel in kinds else []
    known += TINY_ENCODER_DECODERS if EncoderDecoder in kinds else []
    if "/" in text or "\\" in text or text.endswith(".gguf"):
        return UnknownModelError(
            f"{text!r} is no folder or file here, and no hub id of the form 'org/name'; check the "
            f"path, or give one of the names {', '.join(known)}"
        )
    near = difflib.get_close_matches(text, known, n=3)
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    return UnknownModelError(
        f"unknown model {text!r}.{meant} Known names: {', '.join(known)}. Also accepted: a hub id "
        "'org/name', a folder with safetensors, a .gguf file, or a loaded model."
    )


def _hub_advice(hub_id: str) -> str:
    same = [name for name, entry in zoo().items() if entry.hub_id == hub_id]
    near = f"; the same model comes without the hub as load_model({same[0]!r})" if same else ""
    return (
        "There is no folder of that name here, so it was taken for a hub id. "
        "Check the id and the network (for a gated model, also `hf auth login`), or give a folder "
        f"or .gguf file that is already here, or a name of the zoo ({', '.join(zoo())}){near}."
    )


def _pickle_refusal(where: str) -> str:
    return (
        f"{where} has pickled weights only, and a pickle can run any code when it is read. Convert "
        "them to safetensors, or, if you trust their source, pass allow_pickle=True."
    )


def _move(
    hf: PreTrainedModel,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    device_map: object,
) -> None:
    if device_map is not None:
        raise UsageError("device_map is for models that are loaded here; this one is loaded")
    wanted = None if dtype is None else _dtype(dtype, None)
    _to(hf, None if device is None else device_of(device), wanted)


def _to(hf: PreTrainedModel, device: torch.device | None, dtype: torch.dtype | str | None) -> None:
    """Moves and casts in place; `None`, and the dtype `"auto"`, leave things as they are."""
    if device is not None:
        torch.nn.Module.to(hf, device=device)
    if isinstance(dtype, torch.dtype):
        torch.nn.Module.to(hf, dtype=dtype)


def device_of(device: str | torch.device | None) -> torch.device:
    """The device that is asked for; CUDA by default if there is any.

    Raises:
        UsageError: for one that is unknown, or not here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"unknown device {device!r}; expected 'cpu', 'cuda', 'cuda:1'") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device {str(device)!r} is not here: torch sees {torch.cuda.device_count()} CUDA "
            "devices; use device='cpu'"
        )
    return chosen


def _dtype(dtype: str | torch.dtype | None, device: torch.device | None) -> torch.dtype | str:
    """The dtype asked for, or else float32 on the CPU and the checkpoint's own elsewhere."""
    if dtype is None:
        on_cpu = device.type == "cpu" if device is not None else not torch.cuda.is_available()
        return torch.float32 if on_cpu else "auto"
    if dtype == "auto":
        return "auto"
    chosen = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
        raise UsageError(f"unknown dtype {dtype!r}; expected 'float32', 'bfloat16' or 'float16'")
    return chosen


def _check_fast(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer of {name} is a slow one ({type(tokenizer).__name__}), which does not "
            "say where its tokens are in the text; pass a fast one as tokenizer="
        )
