"""The embedded backbone: a small LLaMA built on a workspace's own training texts, where no weights can be had.

It is the same class as the large ones and takes the same code path. Beside plain language modelling it learns what a
large model knows already: that a vector may stand for a few words. In half of its documents the reserved positions
hold the mean of the embeddings of some words typical of that user's or item's training texts; no graph is involved.

It reads only training pairs' explanations and training nodes' profiles. Which texts those are is decided here; the
file layout and the stage are `ray_jobs/backbone.py`'s business. Shapes: B rows, T tokens, H hidden size.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, get_cosine_schedule_with_warmup

from xrec.config import BackboneConfig
from xrec.explainer.injection import vectors_at
from xrec.explainer.model import IGNORED, positions_of
from xrec.explainer.pairs import PairTexts
from xrec.explainer.prompt import Prompt, PromptBuilder

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
RESERVED_TOKEN = "<|reserved_0|>"
TYPICAL_WORDS = 8
WORDS_PLACED = 0.9
WORD_LISTS = 4000


@dataclass
class Document:
    """One training sequence.

    Attributes:
        prompt: with the reserved positions.
        target: the token ids that follow, end of sequence included.
        user_words, item_words: token ids of each word that may stand at the reserved positions.
        exact: all of the words stand there, always; else a few of them, mostly.
    """

    prompt: Prompt
    target: list[int]
    user_words: list[list[int]] = field(default_factory=list)
    item_words: list[list[int]] = field(default_factory=list)
    exact: bool = False

    def __len__(self) -> int:
        return len(self.prompt.token_ids) + len(self.target)


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (any text can be encoded, none yields the reserved token).

    Raises:
        ValueError: there is no text, or the vocabulary cannot even hold the bytes.
    """
    if not any(text.strip() for text in texts):
        raise ValueError("backbone: there are no training texts; import explanations or write them first")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len(SPECIAL_TOKENS) + 1
    if vocabulary < smallest:
        raise ValueError(
            f"backbone.vocabulary = {vocabulary} is below {smallest}, the bytes and special tokens; raise it"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=sorted(alphabet),
        special_tokens=[*SPECIAL_TOKENS.values(), RESERVED_TOKEN],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=[RESERVED_TOKEN], padding_side="left", **SPECIAL_TOKENS
    )


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


def typical_words(texts: dict[int, list[str]], tokenizer: Any) -> dict[int, list[list[int]]]:
    """The words that set each node's texts apart from the others' (highest TF-IDF), as token ids.

    Args:
        texts: each node's training texts.
        tokenizer: words are encoded as they stand inside a sentence.
    """
    vectorizer = TfidfVectorizer(
        stop_words="english",
        token_pattern=r"(?u)\b[^\W\d_]{3,}\b",
        sublinear_tf=True,
        # A word that few nodes share can be learned neither by a small model nor from a graph.
        min_df=min(5, 1 + len(texts) // 100),
    )
    joined = [" ".join(parts) for parts in texts.values()]
    analyze = vectorizer.build_analyzer()
    if not any(analyze(text) for text in joined):
        return {node: [] for node in texts}
    matrix = vectorizer.fit_transform(joined).tocsr()  # pyright: ignore
    words = vectorizer.get_feature_names_out()
    ids = tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    chosen = {}
    for row, node in enumerate(texts):
        span = slice(matrix.indptr[row], matrix.indptr[row + 1])
        best = np.argsort(-matrix.data[span], kind="stable")[:TYPICAL_WORDS]
        chosen[node] = [ids[column] for column in matrix.indices[span][best]]
    return chosen


def training_documents(
    pairs: Sequence[tuple[int, int, str]],
    texts: PairTexts,
    builder: PromptBuilder,
    max_length: int,
    descriptions: bool = True,
) -> list[Document]:
    """Everything the backbone reads: the pairs' prompts and explanations, and their nodes' descriptions.

    Args:
        pairs: (user, item, explanation) of training pairs.
        texts: titles and profiles; only those of nodes among `pairs` are read.
        builder: for the backbone's tokenizer and the prompt settings that tuning will use.
        max_length: documents longer than this are left out.
        descriptions: whether nodes' titles and profiles are documents of their own.
    """
    nodes_of_side = node_texts(pairs, texts, descriptions)
    words = {side: typical_words(nodes, builder.tokenizer) for side, nodes in nodes_of_side.items()}
    own = typical_words({n: [explanation] for n, (*_, explanation) in enumerate(pairs)}, builder.tokenizer)
    documents = [
        Document(
            builder.explain(texts.titles[item], texts.user_profiles.get(user), texts.item_profiles.get(item)),
            builder.target(explanation),
            2 * own[n] + words["user"][user],
            2 * own[n] + words["item"][item],
        )
        for n, (user, item, explanation) in enumerate(pairs)
    ]
    if descriptions:
        for side, nodes in nodes_of_side.items():
            for node in nodes:
                text = description(side, node, texts)
                if text:
                    described = Document(builder.describe(side), builder.target(text))  # pyright: ignore
                    setattr(described, f"{side}_words", words[side][node])
                    documents.append(described)
    return [d for d in documents if len(d) <= max_length]


def word_lists(
    pairs: Sequence[tuple[int, int, str]],
    texts: PairTexts,
    builder: PromptBuilder,
    descriptions: bool = True,
    count: int = WORD_LISTS,
) -> list[Document]:
    """Documents that list the very words whose mean stands at the reserved position.

    Nothing else tells one of them from another, so they teach reading within a hundred steps; explanations alone, of
    which a word says little, do not.

    Args:
        pairs, texts, builder, descriptions: as in `training_documents`; lists are drawn from the nodes' typical words.
        count: how many documents.
    """
    generator, documents = np.random.default_rng(0), []
    of_side = node_texts(pairs, texts, descriptions)
    for side in ("user", "item"):
        words = [ids for ids in typical_words(of_side[side], builder.tokenizer).values() if ids]
        prompt = builder.describe(side)
        for _ in range(count // 2 if words else 0):
            drawn = [words[generator.integers(len(words))] for _ in range(int(generator.integers(1, 5)))]
            listed = [ids[generator.integers(len(ids))] for ids in drawn]
            target = [*(token for word in listed for token in word), builder.tokenizer.eos_token_id]
            documents.append(Document(prompt, target, exact=True, **{f"{side}_words": listed}))
    return documents


def node_texts(
    pairs: Sequence[tuple[int, int, str]], texts: PairTexts, profiles: bool
) -> dict[str, dict[int, list[str]]]:
    """What training says about each user and item of the pairs: its explanations and, if asked, its description."""
    found: dict[str, dict[int, list[str]]] = {"user": {}, "item": {}}
    for user, item, explanation in pairs:
        found["user"].setdefault(user, []).append(explanation)
        found["item"].setdefault(item, []).append(explanation)
    if profiles:
        for side, nodes in found.items():
            for node, parts in nodes.items():
                parts.append(description(side, node, texts))
    return found


def description(side: str, node: int, texts: PairTexts) -> str:
    """An embedding put into words: a user's profile; an item's name and profile."""
    if side == "user":
        return texts.user_profiles.get(node, "")
    return f"{texts.titles[node]}. {texts.item_profiles.get(node, '')}".strip()


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
