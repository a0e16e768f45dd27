"""BARTScore (Yuan et al. 2021, arXiv 2106.11520): how probable the reference is for a BART that reads the prediction.

The score is the mean log-probability of the reference's tokens, those that begin and end it included, as the published
evaluation computes it (`score(srcs, tgts)`: the prediction is the source, the reference the target). XRec's figures
rest on facebook/bart-large-cnn with further weights, tuned on ParaBank. Scores of different weights do not compare.
"""

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import BartForConditionalGeneration

from xrec.evaluation.pretrained import by_length, load_config, load_model
from xrec.evaluation.reference_scorer import ReferenceScorer, full_pairs

_SETTING = "evaluate.bart_score.model"


class BartScorer:
    """Scores predictions against references with one BART.

    Args:
        model: any BART by Hugging Face name or folder.
        checkpoint: file of weights that replace the model's: `.safetensors`, or what `torch.save` made of a state dict.
        device: torch device.
        batch_size: pairs read together.

    Raises:
        ValueError: the model cannot be loaded, or the checkpoint is not of it.
    """

    def __init__(
        self,
        model: str = "facebook/bart-large-cnn",
        checkpoint: str | None = None,
        device: str = "cpu",
        batch_size: int = 32,
    ):
        kind = load_config(model, _SETTING).model_type
        if kind != "bart":
            raise ValueError(f"{_SETTING} = {model!r} is a {kind!r}; name a BART, such as facebook/bart-large-cnn")
        self.device, self.batch_size = device, batch_size
        self.tokenizer, self.model = load_model(BartForConditionalGeneration, model, _SETTING, device)
        if checkpoint is not None:
            self._load_weights(checkpoint, model)

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """`[n]` float64, nats a token, at most 0; texts beyond the model's positions are cut.

        Raises:
            ValueError: the lists differ in length.
        """
        full_pairs(predictions, references)
        scores = np.zeros(len(predictions))
        for batch in by_length(references, predictions, self.batch_size):
            scores[batch] = self._score_batch([predictions[n] for n in batch], [references[n] for n in batch])
        return scores

    @torch.inference_mode()
    def _score_batch(self, sources: list[str], targets: list[str]) -> np.ndarray:
        source, target = (
            self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(self.device)
            for texts in (sources, targets)
        )
        labels, mask = target["input_ids"], target["attention_mask"]
        # Padding follows a target, so causal attention keeps it out of the tokens before it.
        shifted = self.model.prepare_decoder_input_ids_from_labels(labels)
        logits = self.model(**source, decoder_input_ids=shifted).logits
        # Cross-entropy by class needs the vocabulary second: `[B, V, T]`.
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        return (-(losses * mask).sum(1) / mask.sum(1)).double().cpu().numpy()

    def _load_weights(self, checkpoint: str, model: str) -> None:
        where = f"evaluate.bart_score.checkpoint = {checkpoint!r}"
        if not Path(checkpoint).is_file():
            raise ValueError(f"{where} is no file; give the path of bart_score.pth, or leave it out")
        try:
            if checkpoint.endswith(".safetensors"):
                weights = load_file(checkpoint, device="cpu")
            else:
                weights = torch.load(checkpoint, map_location="cpu", weights_only=True)
            weights = {name: torch.as_tensor(value) for name, value in weights.items()}
            unfit = self.model.load_state_dict(weights, strict=False)
        except (UnpicklingError, SafetensorError, RuntimeError, AttributeError, TypeError, EOFError) as error:
            raise ValueError(
                f"{where} cannot be loaded into {model!r} ({error}); give a state dict of that model's shape"
            ) from error
        # Weights that are one tensor in the model need not be in the file under each of their names.
        tied = {id(p) for name, p in self.model.named_parameters(remove_duplicate=False) if name in weights}
        named = dict(self.model.named_parameters(remove_duplicate=False))
        missing = [name for name in unfit.missing_keys if name in named and id(named[name]) not in tied]
        if unfit.unexpected_keys or missing:
            raise ValueError(
                f"{where} does not fit {model!r}: it lacks {missing[:3]}, and has {unfit.unexpected_keys[:3]} beside; "
                "give a whole state dict of BartForConditionalGeneration"
            )


class BartScoreScorer(ReferenceScorer):
    """BARTScore as a column of `scores`; arguments as `BartScorer` takes them. An empty text has NaN."""

    def __init__(
        self,
        model: str = "facebook/bart-large-cnn",
        checkpoint: str | None = None,
        device: str = "cpu",
        batch_size: int = 32,
    ):
        scorer = BartScorer(model, checkpoint, device, batch_size)
        super().__init__(
            ("bart_score",),
            lambda predictions, references: {"bart_score": scorer.score(predictions, references)},
            {"model": model, "checkpoint": checkpoint},
            worst=float("nan"),
        )
