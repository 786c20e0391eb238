"""Provides `load_model`: loads a LanguageModel by name, hub id, folder, file or model object.

`load_encoder_decoder` does the same for T5-like models, and `load_any` for both.
"""

import logging
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.quantization_config import QuantizationConfigMixin

from hopscope.errors import (
    ModelError,
    UnknownModelError,
    UntrustedModelError,
    UnusableModelError,
    UsageError,
    did_you_mean,
    of_type,
)
from hopscope.models.cpu_speed import advise_on_dtype
from hopscope.models.encoder_decoder import EncoderDecoder
from hopscope.models.gguf import read_gguf
from hopscope.models.hub import SAFE_WEIGHTS, HubEntry, has_only_pickles, hub_models
from hopscope.models.kept_digests import kept_digests, stamp_of
from hopscope.models.kinds import (
    LoadedParts,
    ModelClass,
    check_class,
    check_complete,
    check_model_type,
    check_remote_code,
    is_t5,
    reads_images,
    wrong_class_error,
)
from hopscope.models.language_model import LanguageModel
from hopscope.models.offload import check_numbers
from hopscope.models.quantization import (
    check_dense,
    check_quantized,
    keep_packing,
    quantization_config,
)
from hopscope.models.reference import ModelReference
from hopscope.models.text_bars import text_bars
from hopscope.models.tiny import TINY_ENCODER_DECODERS, TINY_FAMILIES, build_tiny
from hopscope.models.token_model import TokenModel
from hopscope.models.wrapped import unwrap
from hopscope.models.zoo import pull, zoo

logger = logging.getLogger(__name__)
M = TypeVar("M", bound=TokenModel)

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
LARGE = 300_000_000
"""Parameters of a model with which it matters which dtype is faster."""
RESOLVERS = {"world": "hopscope.worlds.load:model_folder"}
"""By scheme, as in `world:NAME`, the function that finds a model's folder and name. Like entry
points they are given by their address, and imported when the scheme is used."""
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def load_model(
    x: object,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: str | dict[str, Any] | None = None,
    *,
    quantization: str | QuantizationConfigMixin | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    name: str | None = None,
) -> LanguageModel:
    """Loads a causal language model, or wraps one that is already loaded, in eval mode.

    Args:
        x: One of: a name of the zoo (`"smollm2-135m"`, fetched on first use), of a model of the
            hub (`"llama-3.1-8b"`; see `hopscope models list`) or of a tiny random model
            (`"tiny-random-llama"`); a world (`"world:two-hop-looped"`, seed 0, or
            `"world:two-hop-looped@1"`; trained on first use unless it comes with hopscope); a hub
            id (`"org/name"`); a folder with safetensors; a `.gguf` file; a `PreTrainedModel`; a
            TransformerLens `TransformerBridge`; an nnsight model; a peft model, whose active
            adapters count; or a `LanguageModel`, which is returned as it is. A folder with a
            `config.json` comes before a name that it shares.
        device: Device of the model. By default a model that is loaded here is put on CUDA if
            available and on the CPU otherwise, and a model that is already loaded is not moved.
        dtype: Such as `torch.bfloat16`, `"bfloat16"`, or `"auto"` for the dtype of the checkpoint.
            By default float32 on the CPU and the dtype of the checkpoint on CUDA; a model that is
            already loaded is not converted.
        device_map: As for `from_pretrained`, for a model spread over several devices; instead of
            `device`.
        quantization: How weights are quantised while the model is loaded: `"nf4"` (4 bits, by
            bitsandbytes), `"int8"` or `"fp8"` (8 bits, by torchao), or a configuration of
            transformers, such as `BitsAndBytesConfig(...)`. By default they stay as they are; a
            checkpoint that comes quantised is read as transformers reads it.
        tokenizer: The tokenizer to use instead of the model's own.
        trust_remote_code: Whether to run the Python code of a checkpoint that needs it.
        allow_pickle: Whether to read pickled weights (`*.bin`, `*.pt`) if there are no safetensors.
        name: Name of the model in results; by default its name, hub id, or the name of the folder.

    Returns:
        The model. Its parameters do not require gradients.

    Raises:
        UnknownModelError: If `x` is neither a known name nor an existing hub id, folder or file.
        UntrustedModelError: If it needs code that is not trusted, or has pickled weights only.
        UnusableModelError: If `x` is no model, is not a causal language model, or lies in a folder
            or file that cannot be read.
        ModelError: If the model cannot be fetched or quantised, or has parts that are not known.
        UsageError: If `device`, `dtype` or `quantization` cannot be used.

    Example:
        >>> load_model("tiny-random-llama", device="cpu").n_layers
        4
    """
    if isinstance(x, LanguageModel):
        return x
    options = _LoadOptions(
        device, dtype, device_map, quantization, tokenizer, trust_remote_code, allow_pickle
    )
    return _loaded(LanguageModel(*_load(x, name, options, (LanguageModel,))), x, name, options)


