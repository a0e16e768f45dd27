"""Greedy generation for the trained baselines, under the same limits of words and tokens as XRec's own."""

from collections.abc import Iterator
from typing import Any

import torch

from xrec.baselines.corpus import MAX_TOKENS, Batch, Rows
from xrec.baselines.model import ExplanationModel
from xrec.explainer.engine import FinishReason, Result, Sampling, finish

MAX_NEW_TOKENS = 128
assert MAX_NEW_TOKENS < MAX_TOKENS


@torch.inference_mode()
def generate(
    model: ExplanationModel, rows: Rows, tokenizer: Any, max_words: int, batch_size: int = 256
) -> Iterator[list[Result]]:
    """The rows' explanations in order, a batch at a time; the rows' own texts are not read.

    Args:
        model: set to `eval` here.
        rows: at least one.
        tokenizer: the model's.
        max_words: a text ends with a sentence within this many words.
        batch_size: rows generated together.
    """
    model.eval()
    device = next(model.parameters()).device
    sampling = Sampling(max_words=max_words, max_new_tokens=MAX_NEW_TOKENS)
    for start in range(0, len(rows), batch_size):
        chosen = slice(start, start + batch_size)
        unread = Rows(rows.user, rows.item, [[] for _ in range(len(rows))], rows.rating, rows.feature)
        yield _generate(model, unread.batch(chosen, tokenizer, device), tokenizer, sampling)


def _generate(model: ExplanationModel, batch: Batch, tokenizer: Any, sampling: Sampling) -> list[Result]:
    count = len(batch.user)
    ids: list[list[int]] = [[] for _ in range(count)]
    done: dict[int, tuple[str, FinishReason]] = {}
    logits, state = model.begin(batch)
    while True:
        best = logits.argmax(-1)
        open_rows = [row for row in range(count) if row not in done]
        for row, token in enumerate(best.tolist()):
            if row not in done:
                ids[row].append(token)
        texts = tokenizer.batch_decode([ids[row] for row in open_rows], skip_special_tokens=True)
        for row, text in zip(open_rows, texts, strict=True):
            ended = ids[row][-1] == tokenizer.eos_token_id
            text, reason = finish(text, ended, len(ids[row]), sampling)
            if reason is not None:
                done[row] = (text, reason)
        if len(done) == count:
            return [Result(done[row][0], ids[row], done[row][1]) for row in range(count)]
        # Rows that have ended go on unread until the last one has: texts differ little in length.
        logits, state = model.advance(best, state)
