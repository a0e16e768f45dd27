"""PEPLER: a GPT-2 that is told the user and the item by two learned vectors before the text.

Li, Zhang, Chen 2023, "Personalized Prompt Learning for Explainable Recommendation" (TOIS; arXiv 2202.07371), with
continuous prompts and sequential tuning: first the two embedding tables alone, with the language model frozen, then
everything. Its variants with discrete prompts or a rating's loss are left out.
Shapes: B rows, T tokens, H hidden, V vocabulary.
"""

from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from xrec.baselines.corpus import MAX_TOKENS, Batch
from xrec.baselines.model import ExplanationModel, Shape, text_loss
from xrec.baselines.nodes import NodeEmbedding

PROMPTS = 2
_POSITIONS = MAX_TOKENS + PROMPTS + 1


class Pepler(ExplanationModel):
    """Continuous prompts before any GPT-2.

    Args:
        shape: sizes of the prompts' tables; their width is the language model's.
        language: the language model.
    """

    def __init__(self, shape: Shape, language: GPT2LMHeadModel):
        super().__init__()
        self.language = language
        width = language.config.n_embd
        self.users = NodeEmbedding(shape.users, shape.known_users, width)
        self.items = NodeEmbedding(shape.items, shape.known_items, width)

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        logits = self.language(inputs_embeds=self._embedded(batch, batch.inputs), use_cache=False).logits
        loss = text_loss(logits[:, PROMPTS:], batch.labels)
        return {"total": loss, "text": loss}

    def language_losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Of the texts alone, without prompts, at the positions that they have after prompts."""
        places = torch.arange(PROMPTS, PROMPTS + batch.inputs.shape[1], device=batch.inputs.device)
        logits = self.language(input_ids=batch.inputs, position_ids=places.unsqueeze(0), use_cache=False).logits
        loss = text_loss(logits, batch.labels)
        return {"total": loss, "text": loss}

    def prompt_parameters(self) -> list[nn.Parameter]:
        return [*self.users.parameters(), *self.items.parameters()]

    def language_parameters(self) -> list[nn.Parameter]:
        return list(self.language.parameters())

    def begin(self, batch: Batch) -> tuple[torch.Tensor, Any]:
        output = self.language(inputs_embeds=self._embedded(batch, batch.inputs[:, :1]), use_cache=True)
        return output.logits[:, -1], output.past_key_values

    def advance(self, tokens: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        output = self.language(input_ids=tokens.unsqueeze(1), past_key_values=state, use_cache=True)
        return output.logits[:, -1], output.past_key_values

    def _embedded(self, batch: Batch, inputs: torch.Tensor) -> torch.Tensor:
        prompts = torch.stack([self.users(batch.user), self.items(batch.item)], 1)
        return torch.cat([prompts, self.language.get_input_embeddings()(inputs)], 1)


def new_language_model(shape: Shape, end_id: int) -> GPT2LMHeadModel:
    """A small GPT-2 with random weights."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape.vocabulary,
            n_positions=_POSITIONS,
            n_embd=shape.hidden,
            n_layer=shape.layers,
            n_head=shape.heads,
            resid_pdrop=shape.dropout,
            embd_pdrop=shape.dropout,
            attn_pdrop=shape.dropout,
            bos_token_id=end_id,
            eos_token_id=end_id,
            # The usual 0.02 suits wide models; in a narrow one attention would stay flat for hundreds of steps.
            initializer_range=shape.hidden**-0.5,
        )
    )
