"""How adapted vectors travel through vLLM: as items of one modality, checked, hashed and matched to their positions.

A request carries one vector for each reserved id of its prompt, in their order. vLLM keys its prefix cache by the
items' hashes, so that two prompts of the same text share only what comes before their first different vector. An
all-zero vector says that its position carries no signal. What the model does with vectors is `vllm_model.py`'s
business.
"""

# pyright: reportMissingImports=false
# (vLLM lives in an environment of its own)
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import BatchFeature
from vllm.config.multimodal import MultiModalDummyOptions
from vllm.exceptions import VLLMValidationError
from vllm.inputs import MultiModalDataDict
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import ModalityDataItems, MultiModalDataItems, MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdate,
)

MODALITY = "vector"
FIELD = "vectors"
# Reserved positions in one prompt; the templates have two.
MOST_VECTORS = 16


class VectorItems(ModalityDataItems[list[torch.Tensor], torch.Tensor]):
    """The vectors of one request, `[H]` each.

    Not vLLM's own items for embeddings, which any client of a server could send only where it is started to trust them.
    """

    def get_count(self) -> int:
        return len(self.data)

    def get(self, index: int) -> torch.Tensor:
        return self.data[index]

    def get_processor_data(self) -> Mapping[str, object]:
        return {}

    def get_passthrough_data(self) -> Mapping[str, object]:
        return {FIELD: torch.stack(self.data)}


class VectorParser(MultiModalDataParser):
    """Reads the vectors of one request: tensors, arrays or lists of `hidden_size` finite numbers.

    Errors are vLLM's own, because it hides the message of any other.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.hidden_size = hidden_size

    def _parse(self, data: Any) -> VectorItems | None:
        if data is None or len(data) == 0:
            return None
        vectors = [torch.as_tensor(v).detach().to("cpu", torch.float32).contiguous() for v in data]
        for index, vector in enumerate(vectors):
            if vector.shape != (self.hidden_size,):
                raise VLLMValidationError(
                    f"vector {index} has the shape {tuple(vector.shape)}, not ({self.hidden_size},), the hidden size",
                    parameter=MODALITY,
                )
            if not torch.isfinite(vector).all():
                raise VLLMValidationError(f"vector {index} holds values that are not finite", parameter=MODALITY)
        return VectorItems(vectors, MODALITY)

    def _get_subparsers(self) -> Mapping[str, Any]:
        return {MODALITY: self._parse}


class VectorInfo(BaseProcessingInfo):
    """What vLLM asks about the modality before any request."""

    def get_data_parser(self) -> MultiModalDataParser:
        return VectorParser(self.get_hf_config().hidden_size)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {MODALITY: MOST_VECTORS}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        return {MODALITY: 1}


class DummyVectors(BaseDummyInputsBuilder[VectorInfo]):
    """The request that vLLM measures its memory with."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        # The processor below puts the reserved ids in; text could not, for they are ids that no text becomes.
        return ""

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, MultiModalDummyOptions]
    ) -> MultiModalDataDict:
        width = self.info.get_hf_config().hidden_size
        return {MODALITY: [torch.zeros(width)] * mm_counts.get(MODALITY, 0)}


class VectorProcessor(BaseMultiModalProcessor[VectorInfo]):
    """Matches the vectors of a request to the reserved ids of its prompt."""

    @property
    def reserved_id(self) -> int:
        return self.info.get_hf_config().xrec_reserved_id

    def get_dummy_inputs(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> Any:
        inputs = super().get_dummy_inputs(seq_len, mm_counts, mm_options)
        inputs.prompt = [self.reserved_id] * mm_counts.get(MODALITY, 0)
        return inputs

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        reserved = inputs.prompt.count(self.reserved_id)
        given = inputs.mm_data_items.get_count(MODALITY, strict=False)
        if reserved != given:
            raise VLLMValidationError(
                f"the prompt has {reserved} reserved positions, but {given} vectors are given", parameter=MODALITY
            )
        return super().apply(inputs, timing_ctx)

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {FIELD: MultiModalFieldConfig.batched(MODALITY)}

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        # A reserved id becomes itself: nothing is rewritten, this only says where the vectors belong.
        return [PromptReplacement(modality=MODALITY, target=[self.reserved_id], replacement=[self.reserved_id])]