def load_encoder_decoder(
    x: object,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: str | dict[str, Any] | None = None,
    *,
    quantization: str | QuantizationConfigMixin | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    name: str | None = None,
) -> EncoderDecoder:
    """Loads a T5-like encoder-decoder, or wraps one that is already loaded, in eval mode.

    Args:
        x: A hub id such as `"google/flan-t5-base"`, a folder with safetensors, the tiny random
            model `"tiny-random-t5"`, a `PreTrainedModel`, or an `EncoderDecoder`, which is
            returned as it is.
        device, dtype, device_map, quantization: As in `load_model`.
        tokenizer, trust_remote_code, allow_pickle, name: As in `load_model`.

    Returns:
        The model. Its parameters do not require gradients.

    Raises:
        UnknownModelError: If `x` is neither a known name nor an existing hub id, folder or file.
        UntrustedModelError: If it needs code that is not trusted, or has pickled weights only.
        UnusableModelError: If `x` is no model, is not T5-like, or lies in a folder that cannot be
            read.
        ModelError: If the model cannot be fetched or quantised, or has parts that are not known.
        UsageError: If `device`, `dtype` or `quantization` cannot be used.

    Example:
        >>> load_encoder_decoder("tiny-random-t5", device="cpu").n_encoder_layers
        4
    """
    if isinstance(x, EncoderDecoder):
        return x
    options = _LoadOptions(
        device, dtype, device_map, quantization, tokenizer, trust_remote_code, allow_pickle
    )
    return _loaded(EncoderDecoder(*_load(x, name, options, (EncoderDecoder,))), x, name, options)


def load_any(
    x: object,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: str | dict[str, Any] | None = None,
    *,
    quantization: str | QuantizationConfigMixin | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    name: str | None = None,
) -> LanguageModel | EncoderDecoder:
    """Loads a model of either kind, as `load_model` or `load_encoder_decoder` does.

    Args:
        x: Anything that either function accepts.
        device, dtype, device_map, quantization: As in `load_model`.
        tokenizer, trust_remote_code, allow_pickle, name: As in `load_model`.

    Returns:
        A `LanguageModel`, or an `EncoderDecoder` for a T5-like model.

    Raises:
        UnknownModelError: If `x` is neither a known name nor an existing hub id, folder or file.
        UntrustedModelError: If it needs code that is not trusted, or has pickled weights only.
        UnusableModelError: If `x` is no model, is of neither kind, or lies in a folder or file that
            cannot be read.
        ModelError: If the model cannot be fetched or quantised, or has parts that are not known.
        UsageError: If `device`, `dtype` or `quantization` cannot be used.
    """
    if isinstance(x, (LanguageModel, EncoderDecoder)):
        return x
    options = _LoadOptions(
        device, dtype, device_map, quantization, tokenizer, trust_remote_code, allow_pickle
    )
    parts = _load(x, name, options, (LanguageModel, EncoderDecoder))
    model_class: ModelClass = EncoderDecoder if is_t5(parts[0].config.to_dict()) else LanguageModel
    return _loaded(model_class(*parts), x, name, options)


