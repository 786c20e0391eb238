"""Provides what is measured: models, prompts, cells, and the machine it runs on."""

from __future__ import annotations

import os
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import hopscope as hs
from hopscope.models.language_model import LanguageModel
from hopscope.models.tiny import build_tiny

T = TypeVar("T")
Where = Literal["t1", "t2"]

FIRST_HOP, TEMPLATE = "the country of {}", "The capital of {} is"
ENTITIES = {
    "the Eiffel Tower": "Paris",
    "the Colosseum": "Rome",
    "the Brandenburg Gate": "Berlin",
    "the Kremlin": "Moscow",
    "the Acropolis": "Athens",
    "the Taj Mahal": "New Delhi",
    "the Alhambra": "Madrid",
    "Machu Picchu": "Lima",
    "the Forbidden City": "Beijing",
    "Angkor Wat": "Phnom Penh",
    "the Blue Mosque": "Ankara",
    "Chichen Itza": "Mexico City",
    "the Sydney Opera House": "Canberra",
    "the Statue of Liberty": "Washington",
    "Mount Fuji": "Tokyo",
    "Stonehenge": "London",
}
DEMONSTRATIONS = {
    "the Little Mermaid": "Copenhagen",
    "the Atomium": "Brussels",
    "Petra": "Amman",
    "Table Mountain": "Pretoria",
}

_LLAMA3 = {
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama-8b": {
        **_LLAMA3,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "llama-1b": {
        **_LLAMA3,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "tie_word_embeddings": True,
    },
}
TINY = "tiny"


class Pair(NamedTuple):
    """A cell: the output of block `source` replaces that of block `target`."""

    source: int
    target: int


class Subject(NamedTuple):
    """A prompt as tokens, and the token that is patched, counted from the start."""

    ids: tuple[int, ...]
    position: int


@dataclass(frozen=True)
class Task:
    """What every contender does.

    Attributes:
        model: the model.
        subjects: the prompts; all but the paper's batching take the first one alone.
        layers: the layers of the grid.
        answer_tokens: the first tokens of the first prompt's answer.
        max_new_tokens: how many tokens are generated.
    """

    model: LanguageModel
    subjects: tuple[Subject, ...]
    layers: tuple[int, ...]
    answer_tokens: tuple[int, ...]
    max_new_tokens: int = 10

    @property
    def subject(self) -> Subject:
        """The prompt."""
        return self.subjects[0]

    @property
    def pairs(self) -> list[Pair]:
        """The cells that are asked for: source above target."""
        return [pair for pair in self.grid if pair.source > pair.target]

    @property
    def grid(self) -> list[Pair]:
        """All pairs of layers, as the paper's code runs them."""
        return [Pair(source, target) for source in self.layers for target in self.layers]


def build_model(
    name: str, config: str | None, device: str | None, dtype: str | None
) -> LanguageModel:
    """A model of the zoo, or one of random weights that is made on the device itself.

    Args:
        name: what `hopscope.load_model` takes.
        config: a name of `CONFIGS`, or `tiny`; goes before `name`.
        device: such as `cuda`; hopscope's default if None.
        dtype: such as `bfloat16`; hopscope's default if None.
    """
    if config == TINY:
        return hs.load_model("tiny-random-llama", device=device, dtype=dtype)
    if config is None:
        return hs.load_model(name, device=device, dtype=dtype)
    torch.manual_seed(0)
    with torch.device(device or "cpu"):
        hf = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            LlamaConfig(**CONFIGS[config]), dtype=getattr(torch, dtype or "float32")
        )
    return hs.load_model(hf, tokenizer=build_tiny("tiny-random-llama")[1], name=config)


def real_subjects(
    model: LanguageModel, where: Where, few_shot: bool, n: int
) -> tuple[tuple[Subject, ...], tuple[int, ...]]:
    """Prompts such as "The capital of the country of the Eiffel Tower is".

    Args:
        model: gives the tokenizer.
        where: the patched token: the last of "the country of ..." (`t1`) or of the prompt (`t2`).
        few_shot: put four demonstrations before it, a line each.
        n: how many prompts.

    Returns:
        The prompts, and the first token of the first one's answer.
    """
    lines = [
        f"{TEMPLATE.format(FIRST_HOP.format(entity))} {answer}\n"
        for entity, answer in DEMONSTRATIONS.items()
    ]
    before = "".join(lines) if few_shot else ""
    chosen = list(ENTITIES.items())[:n]
    subjects = [
        subject_of(model, before + TEMPLATE.format(hop), hop if where == "t1" else None)
        for hop in (FIRST_HOP.format(entity) for entity, _ in chosen)
    ]
    return tuple(subjects), model.first_tokens([chosen[0][1]])


def subject_of(model: LanguageModel, text: str, phrase: str | None) -> Subject:
    """A prompt, patched at the last token of its last `phrase`, or of the whole if None.

    Raises:
        ValueError: if the phrase is not in the prompt.
    """
    encoded = model.encode(text)
    if phrase is None:
        return Subject(encoded.ids, len(encoded) - 1)
    end = text.rindex(phrase) + len(phrase)
    return Subject(
        encoded.ids, max(i for i, (start, _) in enumerate(encoded.offsets) if start < end)
    )


def random_subjects(
    model: LanguageModel, where: Where, few_shot: bool, n: int
) -> tuple[tuple[Subject, ...], tuple[int, ...]]:
    """Seeded tokens, for models that know no words; about as long as the real prompts."""
    length = 60 if few_shot else 11
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(3, min(model.vocab_size, 512), (n + 1, length), generator=draw).tolist()
    from_end = 2 if where == "t1" else 1
    prompts = [tuple(row[: length - i % 3]) for i, row in enumerate(rows[:-1])]
    return tuple(Subject(ids, len(ids) - from_end) for ids in prompts), (int(rows[-1][0]),)


def sample_of(
    cells: Sequence[Pair], size: int | None, parts: int, seed: int = 0
) -> list[list[Pair]]:
    """A seeded sample of the cells (all if `size` is None), dealt into parts."""
    size = len(cells) if size is None else min(size, len(cells))
    chosen = random.Random(seed).sample(list(cells), size)
    return [part for part in (chosen[i::parts] for i in range(parts)) if part]


def timed(run: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """What `run` returns, and the seconds it took until the device was done."""
    synchronise(device)
    start = time.perf_counter()
    result = run()
    synchronise(device)
    return result, time.perf_counter() - start


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def load_average() -> float | None:
    """How many processes wanted a core in the last minute, where the system says."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def machine(model: LanguageModel) -> dict[str, Any]:
    """What the numbers depend on."""
    packages = ("torch", "transformers", "transformer-lens", "nnsight", "hopscope")
    device = model.device
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": str(model.dtype).removeprefix("torch."),
        "python": platform.python_version(),
        **{name.replace("-", "_"): version(name) for name in packages},
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
