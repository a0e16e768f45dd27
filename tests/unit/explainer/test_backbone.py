"""The embedded backbone: its loss, its batches, and that it learns to read vectors as words."""

import numpy as np
import pytest
import torch

from xrec.config import BackboneConfig, PromptConfig
from xrec.explainer.backbone import _batches, _loss, new_backbone, train_backbone
from xrec.explainer.backbone_corpus import (
    Document,
    train_tokenizer,
    training_documents,
    word_lists,
)
from xrec.explainer.pairs import PairTexts
from xrec.explainer.prompt import PromptBuilder

TINY = BackboneConfig(hidden=32, layers=2, heads=2, kv_heads=1, intermediate=48, vocabulary=300, batch_tokens=512)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the user likes jazz and pizza. warm bread"], 300)


def test_bad_sizes_are_refused(tokenizer):
    with pytest.raises(ValueError, match="hidden = 30"):
        new_backbone(BackboneConfig(hidden=30, heads=4, kv_heads=4), tokenizer)
    with pytest.raises(ValueError, match="0 training"):
        train_backbone(new_backbone(TINY, tokenizer), [], [], [], TINY, 2, lambda *_: None)


def test_batches_hold_every_document_once_within_the_token_limit(tokenizer):
    builder = PromptBuilder(tokenizer)
    documents = [Document(builder.describe("user"), [5] * int(n)) for n in np.random.default_rng(0).integers(1, 60, 50)]
    batches = list(_batches(documents, 400, np.random.default_rng(1)))
    assert sorted(id(d) for b in batches for d in b) == sorted(id(d) for d in documents)
    assert all(len(b) * max(map(len, b)) <= 400 or len(b) == 1 for b in batches)


def test_loss_equals_a_plain_forward_where_no_words_are_placed(tokenizer):
    torch.manual_seed(0)
    model, builder = new_backbone(TINY, tokenizer).eval(), PromptBuilder(tokenizer)
    documents = [Document(builder.describe("user"), builder.target(t)) for t in ("warm bread", "jazz")]
    loss, count = _loss(model, documents, tokenizer.pad_token_id, np.random.default_rng(0))
    expected, tokens = 0.0, 0
    for document in documents:
        ids = torch.tensor([document.prompt.token_ids + document.target])
        with torch.no_grad():
            logprobs = model(ids, use_cache=False).logits[0].log_softmax(-1)
        expected -= sum(float(logprobs[i, t]) for i, t in enumerate(ids[0, 1:].tolist()))
        tokens += ids.shape[1] - 1
    assert count == tokens
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)


def test_it_learns_to_read_a_vector_as_words(tokenizer):
    """After a few epochs on two kinds of documents, the vector alone decides which one is likely."""
    torch.manual_seed(0)
    texts = PairTexts(["A"] * 2)
    pairs = [(n % 2, n % 2, "likes jazz" if n % 2 else "warm pizza") for n in range(120)]
    builder = PromptBuilder(tokenizer, PromptConfig(titles=False, profiles=False))
    documents = training_documents(pairs, texts, builder, 512)
    lists = word_lists(pairs, texts, builder, False, 40)
    for document in lists:
        words = [*document.user_words, *document.item_words]
        assert document.target == [*(token for word in words for token in word), tokenizer.eos_token_id]
    model = new_backbone(TINY, tokenizer)
    config = TINY.model_copy(update={"epochs": 12, "learning_rate": 5e-3})
    logged = []
    figures = train_backbone(
        model, documents, documents[:20], lists, config, tokenizer.pad_token_id, lambda _, values: logged.append(values)
    )
    assert figures["val/loss"] == min(v["val/loss"] for v in logged) < logged[0]["val/loss"] / 2
    jazz, pizza = (builder.target(t) for t in ("likes jazz", "warm pizza"))
    table = model.get_input_embeddings()
    for word, likely, unlikely in ((" jazz", jazz, pizza), (" pizza", pizza, jazz)):
        vector = table(torch.tensor(tokenizer(word, add_special_tokens=False)["input_ids"])).mean(0)
        losses = []
        for target in (likely, unlikely):
            prompt = builder.explain("A")
            ids = torch.tensor([prompt.token_ids + target])
            embeddings = table(ids).clone()
            embeddings[0, prompt.user_positions + prompt.item_positions] = vector
            with torch.no_grad():
                logprobs = model(inputs_embeds=embeddings, use_cache=False).logits[0].log_softmax(-1)
            start = len(prompt.token_ids) - 1
            losses.append(-sum(float(logprobs[start + i, t]) for i, t in enumerate(target)))
        assert losses[0] + 1 < losses[1]