def load_tokenizer(reference: ModelReference) -> PreTrainedTokenizerBase:
    """The tokenizer of a model whose weights are not read, but for those of a GGUF file.

    Args:
        reference: what the model is loaded by.

    Raises:
        ModelError, UsageError: As `load_model`.
    """
    own = _LoadOptions(
        "cpu", None, None, None, None, reference.trust_remote_code, reference.allow_pickle
    )
    _, tokenizer, name = _TokenizerReader(own, (LanguageModel, EncoderDecoder))(reference.source)
    _check_fast(tokenizer, name)
    return tokenizer


@dataclass(frozen=True)
class _LoadOptions:
    """The keyword arguments of `load_model` other than `name`."""

    device: str | torch.device | None
    dtype: str | torch.dtype | None
    device_map: str | dict[str, Any] | None
    quantization: str | QuantizationConfigMixin | None
    tokenizer: PreTrainedTokenizerBase | None
    trust_remote_code: bool
    allow_pickle: bool


def _loaded(model: M, x: object, name: str | None, options: _LoadOptions) -> M:
    """A model that knows what it was loaded by, where that can be told."""
    told = options.quantization is None or isinstance(options.quantization, str)
    if isinstance(x, (str, Path)) and options.tokenizer is None and told:
        dtype = options.dtype
        if dtype is None and options.quantization is None:
            dtype = model.dtype
        model.reference = ModelReference.of(
            x,
            name=name,
            dtype=None if dtype is None else str(dtype).removeprefix("torch."),
            quantization=options.quantization,
            trust_remote_code=options.trust_remote_code,
            allow_pickle=options.allow_pickle,
        )
        how = {"dtype": str(model.dtype), "quantization": model.quantization}
        stamp = stamp_of(str(getattr(model.hf.config, "_name_or_path", "")), how)
        if stamp is not None:
            model.kept_digests = partial(kept_digests, stamp)
    return model


def _load(
    x: object, name: str | None, options: _LoadOptions, classes: tuple[ModelClass, ...]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str, object | None]:
    """Load the arguments of a model class: the model, its tokenizer, its name, and its wrapper.

    The wrapper is `x`, or None if `x` is not a wrapper around the model.
    """
    wrapped = None
    of_type("name", name, str | NoneType)
    of_type("tokenizer", options.tokenizer, PreTrainedTokenizerBase | NoneType)
    of_type("quantization", options.quantization, str | QuantizationConfigMixin | NoneType)
    if isinstance(x, TokenModel):
        raise wrong_class_error(x.config.to_dict(), x.name, classes)
    if isinstance(x, (str, Path)):
        hf, tokenizer, default_name = _Reader(options, classes)(x)
        if options.quantization is not None:
            check_quantized(hf, default_name)
    else:
        hf, tokenizer, default_name = unwrap(x, options.tokenizer)
        _check_loaded(hf, default_name, options)
        _move(hf, options.device, options.dtype)
        wrapped = None if hf is x else x
    check_class(hf.config.to_dict(), default_name, classes)
    _check_fast(tokenizer, default_name)
    for weight, tensor in hf.named_parameters():
        check_numbers(hf, weight, tensor)
    keep_packing(hf)
    hf.eval()  # type: ignore[no-untyped-call]
    hf.requires_grad_(False)
    quantized = getattr(hf, "is_quantized", False)
    if hf.device.type == "cpu" and not quantized and hf.num_parameters() > LARGE:
        advise_on_dtype(default_name, hf.dtype)
    return hf, tokenizer, name or default_name, wrapped


