"""The tokenizer of systems that are trained from scratch: learned from the training texts."""

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def train_tokenizer(
    texts: Sequence[str], vocabulary: int, additional_special_tokens: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text can be encoded, and none yields a special token.

    Args:
        texts: what to learn the merges from.
        vocabulary: the largest number of tokens, bytes and special ones included; few texts give fewer.
        additional_special_tokens: beside `SPECIAL_TOKENS`.

    Raises:
        ValueError: there is no text, or the vocabulary cannot even hold the bytes.
    """
    if not any(text.strip() for text in texts):
        raise ValueError("there are no training texts; import explanations or write them first (`xrec profile`)")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [*SPECIAL_TOKENS.values(), *additional_special_tokens]
    smallest = len(alphabet) + len(special)
    if vocabulary < smallest:
        raise ValueError(f"vocabulary = {vocabulary} is below {smallest}, the bytes and special tokens; raise it")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=sorted(alphabet), special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=list(additional_special_tokens),
        padding_side="left",
        **SPECIAL_TOKENS,
    )
