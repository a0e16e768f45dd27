"""A chat model small enough for a CPU: it says random words, about `words` of them, and has room for real prompts."""

import math

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.random_models import train_tokenizer

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
CONTEXT = 8192
# So large beside random weights that it stays what it is through all layers and the normalisation.
_CONSTANT = 10.0


def save_chat_model(folder: str, texts: list[str], words: int = 80, chat_template: str | None = CHAT_TEMPLATE) -> None:
    """A tokenizer trained on the texts, and a LLaMA that draws tokens nearly alike but prefers to close a string.

    All embeddings share one large coordinate, so the weight by which the quotation mark reads it is its logit's bias.
    At temperature 0 such a model closes every string at once.
    """
    tokenizer = train_tokenizer(texts, 2000)
    tokenizer.chat_template = chat_template
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.05,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = _CONSTANT
        model.lm_head.weight[:, 0] = 0.0
        normalised = math.sqrt(config.hidden_size)
        quotation_mark = tokenizer.convert_tokens_to_ids('"')
        model.lm_head.weight[quotation_mark, 0] = math.log(len(tokenizer) / words) / normalised
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
