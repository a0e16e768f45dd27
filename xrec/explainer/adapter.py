"""The mixture-of-experts adapter that puts a graph embedding into the language model's vector space.

Holds the two adapters (users, items), their normalisation, saving, loading and sharing. Where the adapted vectors
go is `injection.py`'s business; how they are trained is `tuning.py`'s.

Source: section 3.2 of arXiv 2406.02377; parametric whitening after Hou et al. 2022 (arXiv 2206.05941).
Shapes: B rows, D embedding width, E experts, H the backbone's hidden size.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from safetensors.torch import load_file, save_file
from torch import nn

NOISE_FLOOR = 0.01
WEIGHTS, CONFIG = "adapter.safetensors", "config.json"

_CARD = """---
{{ card_data }}
---

# XRec adapter

A mixture-of-experts adapter that lets a frozen language model read LightGCN embeddings of users and items, and so
explain in at most 50 words why a user would enjoy an item. It was tuned for one backbone and one prompt template, both
named with their hashes in `config.json`; other backbones and templates are refused.

```python
from xrec.explainer import XRecAdapter

adapter = XRecAdapter.from_pretrained("{{ repo_id | default("PATH_OR_HUB_ID", true) }}")
```

Method: arXiv 2406.02377.
"""


@dataclass(frozen=True)
class AdapterSpec:
    """Everything that fixes an adapter's shape and what it was tuned for; stored as its `config.json`.

    Attributes:
        embedding_dim: width of the graph embeddings.
        hidden_size: width of the backbone.
        experts: experts in each of the two mixtures.
        dropout: dropout on each expert's input, in training.
        top_k: experts that take part for a vector; None: all.
        injection: `input` (Eq. 12), `output` (the published code) or `none`.
        input_replacement: whether adapted vectors replace the input embeddings at the reserved positions.
        backbone: Hugging Face name or path of the language model it was tuned for.
        backbone_hash: hash of that model's config and vocabulary.
        prompt: the prompt settings it was tuned with.
        prompt_hash: hash of the template and those settings.
    """

    embedding_dim: int
    hidden_size: int
    experts: int = 8
    dropout: float = 0.2
    top_k: int | None = None
    injection: str = "input"
    input_replacement: bool = True
    backbone: str = ""
    backbone_hash: str = ""
    prompt: dict[str, Any] = field(default_factory=dict)
    prompt_hash: str = ""

    def __post_init__(self) -> None:
        if self.top_k is not None and not 1 <= self.top_k <= self.experts:
            raise ValueError(f"top_k = {self.top_k} must lie between 1 and experts = {self.experts}")
        if self.injection not in ("input", "output", "none"):
            raise ValueError(f"injection = {self.injection!r} is not one of input, output, none")


@dataclass
class Randomness:
    """The random draws of one mixture for a batch.

    Attributes:
        gate_noise: `[B, E]`, standard normal.
        keep: `[B, E, D]`, dropout masks already divided by the keeping probability.
    """

    gate_noise: torch.Tensor
    keep: torch.Tensor

    def to(self, device: torch.device | str) -> "Randomness":
        return Randomness(self.gate_noise.to(device), self.keep.to(device))


@dataclass
class AdapterRandomness:
    """The draws of both mixtures for a batch."""

    user: Randomness
    item: Randomness

    def to(self, device: torch.device | str) -> "AdapterRandomness":
        return AdapterRandomness(self.user.to(device), self.item.to(device))


def draw_randomness(
    seed: int, step: int, row_ids: list[int], experts: int, dim: int, dropout: float
) -> AdapterRandomness:
    """Draw gate noise and dropout masks, each row's from a generator keyed by (seed, step, row id).

    A row therefore gets the same draws whichever worker holds it and whether or not the run was resumed.

    Args:
        seed: the run's seed.
        step: the optimizer step.
        row_ids: a non-negative integer a row, unique within the step.
        experts: E.
        dim: D.
        dropout: probability of dropping an input dimension of an expert, in [0, 1).
    """
    noise = np.empty((2, len(row_ids), experts), dtype=np.float32)
    uniform = np.empty((2, len(row_ids), experts, dim), dtype=np.float32)
    for position, row in enumerate(row_ids):
        generator = np.random.Generator(np.random.Philox(key=[(seed << 32) + step, row]))
        noise[:, position] = generator.standard_normal((2, experts), dtype=np.float32)
        uniform[:, position] = generator.random((2, experts, dim), dtype=np.float32)
    keep = (uniform >= dropout).astype(np.float32) / (1.0 - dropout)
    user, item = (Randomness(torch.from_numpy(noise[s]), torch.from_numpy(keep[s])) for s in range(2))
    return AdapterRandomness(user, item)


class MoEAdapter(nn.Module):
    """A softmax-gated mixture of E affine experts: a = s sum_e g_e(x) W_e (x - b_e).

    The output scale s is fixed before training, by the backbone's own embeddings; it is stored with the weights.

    In training the gate's logits carry trainable noise, n * (softplus(x W_noise) + 0.01), and each expert's input
    dropout; both come in from outside (`Randomness`), and without them the mixture is deterministic.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    output_scale: torch.Tensor

    def __init__(self, embedding_dim: int, hidden_size: int, experts: int = 8, top_k: int | None = None):
        super().__init__()
        self.top_k = top_k
        self.register_buffer("mean", torch.zeros(embedding_dim))
        self.register_buffer("scale", torch.ones(embedding_dim))
        self.register_buffer("output_scale", torch.ones(()))
        self.gate = nn.Parameter(torch.zeros(embedding_dim, experts))
        self.gate_noise = nn.Parameter(torch.zeros(embedding_dim, experts))
        # As large as a standardised embedding, whose mean is zero: from zero shifts, what all nodes have in common (how
        # an explanation reads) would be learned many times slower than what sets them apart.
        self.expert_shift = nn.Parameter(torch.randn(experts, embedding_dim))
        self.expert_weight = nn.Parameter(torch.empty(experts, embedding_dim, hidden_size))
        # A standardised embedding then comes out with entries of about 1, before the output scale.
        nn.init.normal_(self.expert_weight, std=(experts / embedding_dim) ** 0.5)

    @torch.no_grad()
    def fit_normalization(self, embeddings: torch.Tensor) -> None:
        """Set the input scaling to mean 0 and variance 1 per dimension over `embeddings` `[N, D]`.

        A dimension that is the same for all of them carries nothing and is switched off; dividing by its rounding
        errors would blow it up.
        """
        spread = embeddings.float().std(0, correction=0)
        varies = spread > 1e-5 * embeddings.float().square().mean().sqrt()
        self.mean.copy_(embeddings.float().mean(0))
        self.scale.copy_(torch.where(varies, spread.clamp(min=1e-30).reciprocal(), 0.0))

    @torch.no_grad()
    def fit_output_scale(self, embeddings: torch.Tensor, rms: float) -> None:
        """Scale an untrained mixture so that the vectors of `embeddings` `[N, D]` have a root mean square of `rms`.

        The shifts become as large as the embeddings; the weights keep their ordinary size, so that a step of the
        optimizer is in the same units as the vectors.
        """
        self.output_scale.fill_(1.0)
        inputs = (embeddings.float() - self.mean) * self.scale
        self.expert_shift.mul_(float(inputs.std(correction=0)) / float(self.expert_shift.std(correction=0)))
        found = rms_of(self(embeddings))
        self.output_scale.fill_(rms / found if found > 0 else rms)

    def _apply(self, fn: Any, recurse: bool = True) -> "MoEAdapter":
        # Conversion to bfloat16 would round the mean, whose error the division by a small spread then multiplies.
        kept = {name: buffer.float() for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, exact in kept.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != torch.float32 and not moved.is_meta:
                self._buffers[name] = exact.to(moved.device)
        return self

    def forward(self, embeddings: torch.Tensor, randomness: Randomness | None = None) -> torch.Tensor:
        """Adapt a batch.

        Args:
            embeddings: `[B, D]`, LightGCN's, unscaled.
            randomness: the training draws; None for the deterministic mixture.

        Returns:
            `[B, H]`, in the parameters' type.
        """
        x = ((embeddings.float() - self.mean.float()) * self.scale.float()).to(self.gate.dtype)
        logits = x @ self.gate
        inputs = x.unsqueeze(1)
        if randomness is not None:
            deviation = nn.functional.softplus(x @ self.gate_noise) + NOISE_FLOOR
            logits = logits + randomness.gate_noise.to(x.dtype) * deviation
            inputs = inputs * randomness.keep.to(x.dtype)
        weights = self._gate_weights(logits)
        mixed = weights.unsqueeze(-1) * (inputs - self.expert_shift)
        vectors = mixed.flatten(1) @ self.expert_weight.flatten(0, 1)
        return vectors * self.output_scale.to(vectors.dtype)

    def _gate_weights(self, logits: torch.Tensor) -> torch.Tensor:
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            kept = logits.topk(self.top_k, dim=-1).indices
            logits = torch.full_like(logits, float("-inf")).scatter(-1, kept, logits.gather(-1, kept))
        return logits.softmax(-1)


class XRecAdapter(
    nn.Module,
    ModelHubMixin,
    library_name="xrec",
    license="apache-2.0",
    tags=["recommendation", "explanation", "graph-neural-network"],
    model_card_template=_CARD,
):
    """The pair of adapters for users and items: what a user of XRec shares.

    `XRecAdapter.from_pretrained(folder or hub id)`, `save_pretrained(folder)` and `push_to_hub(hub id)` work as in
    transformers; the folder holds `adapter.safetensors`, `config.json` and a model card.
    """

    def __init__(self, spec: AdapterSpec):
        super().__init__()
        self.spec = spec
        self.user = MoEAdapter(spec.embedding_dim, spec.hidden_size, spec.experts, spec.top_k)
        self.item = MoEAdapter(spec.embedding_dim, spec.hidden_size, spec.experts, spec.top_k)

    def fit_normalization(self, user: torch.Tensor, item: torch.Tensor) -> None:
        """Standardise inputs by the training nodes' embeddings: user `[N, D]`, item `[M, D]`."""
        self.user.fit_normalization(user)
        self.item.fit_normalization(item)

    def fit_output_scale(self, user: torch.Tensor, item: torch.Tensor, rms: float) -> None:
        """Let the vectors of user `[N, D]` and item `[M, D]` embeddings have a root mean square of `rms` each."""
        self.user.fit_output_scale(user, rms)
        self.item.fit_output_scale(item, rms)

    def trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The named parameters that tuning changes; the normalisation buffers are not among them."""
        return list(self.named_parameters())

    def _save_pretrained(self, save_directory: Path) -> None:
        state = {name: value.detach().float().cpu().contiguous() for name, value in self.state_dict().items()}
        check_finite(state, "the adapter to be saved")
        save_file(state, save_directory / WEIGHTS, metadata={"format": "pt"})
        (save_directory / CONFIG).write_text(json.dumps(asdict(self.spec), indent=1, sort_keys=True))

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **_: Any,
    ) -> "XRecAdapter":
        def find(name: str) -> Path:
            if Path(model_id).is_dir():
                if not (Path(model_id) / name).is_file():
                    raise FileNotFoundError(f"{model_id} has no {name}; an adapter's folder is what `xrec tune` writes")
                return Path(model_id) / name
            return Path(
                hf_hub_download(
                    model_id,
                    name,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )

        values = json.loads(find(CONFIG).read_text())
        unknown = set(values) - {f.name for f in fields(AdapterSpec)}
        if unknown:
            raise ValueError(f"{model_id}/{CONFIG}: unknown field {min(unknown)!r}; it was written by another version")
        adapter = cls(AdapterSpec(**values))
        state = load_file(find(WEIGHTS))
        check_finite(state, f"{model_id}/{WEIGHTS}")
        # Adapters of earlier versions have no output scale.
        adapter.load_state_dict({f"{side}.output_scale": torch.ones(()) for side in ("user", "item")} | state)
        return adapter.eval()


def rms_of(values: torch.Tensor) -> float:
    """The root mean square of all entries."""
    return float(values.float().square().mean().sqrt())


def check_finite(tensors: dict[str, torch.Tensor], source: str) -> None:
    """Raise where a tensor holds NaN or infinity.

    Args:
        tensors: by name.
        source: what holds them, for the error.

    Raises:
        ValueError: naming the first such tensor.
    """
    for name, tensor in tensors.items():
        bad = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
        if bad:
            raise ValueError(
                f"{source}: {bad:,} of {tensor.numel():,} values of {name!r} are not finite; the run that wrote them "
                "diverged: tune again with `xrec tune --force`, a lower tune.learning_rate or tune.precision: float32"
            )