class _Reader:
    """Loads a model of one of the given classes by its name or path."""

    def __init__(self, options: _LoadOptions, classes: tuple[ModelClass, ...]) -> None:
        if options.device is not None and options.device_map is not None:
            raise UsageError("give either device or device_map, not both")
        self.device = device_of(options.device)
        self.dtype = _dtype(options.dtype, self.device if options.device_map is None else None)
        self.device_map = options.device_map
        self.quantization = options.quantization
        quantization_config(options.quantization, torch.float32)  # fail before anything is fetched
        self.tokenizer = options.tokenizer
        self.trust_remote_code = options.trust_remote_code
        self.allow_pickle = options.allow_pickle
        self.classes = classes

    def __call__(self, x: str | Path) -> LoadedParts:
        text = str(x)
        if not text.strip():
            raise _unknown(text, self.classes)
        path = Path(x).expanduser()
        try:
            is_folder = (path / "config.json").is_file()
        except (OSError, ValueError):  # a name that is too long, for instance
            raise _unknown(text, self.classes) from None
        if is_folder:
            return self._folder(path)
        if isinstance(x, str) and x in zoo():
            advice = f"Run `hopscope models pull {x} --force` to restore it."
            return self._checkpoint(pull(x), x, advice)
        if isinstance(x, str) and x in hub_models():
            entry = hub_models()[x]
            return self._checkpoint(entry.hub_id, x, _hub_model_advice(entry))
        if isinstance(x, str) and x in (*TINY_FAMILIES, *TINY_ENCODER_DECODERS):
            return self._placed(*build_tiny(x), x)
        scheme = x.partition(":")[0] if isinstance(x, str) else ""
        if scheme in RESOLVERS:
            folder, name = pkgutil.resolve_name(RESOLVERS[scheme])(text, self.device)
            return self._checkpoint(folder, name, "Delete the folder and load it again.")
        if path.is_dir():
            return self._folder(path)
        if path.is_file():
            return self._file(path)
        if isinstance(x, str) and HUB_ID.fullmatch(x) and not x.startswith("."):
            return self._checkpoint(x, x, _hub_advice(x))
        raise _unknown(text, self.classes)

    def _folder(self, path: Path) -> LoadedParts:
        """Load a folder with weights."""
        self._check_folder(path)
        advice = "Check that the folder has all files."
        return self._checkpoint(path, path.resolve().name, advice, UnusableModelError)

    def _file(self, path: Path) -> LoadedParts:
        """Load a GGUF file."""
        if path.suffix != ".gguf":
            raise UnusableModelError(
                f"{path} is a file, but not a .gguf one; give the folder that holds config.json "
                "and the safetensors"
            )
        dtype = self.dtype if isinstance(self.dtype, torch.dtype) else torch.float32
        try:
            parts = read_gguf(path, dtype)
        except ModelError as error:
            raise UnusableModelError(str(error)) from error
        return self._placed(*parts, path.stem)

    def _placed(
        self,
        hf: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
    ) -> LoadedParts:
        """Move a model that was built on the CPU to its device and dtype, or quantise it there."""
        if self.device_map is not None:
            raise UsageError(f"{name} cannot be loaded with device_map; use device instead")
        if self.quantization is None:
            _to(hf, self.device, self.dtype)
        else:
            dtype = hf.dtype if isinstance(self.dtype, str) else self.dtype
            hf = type(hf).from_pretrained(
                None,
                config=hf.config,
                state_dict=hf.state_dict(),
                dtype=dtype,
                device_map=self.device,
                quantization_config=quantization_config(self.quantization, dtype),
            )
        return hf, self.tokenizer or tokenizer, name

    def _check_folder(self, folder: Path) -> None:
        """Raise a ModelError unless the folder has a configuration and weights that may be read."""
        if not (folder / "config.json").is_file():
            gguf = sorted(path.name for path in folder.glob("*.gguf"))
            hint = f"; give the file itself: {folder / gguf[0]}" if gguf else ""
            raise UnusableModelError(
                f"{folder} has no config.json, so that it is not the folder of a saved model{hint}"
            )
        if any((folder / weights).is_file() for weights in SAFE_WEIGHTS):
            return
        pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
        if not pickled:
            raise UnusableModelError(
                f"{folder} has a config.json but no weights; expected {' or '.join(SAFE_WEIGHTS)}"
            )
        if not self.allow_pickle:
            raise _pickle_refusal(f"{folder} ({', '.join(pickled)})")

    def _checkpoint(
        self,
        place: str | Path,
        name: str,
        advice: str,
        failure: type[ModelError] = ModelError,
    ) -> LoadedParts:
        """Load a folder or a hub id; what fails raises `failure`, which ends in `advice`."""
        read = partial(self._read, place=place, advice=advice, failure=failure)
        config = read(lambda: _config_of(place), "configuration")
        check_remote_code(config, name, self.trust_remote_code)
        check_model_type(config, name, self.classes)
        if self.quantization is not None:
            check_dense(config, name)
        auto: Any = AutoModelForImageTextToText if reads_images(config) else AutoModelForCausalLM
        auto = AutoModelForSeq2SeqLM if is_t5(config) else auto
        hf = read(lambda: self._weights(auto, place, config), "weights")
        tokenizer = self.tokenizer or read(
            lambda: AutoTokenizer.from_pretrained(
                str(place), trust_remote_code=self.trust_remote_code
            ),
            "tokenizer",
        )
        return hf, tokenizer, name

    def _weights(self, auto: Any, place: str | Path, config: dict[str, Any]) -> PreTrainedModel:
        """Load the weights; a ValueError if some are missing, or have no place in the model."""
        own = config.get("dtype") or config.get("torch_dtype") or "float32"
        dtype = getattr(torch, own) if isinstance(self.dtype, str) else self.dtype
        quantized = quantization_config(self.quantization, dtype)
        also = {} if quantized is None else {"quantization_config": quantized}  # None drops its own
        with text_bars():
            hf, report = auto.from_pretrained(
                str(place),
                dtype=self.dtype,
                device_map=self.device_map or self.device,
                use_safetensors=None if self.allow_pickle else True,
                trust_remote_code=self.trust_remote_code,
                output_loading_info=True,
                **also,
            )
        check_complete(hf, report)
        return hf  # type: ignore[no-any-return]

    def _read(
        self,
        read: Callable[[], Any],
        part: str,
        *,
        place: str | Path,
        advice: str,
        failure: type[ModelError],
    ) -> Any:
        """Call `read`, and turn its error into a `failure` that names the part and place."""
        try:
            return read()
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # what a damaged file breaks in the readers has many types
            reason = str(error).strip() or type(error).__name__
            if isinstance(error, ImportError):  # the reason names what is to be installed
                failure = ModelError
                advice = "Install that library, or take the checkpoint that this one was made from."
            if part == "weights" and not self.allow_pickle and has_only_pickles(str(place)):
                raise _pickle_refusal(str(place)) from error
            raise failure(f"cannot read the {part} of {place}: {reason}\n{advice}") from error


