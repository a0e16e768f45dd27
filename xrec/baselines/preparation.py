"""From a workspace to a baseline ready to be trained: tokenizer, rows, model, phases; and rows to be explained.

What a stage writes and when is `ray_jobs/baseline.py`'s business.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import AutoConfig, AutoTokenizer, GPT2LMHeadModel

from xrec.baselines.corpus import MAX_TOKENS, Rows, Texts, new_rows, read_ratings
from xrec.baselines.features import ItemFeatures
from xrec.baselines.model import ExplanationModel, Ratings, Shape
from xrec.baselines.nodes import NodeEmbedding
from xrec.baselines.pepler import PROMPTS, Pepler
from xrec.baselines.systems import WITH_RATINGS, new_system
from xrec.baselines.tokenizer import train_tokenizer
from xrec.baselines.training import Phase
from xrec.config.baseline import BaselineConfig
from xrec.explainer.node_texts import description, node_texts
from xrec.explainer.pairs import PairTexts
from xrec.workspace import Workspace


@dataclass
class Prepared:
    """A system before its training.

    Attributes:
        model, shape, tokenizer: with random weights, but for a language model that was named.
        phases: what to train, in order.
    """

    model: ExplanationModel
    shape: Shape
    tokenizer: Any
    phases: list[Phase]


def prepare(workspace: Workspace, config: BaselineConfig, device: torch.device | str = "cpu") -> Prepared:
    """Read the workspace and build the system; the same seed gives the same weights.

    Raises:
        WorkspaceError: there are no training explanations.
        ValueError: PEPLER's model cannot be loaded, or is too small.
    """
    texts = Texts.load(workspace)
    language, tokenizer = (
        load_language_model(config.model) if config.name == "pepler" and config.model else (None, None)
    )
    described = _descriptions(workspace, texts.train) if config.name == "pepler" and language is None else []
    explanations = texts.train["explanation"].to_pylist()
    tokenizer = tokenizer or train_tokenizer(explanations + described, config.vocabulary)
    train, validation = _rows(workspace, config, texts, tokenizer)
    shape = _shape(workspace, config, train, len(tokenizer))
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = new_system(config.name, shape, tokenizer, language)
    for table, known in ((model.users, train.user), (model.items, train.item)):
        assert isinstance(table, NodeEmbedding)
        table.set_known(np.unique(known).tolist())
    model.to(device)
    phases = _phases(model, config, train, validation, described, tokenizer)
    return Prepared(model, shape, tokenizer, phases)


def rows_to_explain(workspace: Workspace, config: BaselineConfig, pairs: pa.Table, tokenizer: Any) -> Rows:
    """The rows of pairs whose texts are to be written.

    Args:
        pairs: columns user and item and, for PETER+ with `feature: reference`, explanation and feature.
    """
    if config.name != "peter_plus":
        return new_rows(pairs, tokenizer)
    finder = item_features(workspace, Texts.load(workspace).train)
    return new_rows(pairs, tokenizer, features=_features(finder, pairs, config.feature))


def item_features(workspace: Workspace, train: pa.Table) -> ItemFeatures:
    """The features of the items, from training explanations and profiles."""
    items, explanations, features = (train[c].to_pylist() for c in ("item", "explanation", "feature"))
    return ItemFeatures(items, explanations, features, PairTexts.load(workspace).item_profiles)


def load_language_model(name: str) -> tuple[GPT2LMHeadModel, Any]:
    """A GPT-2 and its tokenizer, by Hugging Face name or folder.

    Raises:
        ValueError: it cannot be loaded, is no GPT-2, or reads too short a sequence.
    """
    try:
        found = AutoConfig.from_pretrained(name)
        if found.model_type != "gpt2":
            raise ValueError(f"baseline.model = {name!r} is a {found.model_type}; PEPLER takes a GPT-2")
        model = GPT2LMHeadModel.from_pretrained(name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True)
    except OSError as error:
        raise ValueError(
            f"baseline.model = {name!r} cannot be loaded ({error}); name a GPT-2 that is at hand, or leave it out to "
            "train a small one here"
        ) from error
    if model.config.n_positions < MAX_TOKENS + PROMPTS + 1:
        raise ValueError(
            f"baseline.model = {name!r} reads {model.config.n_positions} positions; PEPLER needs "
            f"{MAX_TOKENS + PROMPTS + 1}"
        )
    if tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.eos_token
    return model, tokenizer


def _rows(workspace: Workspace, config: BaselineConfig, texts: Texts, tokenizer: Any) -> tuple[Rows, Rows]:
    """The training and validation rows."""
    finder = item_features(workspace, texts.train) if config.name == "peter_plus" else None
    found = []
    for split, pairs in (("train", texts.train), ("val", texts.validation)):
        features = None
        if finder is not None and split == "train" and config.feature == "item":
            features = [finder.of_training_row(row) for row in range(len(pairs))]
        elif finder is not None:
            features = _features(finder, pairs, config.feature)
        ratings = read_ratings(workspace, pairs) if config.name in WITH_RATINGS else None
        found.append(new_rows(pairs, tokenizer, pairs["explanation"].to_pylist(), ratings, features))
    return found[0], found[1]


def _features(finder: ItemFeatures, pairs: pa.Table, kind: str) -> list[str]:
    if kind == "item":
        return [finder.of_item(item) for item in pairs["item"].to_pylist()]
    told = zip(pairs["explanation"].to_pylist(), pairs["feature"].to_pylist(), strict=True)
    return [finder.of_explanation(explanation, feature) for explanation, feature in told]


def _shape(workspace: Workspace, config: BaselineConfig, train: Rows, vocabulary: int) -> Shape:
    known = train.rating[~np.isnan(train.rating)]
    ratings = Ratings(float(known.mean()), float(known.min()), float(known.max())) if len(known) else None
    return Shape(
        users=len(workspace.read_table("preprocess", "users")),
        items=len(workspace.read_table("preprocess", "items_index")),
        known_users=len(np.unique(train.user)),
        known_items=len(np.unique(train.item)),
        vocabulary=vocabulary,
        hidden=config.hidden,
        layers=config.layers,
        heads=config.heads,
        dropout=config.dropout,
        ratings=ratings,
    )


def _phases(
    model: ExplanationModel, config: BaselineConfig, train: Rows, validation: Rows, described: list[str], tokenizer: Any
) -> list[Phase]:
    """One phase; PEPLER's are the language model's own, the prompts', and both together."""
    rate = config.learning_rate
    tuned = list(model.parameters())
    if not isinstance(model, Pepler):
        return [Phase("text", train, validation, model.losses, tuned, config.epochs, rate)]
    first = (config.epochs + 1) // 2 if config.model is None else 0
    everything = Phase("text", train, validation, model.losses, tuned, max(1, config.epochs - first), rate)
    prompts = Phase("prompts", train, validation, model.losses, model.prompt_parameters(), config.prompt_epochs, rate)
    if config.model is not None:
        return [prompts, everything]
    read = _joined(train, new_rows(_no_pairs(len(described)), tokenizer, described))
    language = model.language_losses, model.language_parameters(), first, rate
    return [Phase("language", read, validation, *language), prompts, everything]


def _descriptions(workspace: Workspace, train: pa.Table) -> list[str]:
    """The titles and profiles of the training pairs' users and items."""
    texts = PairTexts.load(workspace)
    pairs = list(zip(*(train[c].to_pylist() for c in ("user", "item", "explanation")), strict=True))
    found = node_texts(pairs, texts, profiles=False)
    described = [description(side, node, texts) for side, nodes in found.items() for node in nodes]
    return [text for text in described if text]


def _no_pairs(count: int) -> pa.Table:
    nothing = pa.array(np.full(count, -1, dtype=np.int32))
    return pa.table({"user": nothing, "item": nothing})


def _joined(first: Rows, second: Rows) -> Rows:
    return Rows(
        np.concatenate([first.user, second.user]),
        np.concatenate([first.item, second.item]),
        first.text + second.text,
        np.concatenate([first.rating, second.rating]),
        first.feature + second.feature,
    )
