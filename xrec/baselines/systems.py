"""The trained baselines by name: built new, written to a folder, read from it.

A folder holds `model.safetensors`, `tokenizer.json` and `config.json`. The floors have nothing to be trained, and are
not among these.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from xrec.baselines.att2seq import Att2Seq
from xrec.baselines.model import ExplanationModel, Ratings, Shape
from xrec.baselines.nrt import NRT
from xrec.baselines.pepler import Pepler, new_language_model
from xrec.baselines.peter import Peter

FLOORS = ("item_profile", "similar_user")
WITH_RATINGS = ("nrt", "peter", "peter_plus")
MODEL, TOKENIZER, CONFIG = "model.safetensors", "tokenizer.json", "config.json"


def new_system(
    name: str, shape: Shape, tokenizer: PreTrainedTokenizerFast, language: GPT2LMHeadModel | None = None
) -> ExplanationModel:
    """A system with random weights.

    Args:
        name: as in the settings; no floor.
        shape: sizes.
        tokenizer: its.
        language: PEPLER's language model; default: a new small one.
    """
    if name == "att2seq":
        return Att2Seq(shape)
    if name == "nrt":
        return NRT(shape)
    if name in ("peter", "peter_plus"):
        return Peter(shape, feature=name == "peter_plus")
    if name == "pepler":
        end = tokenizer.convert_tokens_to_ids(str(tokenizer.eos_token))
        return Pepler(shape, language or new_language_model(shape, int(end)))  # pyright: ignore
    raise ValueError(f"baseline.name = {name!r} is no system that is trained; choose another")


def save_system(folder: Path, name: str, model: ExplanationModel, shape: Shape, tokenizer: Any) -> None:
    """Write a trained system."""
    # GPT-2's input and output embeddings are one tensor, which the format refuses to hold twice.
    weights = {key: value.detach().cpu().clone().contiguous() for key, value in model.state_dict().items()}
    save_file(weights, folder / MODEL)
    tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))
    special = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    facts = {"name": name, "shape": asdict(shape), "special_tokens": special}
    if isinstance(model, Pepler):
        facts["language_model"] = model.language.config.to_dict()
    (folder / CONFIG).write_text(json.dumps(facts, indent=1, sort_keys=True))


def load_system(folder: Path) -> tuple[ExplanationModel, PreTrainedTokenizerFast]:
    """Read what `save_system` wrote."""
    facts = json.loads((folder / CONFIG).read_text())
    ratings = facts["shape"].pop("ratings")
    shape = Shape(**facts["shape"], ratings=Ratings(**ratings) if ratings else None)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / TOKENIZER), **facts["special_tokens"])
    language = GPT2LMHeadModel(GPT2Config(**facts["language_model"])) if "language_model" in facts else None
    model = new_system(facts["name"], shape, tokenizer, language)
    model.load_state_dict(load_file(folder / MODEL))
    model.eval()
    return model, tokenizer
