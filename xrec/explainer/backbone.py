"""The embedded backbone: a small LLaMA built on a workspace's own training texts, where no weights can be had.

It is the same class as the large ones and takes the same code path. Beside plain language modelling it learns what a
large model knows already: that a vector may stand for a few words. In most of its documents the reserved positions
hold the mean of the embeddings of some words typical of that user's or item's training texts; no graph is involved.

What it reads is `backbone_corpus.py`'s business; the file layout and the stage are `ray_jobs/backbone.py`'s.
Shapes: B rows, T tokens, H hidden size.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, get_cosine_schedule_with_warmup

from xrec.config import BackboneConfig
from xrec.explainer.backbone_corpus import Document
from xrec.explainer.injection import vectors_at
from xrec.explainer.model import IGNORED, positions_of

WORDS_PLACED = 0.9


def new_backbone(config: BackboneConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A randomly initialised LLaMA of the configured size.

    Raises:
        ValueError: the sizes do not fit together.
    """
    if config.hidden % config.heads or config.heads % config.kv_heads:
        raise ValueError(
            f"backbone: hidden = {config.hidden} must be a multiple of heads = {config.heads}, and that of "
            f"kv_heads = {config.kv_heads}"
        )
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden,
            intermediate_size=config.intermediate,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            max_position_embeddings=config.max_length,
            bos_token_id=tokenizer.bos_token_id,  # pyright: ignore
            eos_token_id=tokenizer.eos_token_id,  # pyright: ignore
            pad_token_id=tokenizer.pad_token_id,  # pyright: ignore
            # The usual 0.02 suits wide models; in a narrow one attention would stay flat for hundreds of steps.
            initializer_range=config.hidden**-0.5,
            tie_word_embeddings=True,
            dtype="float32",
        )
    )


