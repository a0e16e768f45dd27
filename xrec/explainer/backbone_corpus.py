"""What the embedded backbone reads: the training pairs' prompts and explanations, its nodes' descriptions, word lists.

Only training pairs' explanations and their nodes' titles and profiles are among it. The tokenizer is trained here too;
the model is `backbone.py`'s business.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from xrec.explainer.pairs import PairTexts
from xrec.explainer.prompt import Prompt, PromptBuilder

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
RESERVED_TOKEN = "<|reserved_0|>"
TYPICAL_WORDS = 8
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
    try:
        matrix = vectorizer.fit_transform(joined).tocsr()  # pyright: ignore
    except ValueError:
        # What scikit-learn raises where no word is left: none but stop words, or none that enough nodes share.
        return {node: [] for node in texts}
    words = vectorizer.get_feature_names_out()
    ids = tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    # The mean over the pieces of several words says less than the mean over whole words.
    whole = np.array([len(pieces) == 1 for pieces in ids])
    chosen = {}
    for row, node in enumerate(texts):
        span = slice(matrix.indptr[row], matrix.indptr[row + 1])
        columns, weights = matrix.indices[span], matrix.data[span]
        best = np.lexsort((-weights, ~whole[columns]))[:TYPICAL_WORDS]
        chosen[node] = [ids[column] for column in columns[best]]
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
