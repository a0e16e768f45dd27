"""The frozen language model with adapters before it: what tuning trains and generation runs.

Two levels: `InjectedBackbone` takes adapted vectors and knows no adapter, `XRecModel` puts the adapters in front.
Sequences are LEFT padded, so the tokens whose logits matter are the last ones. The loop that trains is `tuning.py`'s.

Shapes: B rows, T tokens, D embedding width, H hidden size, V vocabulary, K tokens whose logits are computed.
"""

import hashlib
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from xrec.explainer.adapter import AdapterRandomness, XRecAdapter
from xrec.explainer.injection import KEYWORD, Injection, attach, check_reached, vectors_at
from xrec.fingerprint import hash_of

IGNORED = -100
# The squares of larger ones would leave float32 when a norm is computed.
_LARGEST_GRADIENT = 1e12


class InjectedBackbone(nn.Module):
    """A frozen causal language model that accepts vectors at reserved positions.

    Args:
        backbone: a Hugging Face causal language model; its parameters are frozen and its weights stay untouched.
        injection: see `injection.attach`.
        input_replacement: whether the vectors also replace the reserved positions' input embeddings.

    Raises:
        ValueError: the backbone would ignore the vectors. A backbone whose parameters are sharded (ZeRO-3) cannot run
            yet; whoever shards it calls `check_injection` once it can.
    """

    def __init__(self, backbone: Any, injection: Injection = "input", input_replacement: bool = True):
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.injection, self.input_replacement = injection, input_replacement
        attach(backbone, injection)
        if not any(hasattr(p, "ds_id") for p in backbone.parameters()):
            self.check_injection()

    def check_injection(self) -> None:
        """Check that the vectors reach every layer; see `injection.check_reached`."""
        if self.injection != "none":
            check_reached(self.backbone)

    @property
    def hidden_size(self) -> int:
        return self.backbone.config.get_text_config().hidden_size

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        user_mask: torch.Tensor,
        item_mask: torch.Tensor,
        user: torch.Tensor,
        item: torch.Tensor,
        last: int = 0,
        **options: Any,
    ) -> Any:
        """Run the model over whole (left-padded) prompts.

        Args:
            input_ids, attention_mask: `[B, T]`.
            user_mask, item_mask: `[B, T]` bool; a row without a true entry gets no signal from that side.
            user, item: `[B, H]` adapted vectors.
            last: K, the number of trailing positions whose logits to compute; 0: all.
            options: passed to the backbone (`use_cache`, `past_key_values`).

        Returns:
            The backbone's output; `logits` is `[B, K, V]`.
        """
        embeddings = self.backbone.get_input_embeddings()(input_ids)
        placed = vectors_at(user_mask, item_mask, user.to(embeddings.dtype), item.to(embeddings.dtype))
        if self.input_replacement:
            embeddings = torch.where((user_mask | item_mask).unsqueeze(-1), placed, embeddings)
        positions, start = positions_of(attention_mask), 0
        if last and placed.requires_grad and not getattr(self.backbone, "is_gradient_checkpointing", False):
            # Nothing before the first reserved position depends on the vectors, so no gradient goes there.
            start = int((user_mask | item_mask).any(0).nonzero().min()) if bool((user_mask | item_mask).any()) else 0
        if start:
            with torch.no_grad():
                options["past_key_values"] = self.backbone(
                    inputs_embeds=embeddings[:, :start],
                    attention_mask=attention_mask[:, :start],
                    position_ids=positions[:, :start],
                    logits_to_keep=1,
                    use_cache=True,
                ).past_key_values
            options["use_cache"] = True
        if self.injection != "none":
            options[KEYWORD] = placed[:, start:]
        return self.backbone(
            inputs_embeds=embeddings[:, start:],
            attention_mask=attention_mask,
            position_ids=positions[:, start:],
            logits_to_keep=last,
            **options,
        )


