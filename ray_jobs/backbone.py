"""The stage `backbone`: trains the embedded tiny LLaMA on the workspace's training texts, in this process."""

import tempfile
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedTokenizerFast

from ray_jobs.job import main
from xrec.config import BackboneConfig
from xrec.explainer.backbone import new_backbone, train_backbone
from xrec.explainer.backbone_corpus import (
    Document,
    description,
    train_tokenizer,
    training_documents,
    word_lists,
)
from xrec.explainer.pairs import PairTexts, explained_pairs
from xrec.explainer.prompt import PromptBuilder
from xrec.metric_logging import MetricLogger
from xrec.workspace import Workspace


def run(workspace: Workspace, config: BackboneConfig, *, force: bool = False, dry_run: bool = False) -> str:
    """Train the backbone and write `backbone/model/` (weights, config, tokenizer) and `read_pairs`.

    Args:
        workspace: with `preprocess` finished.
        config: size, training, and the prompts it reads.
        force: rebuild.
        dry_run: say what would be done, and write nothing.

    Returns:
        A one-line summary.
    """
    if dry_run:
        pairs, _ = _choose_pairs(workspace, config)
        return f"backbone: would read {len(pairs):,} training explanations and write {workspace.uri}/backbone/model"
    inputs = ["preprocess", *workspace.text_inputs()]
    stage = workspace.stage("backbone", config.identity(), inputs=inputs, force=force)
    if stage.done:
        return f"backbone: already finished ({workspace.uri}/backbone/model)"
    corpus = _read_corpus(workspace, config)
    torch.manual_seed(config.seed)
    model = new_backbone(config, corpus.tokenizer)
    with MetricLogger(workspace, "backbone", keep_below=0) as logger:
        figures = train_backbone(
            model,
            corpus.documents,
            corpus.validation,
            corpus.lists,
            config,
            corpus.tokenizer.pad_token_id,  # pyright: ignore
            lambda epoch, values: logger.log(epoch, **values),
        )
    with tempfile.TemporaryDirectory(prefix="xrec-") as folder:
        model.save_pretrained(folder)
        corpus.tokenizer.save_pretrained(folder)
        stage.upload(folder, "model")
    stage.write_table("read_pairs", corpus.pairs)
    parameters = sum(p.numel() for p in model.parameters())
    stage.finish(figures | {"parameters": parameters, "documents": len(corpus.documents)})
    return (
        f"backbone: {parameters:,} parameters, {figures['epochs']:.0f} epochs, {len(corpus.documents):,} documents, "
        f"validation loss {figures['val/loss']:.3f} -> {workspace.uri}/backbone/model"
    )


@dataclass
class _Corpus:
    tokenizer: PreTrainedTokenizerFast
    documents: list[Document]
    validation: list[Document]
    lists: list[Document]
    pairs: pa.Table


def _read_corpus(workspace: Workspace, config: BackboneConfig) -> _Corpus:
    texts = PairTexts.load(workspace)
    pairs, validation = _choose_pairs(workspace, config)
    nodes = {side: sorted(set(pairs[side].to_pylist())) for side in ("user", "item")}
    described = (
        [description(side, node, texts) for side in nodes for node in nodes[side]] if config.descriptions else []
    )
    settings = config.prompt
    wording = [settings.system, " user record: item record: item name: user profile: item profile: explanation:"]
    tokenizer = train_tokenizer(pairs["explanation"].to_pylist() + described + wording, config.vocabulary)
    builder = PromptBuilder(tokenizer, settings)
    read, held_out = (
        list(zip(*(table[c].to_pylist() for c in ("user", "item", "explanation")), strict=True))
        for table in (pairs, validation)
    )
    documents, validation_documents = (
        training_documents(rows, texts, builder, config.max_length, config.descriptions) for rows in (read, held_out)
    )
    lists = word_lists(read, texts, builder, config.descriptions)
    return _Corpus(tokenizer, documents, validation_documents, lists, pairs.select(["user", "item"]))


def _choose_pairs(workspace: Workspace, config: BackboneConfig) -> tuple[pa.Table, pa.Table]:
    """The training pairs it reads (a random `share` of them), and the validation pairs."""
    pairs = explained_pairs(workspace, "train")
    chosen = np.random.default_rng(config.seed).permutation(len(pairs))[: max(1, round(config.share * len(pairs)))]
    return pairs.take(pa.array(np.sort(chosen))), explained_pairs(workspace, "val")


if __name__ == "__main__":
    main("backbone", run)
