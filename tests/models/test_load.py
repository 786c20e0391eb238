"""Tests of load_model on everything it takes and everything it refuses, and of the tiny models."""

import functools
import itertools
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    PreTrainedModel,
    T5Config,
)

from hopscope.errors import (
    ModelError,
    UnknownModelError,
    UntrustedModelError,
    UnusableModelError,
    UsageError,
)
from hopscope.models import cpu_speed, hub
from hopscope.models.gguf import read_gguf
from hopscope.models.language_model import LanguageModel
from hopscope.models.load import _dtype, device_of, load_model
from hopscope.models.tiny import SLIDING_WINDOW, TINY_FAMILIES, build_tiny

PROMPTS = (
    "The capital of the country of Kyoto is",
    "The author of the novel Hamlet was born in",
    "The spouse of the performer of the song Imagine is",
    "The currency of the country of Berlin is",
)
LLAMA = "tiny-random-llama"
BOS_FAMILIES = ("tiny-random-mistral", "tiny-random-gemma2", "tiny-random-gemma3")
WINDOWED = BOS_FAMILIES

every_family = pytest.mark.parametrize("family", TINY_FAMILIES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved tiny Llama with its tokenizer."""
    return save(LLAMA, tmp_path / "my-llama")


def save(family: str, folder: Path) -> Path:
    model, tokenizer = build_tiny(family)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def logits(hf: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return hf(ids).logits


def same_as_built(model: LanguageModel, family: str) -> bool:
    hf, tokenizer = build_tiny(family)
    ids = tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    assert model.encode(PROMPTS[0]).ids == tuple(ids[0].tolist())
    # TransformerLens sets eager attention, which rounds otherwise than sdpa.
    return torch.allclose(logits(model.hf, ids), logits(hf, ids), atol=1e-4)


@every_family
def test_tiny_model_depends_on_its_seed_alone(family: str) -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, _ = build_tiny(family, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(8)
    again, other = build_tiny(family, seed=1)[0], build_tiny(family, seed=2)[0]
    for (name, a), b in zip(first.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert any(
        not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True)
    )


@every_family
def test_tiny_model_says_different_things(family: str) -> None:
    model, tokenizer = build_tiny(family)
    said = set()
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        out = model.generate(ids, max_new_tokens=6, do_sample=False)
        said.add(tuple(out[0, ids.shape[1] :].tolist()))
    assert len(said) == len(PROMPTS)


def replace_output(
    _: object, __: object, output: torch.Tensor, *, position: int, vector: torch.Tensor
) -> torch.Tensor:
    patched = output.clone()
    patched[:, position] = vector
    return patched


@every_family
def test_patching_a_tiny_model_changes_what_it_says(family: str) -> None:
    model, tokenizer = build_tiny(family)
    layers = LanguageModel(model, tokenizer, family).layers
    changed = 0
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            clean = model(ids, output_hidden_states=True)

        for target, position in itertools.product((0, 1), (-4, -3, -2)):
            vector = clean.hidden_states[3][:, position]
            hook = functools.partial(replace_output, position=position, vector=vector)
            handle = layers[target].register_forward_hook(hook)
            changed += int(logits(model, ids)[0, -1].argmax() != clean.logits[0, -1].argmax())
            handle.remove()
    assert changed > 0


@every_family
def test_sliding_window_bites(family: str) -> None:
    """In the families with windows, a far token no longer reaches a layer that has one."""
    model, tokenizer = build_tiny(family)
    first_layer = LanguageModel(model, tokenizer, family).layers[0]
    seen: list[torch.Tensor] = []
    first_layer.register_forward_hook(lambda _, __, output: seen.append(output))
    ids = torch.arange(100, 100 + SLIDING_WINDOW + 1)[None]
    for first_token in (50, 60):
        ids[0, 0] = first_token
        logits(model, ids)
    a, b = (hidden[0, -1] for hidden in seen)
    assert torch.equal(a, b) == (family in WINDOWED)


@every_family
def test_tiny_tokenizer_round_trips_any_text(family: str) -> None:
    _, tokenizer = build_tiny(family)
    assert tokenizer.is_fast
    for text in ("São Tomé, Zürich", "日本語 🙂\n\n\tx", "  two  spaces ", "Ünïcode’s é́"):
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    has_bos = family in BOS_FAMILIES
    assert (tokenizer("a").input_ids[0] == tokenizer.bos_token_id) == has_bos
    assert len(tokenizer(" Johannesburg", add_special_tokens=False).input_ids) > 2
    row = tokenizer("of Zürich", return_offsets_mapping=True)
    assert row["offset_mapping"][-1] == (8, 9)


def test_unknown_tiny_family_names_the_known_ones() -> None:
    with pytest.raises(UnknownModelError, match=LLAMA):
        build_tiny("tiny-random-bert")


@every_family
def test_tiny_name(family: str) -> None:
    model = load_model(family, device="cpu")
    assert isinstance(model, LanguageModel)
    assert model.name == family
    assert model.n_layers == 4
    assert same_as_built(model, family)


@every_family
def test_folder(family: str, tmp_path: Path) -> None:
    place = save(family, tmp_path / "saved")
    for given in (place, str(place)):
        model = load_model(given, device="cpu")
        assert model.name == "saved"
        assert model.dtype == torch.float32
        # Gemma 2 caps its attention logits, which sdpa cannot do.
        usual = "eager" if family == "tiny-random-gemma2" else "sdpa"
        assert model.hf.config._attn_implementation == usual
        assert same_as_built(model, family)


def test_loaded_models_are_in_eval_mode_without_gradients(folder: Path) -> None:
    hf, tokenizer = build_tiny(LLAMA)
    hf.train()
    hf.requires_grad_(True)
    for model in (load_model(hf, tokenizer=tokenizer), load_model(folder), load_model(LLAMA)):
        assert not model.hf.training
        assert not any(parameter.requires_grad for parameter in model.hf.parameters())


def test_pretrained_model_with_a_tokenizer() -> None:
    hf, tokenizer = build_tiny(LLAMA)
    model = load_model(hf, tokenizer=tokenizer, name="mine")
    assert model.hf is hf
    assert model.tokenizer is tokenizer
    assert model.name == "mine"


def test_pretrained_model_knows_where_its_tokenizer_is(folder: Path) -> None:
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model = load_model(hf)
    assert model.name == "my-llama"
    assert same_as_built(model, LLAMA)


def test_pretrained_model_without_a_tokenizer() -> None:
    hf, _ = build_tiny(LLAMA)
    with pytest.raises(ModelError, match="tokenizer="):
        load_model(hf)


def test_language_model_comes_back_as_it_is() -> None:
    model = load_model(LLAMA)
    assert load_model(model) is model


@every_family
def test_transformer_bridge(family: str) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    hf, tokenizer = build_tiny(family)
    bridge = TransformerBridge.boot_transformers(family, hf_model=hf, tokenizer=tokenizer)
    model = load_model(bridge)
    assert model.wrapped is bridge
    assert same_as_built(model, family)


@every_family
def test_nnsight_model(family: str) -> None:
    from nnsight import TransformersModel

    hf, tokenizer = build_tiny(family)
    wrapper = TransformersModel(hf, tokenizer=tokenizer)
    model = load_model(wrapper)
    assert model.wrapped is wrapper
    assert model.hf is hf
    assert same_as_built(model, family)


def test_nnsight_model_that_is_not_dispatched_yet(folder: Path) -> None:
    from nnsight import TransformersModel

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    wrapper = TransformersModel(str(folder), task="text-generation", tokenizer=tokenizer)
    assert not wrapper.dispatched, "nothing to test: it was read at once"
    model = load_model(wrapper, device="cpu", dtype="float32")
    assert model.name == "my-llama"
    assert same_as_built(model, LLAMA)


def test_bridge_does_not_add_a_bos_that_the_model_never_had(folder: Path) -> None:
    """TransformerLens reads such a tokenizer again, with add_bos_token=True."""
    from transformer_lens.model_bridge import TransformerBridge

    hf = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = "<bos>"
    tokenizer.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    expected = tokenizer(PROMPTS[0]).input_ids
    bridge = TransformerBridge.boot_transformers(str(folder), hf_model=hf, tokenizer=tokenizer)
    assert bridge.tokenizer(PROMPTS[0]).input_ids != expected, "nothing to undo any more"
    assert load_model(bridge).encode(PROMPTS[0]).ids == tuple(expected)


def test_dtype_of_a_folder(folder: Path) -> None:
    assert load_model(folder, device="cpu", dtype="bfloat16").dtype == torch.bfloat16
    assert load_model(folder, device="cpu", dtype=torch.float16).dtype == torch.float16
    load_model(folder, device="cpu", dtype="bfloat16").hf.save_pretrained(folder)
    assert load_model(folder, device="cpu").dtype == torch.float32
    assert load_model(folder, device="cpu", dtype="auto").dtype == torch.bfloat16


def test_dtype_of_a_loaded_model_stays_unless_asked() -> None:
    hf, tokenizer = build_tiny(LLAMA)
    hf.to(torch.bfloat16)
    assert load_model(hf, tokenizer=tokenizer).dtype == torch.bfloat16
    assert load_model(hf, tokenizer=tokenizer, dtype="float32").dtype == torch.float32
    assert load_model(LLAMA, device="cpu", dtype="bfloat16").dtype == torch.bfloat16


def test_defaults_follow_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of(None) == torch.device("cuda")
    assert _dtype(None, torch.device("cuda")) == "auto"
    assert _dtype(None, torch.device("cpu")) == torch.float32
    assert _dtype(None, None) == "auto"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(None) == torch.device("cpu")
    assert _dtype(None, None) == torch.float32


def test_device_map(folder: Path) -> None:
    model = load_model(folder, device_map="cpu")
    assert same_as_built(model, LLAMA)
    hf, tokenizer = build_tiny(LLAMA)
    for call in (
        lambda: load_model(folder, device="cpu", device_map="cpu"),
        lambda: load_model(hf, tokenizer=tokenizer, device_map="cpu"),
        lambda: load_model(LLAMA, device_map="cpu"),
    ):
        with pytest.raises(UsageError, match="device_map"):
            call()


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_unusable_device(device: str) -> None:
    with pytest.raises(UsageError, match=device):
        load_model(LLAMA, device=device)


@pytest.mark.parametrize("dtype", ["float33", "int8", torch.int64, "nn"])
def test_unusable_dtype(dtype: str | torch.dtype) -> None:
    with pytest.raises(UsageError, match="bfloat16"):
        load_model(LLAMA, device="cpu", dtype=dtype)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_model_goes_to_cuda(folder: Path) -> None:
    assert load_model(folder).device.type == "cuda"
    assert load_model(LLAMA).device.type == "cuda"


@pytest.mark.parametrize(
    ("given", "near"), [("smollm-135m", "smollm2-135m"), ("tiny-random-lama", LLAMA)]
)
def test_unknown_name_tells_the_near_ones(given: str, near: str) -> None:
    with pytest.raises(UnknownModelError, match=f"did you mean {near}"):
        load_model(given)


def test_unknown_name_with_nothing_near() -> None:
    with pytest.raises(UnknownModelError) as caught:
        load_model("zzz")
    assert "did you mean" not in str(caught.value)
    for name in ("smollm2-135m", "gemma3-270m", *TINY_FAMILIES):
        assert name in str(caught.value)


@pytest.mark.parametrize("given", ["./nowhere", "a/b/c", "model.gguf", Path("nowhere")])
def test_path_that_is_not_there(given: str | Path) -> None:
    with pytest.raises(UnknownModelError):
        load_model(given)


def test_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ModelError, match=r"not a \.gguf"):
        load_model(tmp_path / "notes.txt")


@pytest.mark.parametrize("given", [3.5, None, torch.nn.Linear(2, 2)])
def test_object_of_another_kind(given: object) -> None:
    with pytest.raises(ModelError, match="expected a name"):
        load_model(given)


def test_hub_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="network") as caught:
        load_model("google/gemma-3-270m")
    assert "load_model('gemma3-270m')" in str(caught.value)


def test_folder_without_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(folder)
    (folder / "model.q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"give the file itself: .*model\.q4\.gguf"):
        load_model(folder)


def test_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        load_model(folder)


def test_pickled_weights_only_on_demand(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UntrustedModelError, match="allow_pickle=True"):
        load_model(folder)
    assert same_as_built(load_model(folder, device="cpu", allow_pickle=True), LLAMA)


def test_pickled_weights_beside_other_safetensors(folder: Path) -> None:
    """Safetensors that are not the model's weights do not open the door to the pickle."""
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").rename(folder / "adapter.safetensors")
    with pytest.raises(UntrustedModelError, match="allow_pickle=True"):
        load_model(folder)


def test_hub_models_are_asked_for_safetensors_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a repository has is asked for when reading fails, whatever the failure is called."""
    asked: list[bool | None] = []

    def refuse(*_: object, use_safetensors: bool | None, **__: object) -> None:
        asked.append(use_safetensors)
        raise OSError("in words that change from version to version")

    there = {"pytorch_model.bin"}
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    monkeypatch.setattr(hub, "has_file", lambda _, name: name in there)
    with pytest.raises(UntrustedModelError, match="pickle can run any code") as refused:
        load_model(folder)
    assert isinstance(refused.value, UsageError)
    with pytest.raises(ModelError, match="in words that change"):
        load_model(folder, allow_pickle=True)
    there.add("model.safetensors")
    with pytest.raises(UnusableModelError, match="in words that change"):
        load_model(folder)
    assert asked == [True, None, True]


def test_truncated_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot read the weights"):
        load_model(folder)


def test_weights_with_a_hole(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.2\.mlp\.up_proj"):
        load_model(folder)


def test_folder_without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        load_model(folder)
    _, tokenizer = build_tiny(LLAMA)
    assert same_as_built(load_model(folder, device="cpu", tokenizer=tokenizer), LLAMA)


def test_broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="configuration"):
        load_model(folder)


def test_unknown_model_type(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "mystery"}))
    with pytest.raises(ModelError, match="'mystery'"):
        load_model(folder)


REMOTE_CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({marker!r}).touch()
class MysteryConfig(LlamaConfig):
    model_type = "mystery"
class MysteryForCausalLM(LlamaForCausalLM):
    config_class = MysteryConfig
"""


def test_remote_code_only_on_demand(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    marker = tmp_path / "the-code-has-run"
    (folder / "mystery.py").write_text(REMOTE_CODE.format(marker=str(marker)))
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "mystery",
        "architectures": ["MysteryForCausalLM"],
        "auto_map": {
            "AutoConfig": "mystery.MysteryConfig",
            "AutoModelForCausalLM": "mystery.MysteryForCausalLM",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    # hopscope's own words: transformers' refusal stands behind it and must not be what is tested.
    with pytest.raises(UntrustedModelError, match=r"Read that code first.*trust_remote_code=True"):
        load_model(folder)
    assert not marker.exists()
    model = load_model(folder, device="cpu", trust_remote_code=True)
    assert marker.exists()
    assert same_as_built(model, LLAMA)


TINY_BERT = BertConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    vocab_size=512,
)


def test_bert_is_not_causal(folder: Path) -> None:
    bert = BertForMaskedLM(TINY_BERT)
    with pytest.raises(ModelError, match="not a causal language model"):
        load_model(bert, tokenizer=build_tiny(LLAMA)[1])
    bert.save_pretrained(folder)
    with pytest.raises(ModelError, match="not a causal language model"):
        load_model(folder)


def test_t5_is_not_causal(tmp_path: Path) -> None:
    t5 = transformers.T5ForConditionalGeneration(
        T5Config(d_model=32, d_ff=32, num_layers=1, num_heads=2, d_kv=16, vocab_size=512)
    )
    t5.save_pretrained(tmp_path / "t5")
    shutil.copy(save(LLAMA, tmp_path / "llama") / "tokenizer.json", tmp_path / "t5")
    with pytest.raises(ModelError, match="not a causal language model"):
        load_model(tmp_path / "t5")
    with pytest.raises(ModelError, match="not a causal language model"):
        load_model(t5, tokenizer=build_tiny(LLAMA)[1])


IMPORTED = """
import sys
{statement}
heavy = ("transformer_lens", "nnsight", "matplotlib", "datasets", "gguf")
print([name for name in heavy if name in sys.modules])
"""


def heavy_imports(statement: str) -> str:
    code = IMPORTED.format(statement=statement)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_is_light() -> None:
    assert heavy_imports("import hopscope.models") == "[]"


def test_import_test_can_fail() -> None:
    assert heavy_imports("import hopscope.models, gguf") == "['gguf']"


def test_a_peft_model() -> None:
    peft = pytest.importorskip("peft")
    hf, tokenizer = build_tiny(LLAMA)
    ids = tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    plain = logits(hf, ids)
    wrapped = peft.get_peft_model(hf, peft.LoraConfig(r=4, init_lora_weights=False))
    model = load_model(wrapped, tokenizer=tokenizer)
    assert model.wrapped is wrapped
    assert torch.equal(logits(model.hf, ids), wrapped(ids).logits)
    assert not torch.allclose(logits(model.hf, ids), plain, atol=0.01)


def test_a_learned_prompt_is_refused() -> None:
    peft = pytest.importorskip("peft")
    hf, tokenizer = build_tiny(LLAMA)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    wrapped = peft.get_peft_model(hf, config)
    with pytest.raises(ModelError, match="learned a prompt, which stands before each text"):
        load_model(wrapped, tokenizer=tokenizer)


@pytest.mark.parametrize("loaded_before", [False, True])
def test_a_dtype_leaves_rotary_frequencies(folder: Path, loaded_before: bool) -> None:
    """As transformers does, which reads them in float32 whatever the dtype."""
    hf, tokenizer = build_tiny(LLAMA)
    read = load_model(folder, "cpu", "bfloat16")
    x = hf if loaded_before else LLAMA
    moved = load_model(x, "cpu", "bfloat16", tokenizer=tokenizer)
    for model in (read, moved):
        assert model.dtype == torch.bfloat16
        assert {each.dtype for each in model.hf.buffers()} == {torch.float32}
    ids = torch.tensor([[5 + each % 500 for each in range(200)]])
    assert torch.equal(logits(moved.hf, ids), logits(read.hf, ids))


@pytest.mark.parametrize(
    ("family", "setting", "value", "n", "such_as"),
    [
        (LLAMA, "num_hidden_layers", 2, 18, r"model\.layers\.2\.input_layernorm\.weight"),
        ("tiny-random-gpt2", "n_layer", 1, 33, r"transformer\.h\.1\."),
        ("tiny-random-qwen3", "model_type", "llama", 8, r"model\.layers\.0\.self_attn\.k_norm"),
    ],
)
def test_weights_without_a_place_are_refused(
    tmp_path: Path, family: str, setting: str, value: object, n: int, such_as: str
) -> None:
    folder = save(family, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    changed = {**config, setting: value} | (
        {"layer_types": None} if "layer_types" in config else {}
    )
    (folder / "config.json").write_text(json.dumps(changed))
    message = (
        rf"{n} weights have no place in the model .* such as {such_as}.*they would be left out"
    )
    with pytest.raises(ModelError, match=message):
        load_model(folder, "cpu")


BLOCK = "transformer.h.1."


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "base"])
@pytest.mark.parametrize(
    ("model_type", "buffers"),
    [
        ("gpt2", ["attn.bias", "attn.masked_bias"]),
        ("gpt_bigcode", ["attn.bias", "attn.masked_bias"]),
        ("gpt_neo", ["attn.attention.bias", "attn.attention.masked_bias"]),
        ("falcon", ["self_attention.maybe_rotary.inv_freq"]),
    ],
)
def test_buffers_of_older_checkpoints_may_be_left_over(
    tmp_path: Path, model_type: str, buffers: list[str], whole: bool
) -> None:
    shape = {"vocab_size": 512, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    settings = {"attention_types": [[["global", "local"], 1]]} if model_type == "gpt_neo" else {}
    config = AutoConfig.for_model(
        model_type, **shape, **settings, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    hf = AutoModelForCausalLM.from_config(config).eval()
    folder = tmp_path / "model"
    hf.save_pretrained(folder)
    build_tiny(LLAMA)[1].save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights |= {f"{BLOCK}{name}": torch.ones(3) for name in buffers}
    if not whole:
        weights = {name.removeprefix("transformer."): each for name, each in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    ids = torch.tensor([[5, 9, 40, 7]])
    assert torch.equal(logits(load_model(folder, "cpu").hf, ids), logits(hf, ids))
    more = {BLOCK + "attn.c_attn.scale": torch.ones(3)}
    save_file({**weights, **more}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights have no place .* such as .*c_attn\.scale"):
        load_model(folder, "cpu")


def test_a_gguf_file_for_which_memory_does_not_suffice_is_not_called_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(**_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fails)
    with pytest.raises(torch.OutOfMemoryError):
        read_gguf(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("dtype", "slowdown", "said"),
    [
        ("bfloat16", 2.3, "slower than in float32 (by a factor of about 2.3"),
        ("bfloat16", 1.1, None),
        ("float32", 0.2, "by a factor of about 5.0"),
        ("float32", 2.3, None),
    ],
)
def test_the_faster_dtype_of_a_cpu_is_said(
    dtype: str,
    slowdown: float,
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(cpu_speed, "slowdown", lambda _: slowdown)
    caplog.set_level(logging.WARNING, logger="hopscope.models.cpu_speed")
    load_model("tiny-random-llama", device="cpu", dtype=dtype)
    assert not caplog.text  # too small to matter
    monkeypatch.setattr("hopscope.models.load.LARGE", 0)
    load_model("tiny-random-llama", device="cpu", dtype=dtype)
    assert (said or "") in caplog.text
    assert bool(caplog.text) == (said is not None)


def test_a_slowdown_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that a product in bfloat16 moves four times as far as one in float32."""
    clock = [0.0]

    def linear(matrix: torch.Tensor, _: torch.Tensor) -> None:
        clock[0] += {torch.bfloat16: 4.0, torch.float32: 1.0}[matrix.dtype]

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    monkeypatch.setattr(cpu_speed, "perf_counter", lambda: clock[0])
    assert cpu_speed.slowdown.__wrapped__(torch.bfloat16) == 4.0
