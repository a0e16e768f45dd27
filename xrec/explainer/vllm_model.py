"""Decoders of vLLM that take adapted vectors at reserved positions, in every layer (Eq. 12 of arXiv 2406.02377).

Stateless: a step's vectors are read from its token ids and input embeddings, and travel to later pipeline stages beside
the hidden states; so batches mix requests of any adapters, prompts may be split, cached, compiled and captured. The
checkpoint is an ordinary one of Hugging Face. How vectors come here is `vllm_inputs.py`'s business; speculative
decoding with a draft model's hidden states, and adapters of the LoRA kind, are left out.

Shapes: T tokens of a step, H hidden size, V vocabulary.
"""

# pyright: reportMissingImports=false
# (vLLM lives in an environment of its own)
from collections.abc import Iterable
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.interfaces import MultiModalEmbeddings, SupportsMultiModal, SupportsPP, SupportsQuant
from vllm.model_executor.models.llama import LlamaForCausalLM, LlamaModel
from vllm.model_executor.models.mistral import MistralModel
from vllm.model_executor.models.qwen2 import Qwen2Model
from vllm.model_executor.models.qwen3 import Qwen3Model
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    PPMissingLayer,
    _merge_multimodal_embeddings,
    make_empty_intermediate_tensors_factory,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.sequence import IntermediateTensors

from xrec.explainer.vllm_inputs import FIELD, DummyVectors, VectorInfo, VectorProcessor

# What torch.compile must not take for constant: the number of tokens of a step.
_DYNAMIC = {"input_ids": 0, "positions": 0, "intermediate_tensors": 0, "inputs_embeds": 0}
_PASSED_ON = ["hidden_states", "residual", "injection"]


