"""BLEURT (Sellam et al. 2020, arXiv 2004.04696): a BERT tuned to rate a prediction against its reference.

The model reads reference and prediction as one pair; a linear layer over the pooled first token gives the rating. In
transformers that is a `BertForSequenceClassification` with one label, which is how the first generation of BLEURT's
checkpoints is published (Elron/bleurt-tiny-128, …-base-512, …-large-512). BLEURT-20 is another architecture (RemBERT)
without a checkpoint that transformers reads by itself, so it is not supported. Ratings of different checkpoints do not
compare; those of the paper are of the test checkpoint, a tiny BERT.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from xrec.evaluation.pretrained import by_length, load_config, load_model
from xrec.evaluation.reference_scorer import ReferenceScorer, full_pairs

_SETTING = "evaluate.bleurt.model"
_REMEDY = "name a BERT with a head of one label, such as Elron/bleurt-base-512"


class Bleurt:
    """Rates predictions against references with one model.

    Args:
        model: Hugging Face name or folder.
        device: torch device.
        batch_size: pairs read together.

    Raises:
        ValueError: the model cannot be loaded, or has no head of one label.
    """

    def __init__(self, model: str = "Elron/bleurt-tiny-128", device: str = "cpu", batch_size: int = 32):
        _refuse_other_heads(model)
        self.device, self.batch_size = device, batch_size
        self.tokenizer, self.model = load_model(AutoModelForSequenceClassification, model, _SETTING, device)

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """`[n]` float64, about 0 to 1 but not bounded; where a pair is too long, the longer text is cut first.

        Raises:
            ValueError: the lists differ in length.
        """
        full_pairs(predictions, references)
        scores = np.zeros(len(predictions))
        for batch in by_length(predictions, references, self.batch_size):
            scores[batch] = self._score_batch([predictions[n] for n in batch], [references[n] for n in batch])
        return scores

    @torch.inference_mode()
    def _score_batch(self, predictions: list[str], references: list[str]) -> np.ndarray:
        encoded = self.tokenizer(references, predictions, padding=True, truncation=True, return_tensors="pt")
        return self.model(**encoded.to(self.device)).logits[:, 0].double().cpu().numpy()


class BleurtScorer(ReferenceScorer):
    """BLEURT as a column of `scores`; arguments as `Bleurt` takes them. An empty text has NaN."""

    def __init__(self, model: str = "Elron/bleurt-tiny-128", device: str = "cpu", batch_size: int = 32):
        scorer = Bleurt(model, device, batch_size)
        super().__init__(
            ("bleurt",),
            lambda predictions, references: {"bleurt": scorer.score(predictions, references)},
            {"model": model},
            worst=float("nan"),
        )


def _refuse_other_heads(model: str) -> None:
    config = load_config(model, _SETTING)
    architectures = config.architectures or []
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise ValueError(f"{_SETTING} = {model!r} is a {architectures}, which has no head that rates; {_REMEDY}")
    if config.num_labels != 1:
        raise ValueError(f"{_SETTING} = {model!r} has {config.num_labels} labels, which classify; {_REMEDY}")