class _TokenizerReader(_Reader):
    """Reads a checkpoint without its weights."""

    def _weights(self, auto: Any, place: str | Path, config: dict[str, Any]) -> Any:
        """Read nothing."""


def _config_of(place: str | Path) -> dict[str, Any]:
    """Return the configuration of a folder or hub id; a ValueError if it is no object."""
    config: Any = PreTrainedConfig.get_config_dict(str(place))[0]
    if not isinstance(config, dict):
        raise ValueError(f"config.json holds a {type(config).__name__}, not an object with fields")
    if not isinstance(config.get("model_type", ""), str):
        raise ValueError(f"the model_type of config.json is {config['model_type']!r}, not a name")
    return config


def _unknown(text: str, classes: tuple[ModelClass, ...]) -> UnknownModelError:
    """Return the error for a name that cannot be resolved."""
    known = [*zoo(), *TINY_FAMILIES] if LanguageModel in classes else []
    known += TINY_ENCODER_DECODERS if EncoderDecoder in classes else []
    if "/" in text or "\\" in text or text.endswith(".gguf"):
        return UnknownModelError(
            f"{text!r} is neither an existing folder or file nor a hub id 'org/name'; check the "
            f"path, or use one of the names {', '.join(known)}"
        )
    return UnknownModelError(
        f"unknown model {text!r}: choose one of {', '.join(known)}, or give a hub id 'org/name', a "
        f"folder with safetensors, a .gguf file, or a loaded model"
        f"{did_you_mean(text, [*known, *hub_models()])}"
    )


