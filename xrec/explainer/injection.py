"""Where adapted vectors enter the language model: every attention layer, at the reserved positions.

Works on any Hugging Face decoder whose attention has separate or fused query, key and value projections, without
touching a weight. Stateless between calls, so it holds under gradient checkpointing, ZeRO-3 and concurrent batches.

Source: Eq. 12 of arXiv 2406.02377. Shapes: B rows, T tokens, H hidden size.
"""

from typing import Any, Literal

import torch
from torch import nn

Injection = Literal["input", "output", "none"]
KEYWORD = "injection"
_REMEDY = (
    "use a decoder of the LLaMA, Mistral, Qwen, Phi-3 or Gemma families, or set tune.injection to none, which replaces "
    "the input embeddings alone"
)
_SEPARATE, _FUSED = ("q_proj", "k_proj", "v_proj"), "qkv_proj"


def attention_modules(backbone: nn.Module) -> list[nn.Module]:
    """The attention module of every layer, in order.

    Raises:
        ValueError: the model has none with query, key and value projections under their usual names.
    """
    found = [m for m in backbone.modules() if hasattr(m, _FUSED) or all(hasattr(m, name) for name in _SEPARATE)]
    if not found:
        raise ValueError(
            f"backbone {type(backbone).__name__}: no layer has {', '.join(_SEPARATE)} or {_FUSED}; {_REMEDY}"
        )
    return found


def attach(backbone: nn.Module, mode: Injection) -> None:
    """Make the backbone's forward accept a keyword `injection` `[B, T, H]`, zero off the reserved positions.

    Args:
        backbone: a Hugging Face decoder; its weights stay as they are.
        mode: `input` computes W_q(x + a), W_k(x + a), W_v(x + a) with x the normed hidden state (Eq. 12);
            `output` computes W_q x + a and so on, as the published code does; `none` attaches nothing.

    Raises:
        ValueError: `output` on a backbone whose projections are fused or differ from the hidden size in width.
    """
    if mode == "none":
        return
    for attention in attention_modules(backbone):
        if mode == "input":
            attention.register_forward_pre_hook(_add_to_input, with_kwargs=True)
        else:
            _attach_output(attention, backbone)


@torch.no_grad()
def check_reached(backbone: nn.Module) -> None:
    """Run two tokens and check that vectors reach every attention layer and change what the model predicts.

    Several families drop keywords that they do not know on the way to their layers, silently. Under ZeRO-3 every worker
    must call it, after DeepSpeed has taken over the model.

    Args:
        backbone: with an injection attached, on its device.

    Raises:
        ValueError: the vectors would be ignored, in all layers or in some.
    """
    name, layers, reached = type(backbone).__name__, attention_modules(backbone), set()

    def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if kwargs.get(KEYWORD) is not None:
            reached.add(module)

    handles = [m.register_forward_pre_hook(note, with_kwargs=True, prepend=True) for m in layers]
    table: Any = backbone.get_input_embeddings()  # pyright: ignore
    device = next(backbone.parameters()).device
    embeddings = table(torch.tensor([[1, 2]], device=device))
    vector = torch.ones_like(embeddings) * embeddings.float().square().mean().sqrt().to(embeddings.dtype)
    vector[..., ::2] *= -1
    try:
        with_vectors, without = (
            backbone(inputs_embeds=embeddings, use_cache=False, **{KEYWORD: v}).logits for v in (vector, vector * 0)
        )
    except TypeError as error:
        raise ValueError(f"backbone {name} does not take the injected vectors ({error}); {_REMEDY}") from error
    finally:
        for handle in handles:
            handle.remove()
    if len(reached) < len(layers) or torch.equal(with_vectors, without):
        raise ValueError(
            f"backbone {name}: injected vectors reach {len(reached)} of its {len(layers)} attention layers, and would "
            f"be ignored in the others; {_REMEDY}"
        )


def vectors_at(
    user_mask: torch.Tensor, item_mask: torch.Tensor, user: torch.Tensor, item: torch.Tensor
) -> torch.Tensor:
    """Adapted vectors at their positions and zero elsewhere.

    Args:
        user_mask, item_mask: `[B, T]` bool, the reserved positions of either side.
        user, item: `[B, H]` adapted vectors.

    Returns:
        `[B, T, H]`.
    """
    zero = torch.zeros((), dtype=user.dtype, device=user.device)
    placed = torch.where(item_mask.unsqueeze(-1), item.unsqueeze(1), zero)
    return torch.where(user_mask.unsqueeze(-1), user.unsqueeze(1), placed)


def _take(args: tuple, kwargs: dict[str, Any]) -> tuple[torch.Tensor | None, torch.Tensor]:
    injection = kwargs.pop(KEYWORD, None)
    return injection, args[0] if args else kwargs["hidden_states"]


def _add_to_input(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    injection, hidden = _take(args, kwargs)
    if injection is None:
        return args, kwargs
    hidden = hidden + injection
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})


def _attach_output(attention: nn.Module, backbone: nn.Module) -> None:
    hidden = backbone.config.get_text_config().hidden_size  # pyright: ignore
    if hasattr(attention, _FUSED):
        raise ValueError(
            f"injection = 'output' needs separate {', '.join(_SEPARATE)}; this backbone fuses them: use 'input'"
        )
    for name in _SEPARATE:
        width = getattr(attention, name).out_features
        if width != hidden:
            raise ValueError(
                f"injection = 'output' adds the adapted vector ({hidden} wide) after {name}, which is {width} wide "
                "(grouped-query attention or another head size): use 'input'"
            )
        getattr(attention, name).register_forward_hook(_add_to_output(attention))
    attention.register_forward_pre_hook(_hold, with_kwargs=True)
    attention.register_forward_hook(_release, always_call=True)


# The projections' inputs don't carry keywords, so the vectors wait on the attention module for the duration of its
# own forward; a recomputed forward (gradient checkpointing) sets them again.
def _hold(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    module.held_injection = kwargs.pop(KEYWORD, None)  # pyright: ignore
    return args, kwargs


def _release(module: nn.Module, args: tuple, output: Any) -> None:
    module.held_injection = None  # pyright: ignore


def _add_to_output(attention: nn.Module):
    def hook(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        held: Any = attention.held_injection
        return None if held is None else output + held

    return hook
