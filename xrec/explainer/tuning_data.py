"""The rows that tuning learns from, read from a workspace: warm-up, training and validation, with the embeddings.

Nothing of a validation or test pair is read here but the validation rows themselves, which are not trained on. How rows
become batches is `batching.py`'s business.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from xrec.config import TuneConfig
from xrec.explainer.adapter import AdapterSpec, XRecAdapter, check_finite, rms_of
from xrec.explainer.alignment import align_with_words
from xrec.explainer.batching import Row, RowEncoder
from xrec.explainer.loading import load_embeddings
from xrec.explainer.pairs import PairTexts, explained_pairs
from xrec.explainer.prompt import PromptBuilder
from xrec.workspace import Workspace, WorkspaceError


@dataclass
class TuningData:
    """Encoded rows and the embeddings they refer to.

    Attributes:
        train: rows that teach to explain.
        validation: rows of the validation split; may be empty.
        warmup: rows that put single embeddings into words; only nodes of training rows.
        user, item: `[N, D]`, `[M, D]` float32 embeddings, layers averaged.
        dropped: for each kind of rows, how many did not fit into the longest sequence.
        figures: of the adapter's alignment.
        pad_id: the id at padded positions.
    """

    train: list[Row]
    validation: list[Row]
    warmup: list[Row]
    user: torch.Tensor
    item: torch.Tensor
    pad_id: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)


def load_tuning_data(workspace: Workspace, config: TuneConfig, tokenizer: Any) -> TuningData:
    """Read and encode everything that tuning needs.

    Raises:
        WorkspaceError: a table is absent, there is no training row, or none fits into `max_length`.
    """
    texts = PairTexts.load(workspace)
    encoder = RowEncoder(PromptBuilder(tokenizer, config.prompt), config.max_length)
    pairs = {"train": explained_pairs(workspace, "train").to_pylist(), "val": _validation_pairs(workspace)}
    limits = {"train": config.max_train_rows, "val": config.max_validation_rows}
    chosen = {split: _drawn(pairs[split], limits[split], config.seed) for split in pairs}
    kinds = {split: [_explanation(encoder, texts, pair) for pair in chosen[split]] for split in chosen}
    kinds["warmup"] = _descriptions(encoder, texts, pairs["train"]) if config.warmup_epochs else []
    rows = {kind: [row for row in encoded if row is not None] for kind, encoded in kinds.items()}
    if not rows["train"]:
        raise WorkspaceError(
            f"tune.max_length = {config.max_length}: none of {len(pairs['train'])} training rows fits; raise it"
        )
    embeddings = load_embeddings(workspace)
    user, item = embeddings.user_mean(), embeddings.item_mean()
    check_finite({"user": user, "item": item}, f"{workspace.uri}/embed/embeddings.safetensors")
    return TuningData(
        train=rows["train"],
        validation=rows["val"],
        warmup=rows["warmup"],
        user=user,
        item=item,
        pad_id=tokenizer.pad_token_id or 0,
        dropped={kind: len(kinds[kind]) - len(rows[kind]) for kind in kinds},
    )


def new_adapter(
    workspace: Workspace,
    config: TuneConfig,
    data: TuningData,
    table: torch.Tensor,
    backbone_hash: str,
    prompt_hash: str,
) -> XRecAdapter:
    """An untrained adapter for one backbone, prompt and data; the same seed gives the same weights.

    Its inputs and outputs are scaled over the nodes that training sees; zero-shot nodes take no part.

    Args:
        table: `[V, H]`, the backbone's input embeddings, float32 on the CPU; vectors are in units of their size.
        backbone_hash: of the backbone.
        prompt_hash: of the template.
    """
    settings = config.adapter
    spec = AdapterSpec(
        embedding_dim=data.user.shape[1],
        hidden_size=table.shape[1],
        experts=settings.experts,
        dropout=settings.dropout,
        top_k=settings.top_k,
        injection=config.injection,
        input_replacement=config.input_replacement,
        backbone=config.backbone or "backbone/model",
        backbone_hash=backbone_hash,
        prompt=config.prompt.model_dump(mode="json"),
        prompt_hash=prompt_hash,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        adapter = XRecAdapter(spec)
    trained = data.user[_trained(workspace, "users")], data.item[_trained(workspace, "items_index")]
    if settings.normalize == "standardize":
        adapter.fit_normalization(*trained)
    adapter.fit_output_scale(*trained, settings.initial_scale * rms_of(table))
    return adapter


def align_adapter(
    workspace: Workspace,
    config: TuneConfig,
    adapter: XRecAdapter,
    data: TuningData,
    tokenizer: Any,
    table: torch.Tensor,
) -> dict[str, float]:
    """Start an untrained adapter from the words of the training nodes' texts; see `alignment.align_with_words`.

    Args:
        table: `[V, H]`, the backbone's input embeddings, float32 on the CPU.
    """
    pairs = [(p["user"], p["item"], p["explanation"]) for p in explained_pairs(workspace, "train").to_pylist()]
    embeddings = {"user": data.user, "item": data.item}
    profiles, texts = config.align == "profiles", PairTexts.load(workspace)
    rms = config.adapter.initial_scale * rms_of(table)
    return align_with_words(adapter, embeddings, pairs, texts, tokenizer, table, profiles, rms)


def _drawn(pairs: list[dict[str, Any]], limit: int | None, seed: int) -> list[dict[str, Any]]:
    """At most `limit` of the pairs, in their order."""
    if limit is None or limit >= len(pairs):
        return pairs
    return [pairs[i] for i in sorted(np.random.default_rng(seed).choice(len(pairs), limit, replace=False))]


def _validation_pairs(workspace: Workspace) -> list[dict[str, Any]]:
    table = workspace.read_text_table("explanations")
    return explained_pairs(workspace, "val").to_pylist() if "val" in table["split"].unique().to_pylist() else []


def _trained(workspace: Workspace, table: str) -> torch.Tensor:
    zero_shot = workspace.read_table("preprocess", table, columns=["zero_shot"])["zero_shot"].to_numpy()
    return torch.from_numpy(~zero_shot.astype(bool))


def _explanation(encoder: RowEncoder, texts: PairTexts, pair: dict[str, Any]) -> Row | None:
    user, item = pair["user"], pair["item"]
    profiles = texts.user_profiles.get(user), texts.item_profiles.get(item)
    return encoder.explanation(user, item, texts.titles[item], *profiles, pair["explanation"])


def _descriptions(encoder: RowEncoder, texts: PairTexts, pairs: list[dict[str, Any]]) -> list[Row | None]:
    """Items by title and profile, users by profile; nodes without any text have no row."""
    items = np.unique([pair["item"] for pair in pairs]).tolist()
    users = np.unique([pair["user"] for pair in pairs]).tolist()
    of_items = {i: ". ".join(t for t in (texts.titles[i], texts.item_profiles.get(i)) if t) for i in items}
    of_users = {u: texts.user_profiles.get(u) for u in users}
    return [encoder.description(text, item=i) for i, text in of_items.items() if text] + [
        encoder.description(text, user=u) for u, text in of_users.items() if text
    ]