def _hub_model_advice(entry: HubEntry) -> str:
    """Return what to do if a model of the hub that has a short name cannot be loaded."""
    return (
        f"{entry.name} is {entry.hub_id} on the Hugging Face hub ({entry.licence}). Check the "
        "network; if the model is gated, accept its licence on its page there and run `hf auth "
        f"login`. Without network, run `hf download {entry.hub_id}` elsewhere and give the folder, "
        f"or use a model that comes in packages ({', '.join(zoo())})."
    )


def _hub_advice(hub_id: str) -> str:
    """Return what to do if a hub id cannot be loaded."""
    same = [name for name, entry in zoo().items() if entry.hub_id == hub_id]
    hint = f"; load_model({same[0]!r}) loads the same model without the hub" if same else ""
    return (
        "There is no local folder of that name, so it was treated as a hub id. "
        "Check the id and the network (for a gated model, also `hf auth login`), or use a local "
        f"folder or .gguf file, or a name of the zoo ({', '.join(zoo())}){hint}."
    )


def _pickle_refusal(where: str) -> UntrustedModelError:
    return UntrustedModelError(
        f"{where} has only pickled weights, and a pickle can run any code when it is read. Convert "
        "them to safetensors, or pass allow_pickle=True if you trust their source."
    )


def _check_loaded(hf: PreTrainedModel, name: str, options: _LoadOptions) -> None:
    """Raise a UsageError for what cannot be done to a model that is already loaded."""
    if options.device_map is not None:
        raise UsageError(
            "device_map cannot be used for a model that is already loaded; use device instead"
        )
    if options.quantization is not None:
        raise UsageError(
            f"{name} is already loaded, and weights are quantised while they are read: give "
            "quantization_config to from_pretrained, or load_model the name or folder"
        )
    if options.dtype is not None and getattr(hf, "hf_quantizer", None) is not None:
        raise UsageError(
            f"{name} is quantised, so that it cannot be converted to another dtype; leave dtype "
            "out, or give it when the weights are read"
        )


def _move(
    hf: PreTrainedModel,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
) -> None:
    """Move and convert a model that is already loaded, in place."""
    _to(
        hf,
        None if device is None else device_of(device),
        None if dtype is None else _dtype(dtype, None),
    )


def _to(hf: PreTrainedModel, device: torch.device | None, dtype: torch.dtype | str | None) -> None:
    """Move and convert a model in place; None and the dtype `"auto"` change nothing.

    Buffers that no checkpoint has, such as rotary frequencies, keep their dtype, as they do when a
    checkpoint is read in a dtype: positions would be rounded with them.
    """
    if device is not None:
        torch.nn.Module.to(hf, device=device)
    if isinstance(dtype, torch.dtype):
        computed = [
            (module, name, module.get_buffer(name))
            for module in hf.modules()
            for name in module._non_persistent_buffers_set
            if module._buffers.get(name) is not None
        ]
        torch.nn.Module.to(hf, dtype=dtype)
        for module, name, buffer in computed:
            module._buffers[name] = buffer


def device_of(device: str | torch.device | None) -> torch.device:
    """Return a device as a `torch.device`; by default CUDA if available, or else the CPU.

    Raises:
        UsageError: if the device is unknown or not available.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UsageError(
            f"unknown device {device!r}; expected 'cpu', 'cuda' or such as 'cuda:1'"
        ) from error
    if chosen.type == "meta":
        raise UsageError("on the device 'meta' a model has no numbers; use 'cpu' or 'cuda'")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device {str(device)!r} is not available: there are {torch.cuda.device_count()} CUDA "
            "devices; use device='cpu'"
        )
    return chosen


def _dtype(dtype: str | torch.dtype | None, device: torch.device | None) -> torch.dtype | str:
    """Return a dtype; by default float32 on the CPU, and that of the checkpoint elsewhere."""
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
    """Raise a ModelError for a tokenizer that gives no character offsets."""
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer of {name} is a slow one ({type(tokenizer).__name__}), which does not "
            "give character offsets; pass a fast tokenizer as tokenizer="
        )
