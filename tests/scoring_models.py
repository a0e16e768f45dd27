"""Tiny models of random weights, with tokenizers of their own, for metrics that read a model from a folder."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

PREDICTIONS = [
    "The user would enjoy this cafe for its espresso.",
    "Great books, and thrilling plots that never let go of the reader!",
    "Pizza",
    "Quiet rooms near the old harbour, and a breakfast worth getting up for.",
    "You will like the music.",
]
REFERENCES = [
    "You would like the coffee shop because of its fresh croissants and strong coffee.",
    "The reader praises the plot.",
    "The user would enjoy the live jazz, the craft beer and the late hours.",
    "Rooms are quiet.",
    "Music!",
]


def save_bart(folder: Path, positions: int = 48) -> str:
    """A BART of two layers a side and a byte-level tokenizer that puts `<s>` and `</s>` around a text."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(PREDICTIONS + REFERENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    names |= {"pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": positions}
    # A larger spread of weights than is usual, so that probabilities differ between tokens.
    config = BartConfig(vocab_size=tokenizer.get_vocab_size(), d_model=16, init_std=0.5, **sizes)
    BartForConditionalGeneration(config).save_pretrained(folder)
    return str(folder)


def save_bert(folder: Path, labels: int = 1, model_class=BertForSequenceClassification) -> str:
    """A BERT of two layers and a word tokenizer that takes pairs of texts."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(PREDICTIONS + REFERENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=64,
        num_labels=labels,
        initializer_range=0.5,
        **sizes,
    )
    model_class(config).save_pretrained(folder)
    return str(folder)