def train_backbone(
    model: LlamaForCausalLM,
    documents: list[Document],
    validation: list[Document],
    lists: list[Document],
    config: BackboneConfig,
    pad_id: int,
    log: Callable[[int, dict[str, float]], None],
) -> dict[str, float]:
    """Train in place; ends with the weights of the epoch whose validation loss was lowest.

    Args:
        model: from `new_backbone`.
        documents, validation: what to read, and what to stop early on.
        lists: from `word_lists`; read alone for the first `config.reading_epochs`, and then along with the documents.
        config: epochs, batch size in tokens, learning rate, patience, seed.
        pad_id: of the tokenizer.
        log: called with the epoch and its figures, losses in nats a token.

    Returns:
        `val/loss` of the best epoch, `epochs` run, and `tokens` read.

    Raises:
        ValueError: no document to train or to validate on.
    """
    if not documents or not validation:
        raise ValueError(
            f"backbone: {len(documents)} training and {len(validation)} validation documents are left within "
            f"max_length = {config.max_length}; raise it, or check preprocess.explained_ratios"
        )
    generator = np.random.default_rng(config.seed)
    corpora = [lists] * (config.reading_epochs if lists else 0) + [
        documents + lists[: len(documents) // 4]
    ] * config.epochs
    steps = sum(1 for corpus in corpora for _ in _batches(corpus, config.batch_tokens, np.random.default_rng(0)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.1)
    schedule = get_cosine_schedule_with_warmup(optimizer, max(1, steps // 20), steps)
    best, best_state, waited, tokens, epoch = math.inf, {}, 0, 0, 0
    for epoch, corpus in enumerate(corpora, 1):
        loss, count = _train_epoch(model, corpus, config, pad_id, generator, optimizer, schedule)
        tokens += count
        figures = {"train/loss": loss, "val/loss": evaluate_backbone(model, validation, config, pad_id)}
        log(epoch, figures)
        if figures["val/loss"] < best:
            best, waited = figures["val/loss"], 0
            best_state = {name: value.clone() for name, value in model.state_dict().items()}
        elif epoch > len(corpora) - config.epochs:
            waited += 1
            if waited >= config.patience:
                break
    model.load_state_dict(best_state)
    model.eval()
    return {"val/loss": best, "epochs": float(epoch), "tokens": float(tokens)}


def _train_epoch(
    model: LlamaForCausalLM,
    corpus: list[Document],
    config: BackboneConfig,
    pad_id: int,
    generator: np.random.Generator,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
) -> tuple[float, int]:
    """One pass; returns the mean loss in nats a token, and the tokens read."""
    model.train()
    total, count = 0.0, 0
    for batch in _batches(corpus, config.batch_tokens, generator):
        loss, labelled = _loss(model, batch, pad_id, generator)
        (loss / labelled).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        total, count = total + loss.item(), count + labelled
    return total / count, count


@torch.inference_mode()
def evaluate_backbone(model: LlamaForCausalLM, documents: list[Document], config: BackboneConfig, pad_id: int) -> float:
    """Mean loss in nats a token; the words at the reserved positions are drawn from a fixed seed."""
    model.eval()
    generator, total, count = np.random.default_rng(config.seed), 0.0, 0
    for batch in _batches(documents, config.batch_tokens, np.random.default_rng(0)):
        loss, labelled = _loss(model, batch, pad_id, generator)
        total, count = total + loss.item(), count + labelled
    return total / count


def _batches(documents: list[Document], batch_tokens: int, generator: np.random.Generator) -> Iterator[list[Document]]:
    """Every document once, those of similar length together, batches in random order."""
    lengths = np.array([len(d) for d in documents])
    order = np.argsort(lengths + generator.random(len(lengths)) * 8, kind="stable")
    batches, current, widest = [], [], 0
    for index in order:
        widest = max(widest, int(lengths[index]))
        if current and widest * (len(current) + 1) > batch_tokens:
            batches.append(current)
            current, widest = [], int(lengths[index])
        current.append(documents[index])
    batches.append(current)
    for index in generator.permutation(len(batches)):
        yield batches[index]


def _loss(
    model: LlamaForCausalLM, batch: list[Document], pad_id: int, generator: np.random.Generator
) -> tuple[torch.Tensor, int]:
    """Summed loss over all tokens but pads and reserved positions, and how many those are."""
    rows, width = len(batch), max(map(len, batch))
    input_ids = torch.full((rows, width), pad_id)
    attention = torch.zeros((rows, width), dtype=torch.long)
    masks = {side: torch.zeros((rows, width), dtype=torch.bool) for side in ("user", "item")}
    bags: dict[str, list[list[int]]] = {"user": [], "item": []}
    for row, document in enumerate(batch):
        offset = width - len(document)
        input_ids[row, offset:] = torch.tensor(document.prompt.token_ids + document.target)
        attention[row, offset:] = 1
        filled = generator.random() < WORDS_PLACED
        for side in ("user", "item"):
            words = getattr(document, f"{side}_words")
            if not document.exact:
                words = _draw_words(words, generator) if filled else []
            bag = [token for word in words for token in word]
            bags[side].append(bag)
            if bag:
                masks[side][row, [offset + p for p in getattr(document.prompt, f"{side}_positions")]] = True
    table = model.get_input_embeddings()
    placed = vectors_at(
        masks["user"], masks["item"], *(_mean_embedding(table, bags[s], pad_id) for s in ("user", "item"))
    )
    filled_positions = masks["user"] | masks["item"]
    embeddings = torch.where(filled_positions.unsqueeze(-1), placed, table(input_ids))
    logits = model(
        inputs_embeds=embeddings, attention_mask=attention, position_ids=positions_of(attention), use_cache=False
    ).logits
    # The first token of a padded row follows a pad, which says nothing about it.
    unpredictable = (attention[:, :-1] == 0) | filled_positions[:, 1:]
    labels = input_ids[:, 1:].masked_fill(unpredictable, IGNORED)
    loss = nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return loss, int((labels != IGNORED).sum())


def _draw_words(words: list[list[int]], generator: np.random.Generator) -> list[list[int]]:
    """One to ten of the words."""
    if not words:
        return []
    count = min(len(words), int(generator.integers(1, 11)))
    return [words[index] for index in generator.choice(len(words), count, replace=False)]


def _mean_embedding(table: nn.Module, bags: list[list[int]], pad_id: int) -> torch.Tensor:
    """The mean of the embeddings of each bag's tokens, `[B, H]`; of the pad token for an empty bag."""
    widest = max(1, *map(len, bags))
    ids = torch.tensor([(bag or [pad_id]) + [pad_id] * (widest - max(1, len(bag))) for bag in bags])
    sizes = torch.tensor([max(1, len(bag)) for bag in bags])
    weights = (torch.arange(widest) < sizes.unsqueeze(1)).float() / sizes.unsqueeze(1)
    return torch.einsum("bk,bkh->bh", weights, table(ids))