class _InjectingModel(nn.Module):
    """The decoder's layers, with injection; comes before one of vLLM's own models, which makes the layers."""

    reserved_id: torch.Tensor
    embed_tokens: Any
    layers: Any
    start_layer: int
    end_layer: int
    norm: Any

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = vllm_config.model_config.hf_config
        self.injects = config.xrec_injection == "input"
        self.replaces = config.xrec_input_replacement
        self.register_buffer("reserved_id", torch.tensor([config.xrec_reserved_id]), persistent=False)
        self.make_empty_intermediate_tensors = make_empty_intermediate_tensors_factory(_PASSED_ON, config.hidden_size)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Any = None,
    ) -> torch.Tensor | IntermediateTensors:
        """One step over T tokens, whose `inputs_embeds` `[T, H]` hold the vectors at the reserved ids.

        The first pipeline stage is always given `inputs_embeds`, the others `intermediate_tensors`.
        """
        if get_pp_group().is_first_rank:
            hidden, injection = self._placed(input_ids, inputs_embeds)
            residual = None
        else:
            hidden, residual, injection = (intermediate_tensors[name] for name in _PASSED_ON)
        for layer in islice(self.layers, self.start_layer, self.end_layer):
            if residual is None:
                residual = hidden
                hidden = layer.input_layernorm(hidden)
            else:
                hidden, residual = layer.input_layernorm(hidden, residual)
            if self.injects:
                hidden = hidden + injection
            hidden = layer.self_attn(positions=positions, hidden_states=hidden)
            hidden, residual = layer.post_attention_layernorm(hidden, residual)
            hidden = layer.mlp(hidden)
        if not get_pp_group().is_last_rank:
            return IntermediateTensors(dict(zip(_PASSED_ON, (hidden, residual, injection), strict=True)))
        return self.norm(hidden, residual)[0]

    def _placed(self, input_ids: torch.Tensor, inputs_embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What enters the first layer, and what every layer adds: `[T, H]` both, the latter zero where no vector is."""
        reserved = torch.eq(input_ids, self.reserved_id).unsqueeze(-1)
        injection = torch.where(reserved, inputs_embeds, 0.0)
        keeps_own = reserved
        if self.replaces:
            keeps_own = reserved & (inputs_embeds == 0).all(-1, keepdim=True)
        return torch.where(keeps_own, self.embed_tokens(self.reserved_id), inputs_embeds), injection


@support_torch_compile(dynamic_arg_dims=_DYNAMIC)
class XRecLlamaModel(_InjectingModel, LlamaModel):
    """LLaMA's layers."""


@support_torch_compile(dynamic_arg_dims=_DYNAMIC)
class XRecMistralModel(_InjectingModel, MistralModel):
    """Mistral's layers."""


@support_torch_compile(dynamic_arg_dims=_DYNAMIC)
class XRecQwen2Model(_InjectingModel, Qwen2Model):
    """Qwen2's layers."""


@support_torch_compile(dynamic_arg_dims=_DYNAMIC)
class XRecQwen3Model(_InjectingModel, Qwen3Model):
    """Qwen3's layers."""


class _InjectingCausalLM(nn.Module, SupportsMultiModal, SupportsPP, SupportsQuant):
    """Layers, output head, and the merging of vectors into the input embeddings."""

    # Without the ids beside the embeddings the layers could not tell where vectors are.
    requires_raw_input_tokens: ClassVar[bool] = True
    packed_modules_mapping = LlamaForCausalLM.packed_modules_mapping
    hf_to_vllm_mapper = LlamaModel.hf_to_vllm_mapper
    model_class: ClassVar[Any]
    model: Any

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.config, self.quant_config = config, vllm_config.quant_config
        self.model = self.model_class(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        if get_pp_group().is_last_rank:
            self.lm_head = ParallelLMHead(
                config.vocab_size,
                config.hidden_size,
                quant_config=self.quant_config,
                prefix=maybe_prefix(prefix, "lm_head"),
            )
            if config.tie_word_embeddings:
                self.lm_head = self.lm_head.tie_weights(self.model.embed_tokens)
        else:
            self.lm_head = PPMissingLayer()
        self.logits_processor = LogitsProcessor(config.vocab_size, scale=getattr(config, "logit_scale", 1.0))
        self.make_empty_intermediate_tensors = self.model.make_empty_intermediate_tensors

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """None: no text stands for a vector, prompts come as token ids."""
        return None

    def get_language_model(self) -> nn.Module:
        """Itself: there is no encoder beside it."""
        return self

    def embed_multimodal(self, **kwargs: Any) -> MultiModalEmbeddings:
        """The vectors of a step, `[1, H]` each: they are adapted already."""
        vectors = kwargs.get(FIELD)
        return [] if vectors is None else vectors.reshape(-1, 1, vectors.shape[-1])

    def embed_input_ids(
        self,
        input_ids: torch.Tensor,
        multimodal_embeddings: MultiModalEmbeddings | None = None,
        *,
        is_multimodal: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`[T, H]`: tokens' embeddings, vectors at their positions, and zero at reserved ids that have none."""
        embeddings = self.model.embed_input_ids(input_ids)
        embeddings = embeddings.masked_fill(torch.eq(input_ids, self.model.reserved_id).unsqueeze(-1), 0.0)
        if multimodal_embeddings is None or len(multimodal_embeddings) == 0:
            return embeddings
        return _merge_multimodal_embeddings(embeddings, multimodal_embeddings, is_multimodal)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: object,
    ) -> torch.Tensor | IntermediateTensors:
        """Hidden states of one step, `[T, H]`."""
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """`[n, V]` for the n positions that are sampled from."""
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Read an ordinary checkpoint of Hugging Face."""
        return AutoWeightsLoader(self).load_weights(weights)


_register = MULTIMODAL_REGISTRY.register_processor(VectorProcessor, info=VectorInfo, dummy_inputs=DummyVectors)


@_register
class XRecLlamaForCausalLM(_InjectingCausalLM):
    """LLaMA 1 to 3, and what shares their architecture."""

    model_class = XRecLlamaModel


@_register
class XRecMistralForCausalLM(_InjectingCausalLM):
    """Mistral."""

    model_class = XRecMistralModel


@_register
class XRecQwen2ForCausalLM(_InjectingCausalLM):
    """Qwen2 and 2.5, with biased projections."""

    model_class = XRecQwen2Model


@_register
class XRecQwen3ForCausalLM(_InjectingCausalLM):
    """Qwen3, with normed queries and keys."""

    model_class = XRecQwen3Model