class XRecModel(nn.Module):
    """Adapters and backbone together; only the adapters' parameters require gradients.

    Args:
        backbone: a Hugging Face causal language model.
        adapter: tuned for, or about to be tuned for, this backbone.
        injection, input_replacement: default to what the adapter's spec says.
    """

    def __init__(
        self,
        backbone: Any,
        adapter: XRecAdapter,
        injection: Injection | None = None,
        input_replacement: bool | None = None,
    ):
        super().__init__()
        mode: Any = adapter.spec.injection if injection is None else injection
        replace = adapter.spec.input_replacement if input_replacement is None else input_replacement
        self.injected = InjectedBackbone(backbone, mode, replace)
        self.adapter = adapter
        self._bad_gradients = 0
        if adapter.spec.hidden_size != self.injected.hidden_size:
            raise ValueError(
                f"the adapter writes vectors of width {adapter.spec.hidden_size}, the backbone's hidden size is "
                f"{self.injected.hidden_size}; load the backbone it was tuned for: {adapter.spec.backbone or 'unnamed'}"
            )

    @property
    def backbone(self) -> Any:
        return self.injected.backbone

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        user_mask: torch.Tensor,
        item_mask: torch.Tensor,
        user: torch.Tensor,
        item: torch.Tensor,
        labels: torch.Tensor | None = None,
        randomness: AdapterRandomness | None = None,
        reduction: Literal["sum", "none"] = "sum",
    ) -> torch.Tensor:
        """The negative log-likelihood of the labelled tokens (Eq. 13), or the logits.

        Args:
            input_ids, attention_mask: `[B, T]`, left padded.
            user_mask, item_mask: `[B, T]` bool, the reserved positions.
            user, item: `[B, D]` graph embeddings.
            labels: `[B, T]`, -100 where no token is to be predicted; None for logits.
            randomness: the adapters' training draws; None for the deterministic mixture.
            reduction: `sum` over the batch, or `none` for one sum a row.

        Returns:
            Natural-log loss in float32: a scalar, or `[B]`; or logits `[B, T, V]`.
        """
        user_vectors = self._watched(self.adapter.user(user, randomness.user if randomness else None))
        item_vectors = self._watched(self.adapter.item(item, randomness.item if randomness else None))
        masks = (user_mask, item_mask, user_vectors, item_vectors)
        if labels is None:
            return self.injected(input_ids, attention_mask, *masks, use_cache=False).logits
        keep = int((labels != IGNORED).any(0).flip(0).nonzero().max()) + 1
        logits = self.injected(input_ids, attention_mask, *masks, last=keep + 1, use_cache=False).logits
        losses = token_losses(logits[:, :-1], labels[:, -keep:])
        return losses.sum() if reduction == "sum" else losses.sum(-1)

    def take_bad_gradients(self) -> int:
        """How many gradients of adapted vectors were not finite since the last call; they were set to zero.

        All of an adapter's gradient comes through its vectors, so none that is not finite reaches an optimizer.
        """
        count, self._bad_gradients = self._bad_gradients, 0
        return count

    def _watched(self, vectors: torch.Tensor) -> torch.Tensor:
        if vectors.requires_grad:
            vectors.register_hook(self._keep_finite)
        return vectors

    def _keep_finite(self, gradient: torch.Tensor) -> torch.Tensor:
        if bool((gradient.abs() < _LARGEST_GRADIENT).all()):
            return gradient
        self._bad_gradients += 1
        return torch.zeros_like(gradient)


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`[B, K]` negative log-likelihoods in float32 of `labels` `[B, K]` under `logits` `[B, K, V]`; 0 where ignored."""
    losses = nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view_as(labels)


def positions_of(attention_mask: torch.Tensor) -> torch.Tensor:
    """`[B, T]` positions that count from each row's first real token."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def load_backbone(
    name_or_path: str, dtype: torch.dtype = torch.float32, device: str | torch.device | None = None
) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer, frozen and in evaluation mode.

    Args:
        name_or_path: a Hugging Face name, or a folder written by `save_pretrained` or `xrec backbone`. A quantised
            checkpoint is loaded as its own config says.
        dtype: of the weights.
        device: where to put it; None leaves it to the caller (ZeRO-3 places shards itself).

    Raises:
        ValueError: nothing can be loaded under that name.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        backbone = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=dtype, attn_implementation="sdpa")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"backbone {name_or_path!r} cannot be loaded ({error}); give a Hugging Face name that this machine can "
            "reach, or a folder with config.json, weights and tokenizer"
        ) from error
    if device is not None:
        backbone.to(device)  # pyright: ignore[reportArgumentType]
    return backbone.requires_grad_(False).eval(), tokenizer


def backbone_hash(name_or_path: str, config: Any) -> str:
    """Identity of a backbone, whatever folder it lies in.

    For a folder: its configs, vocabulary, and each weight file's size and first and last megabyte (reading 13 GB to
    name a model would take longer than loading it). For a hub model: its commit.

    Args:
        name_or_path: as given to `load_backbone`.
        config: the loaded model's config.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        return hash_of({"name": name_or_path, "commit": getattr(config, "_commit_hash", None)})
    files = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".model", ".safetensors", ".bin"))
    return hash_of({p.name: (p.stat().st_size, hashlib.sha256(_ends(p)).hexdigest()) for p in files})


def _ends(path: Path, size: int = 1 << 20) -> bytes:
    with path.open("rb") as file:
        head = file.read(size)
        file.seek(max(size, path.stat().st_size - size))
        return head + file.read()


@torch.no_grad()
def embedding_table(backbone: Any) -> torch.Tensor:
    """`[V, H]` float32 on the CPU: what the input embedding gives for every token id.

    Taken through the module, which in some families (Gemma) scales the stored rows.
    """
    module = backbone.get_input_embeddings()
    ids = torch.arange(module.weight.shape[0], device=module.weight.device)
    return torch.cat([module(part).float().cpu() for part in ids.split(8192)])


def resolve_device(device: str) -> torch.device:
    """`auto` is the first GPU where there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)
