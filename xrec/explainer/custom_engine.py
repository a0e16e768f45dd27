"""A user's own engine, named `module:callable` in the settings: any other inference server behind the seam of `Engine`.

Of the backbone it is given the tokenizer, which prompts are built with, and the name; weights are its own business.
"""

import importlib
import inspect
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from xrec.config import ConfigError, ExplainConfig
from xrec.explainer.adapter import AdapterSpec
from xrec.explainer.engine import Engine
from xrec.explainer.loading import check_backbone

_METHODS = ("generate", "stream", "logprobs", "close")


@dataclass(frozen=True)
class EngineSetup:
    """What the callable is given.

    Attributes:
        tokenizer: the backbone's; the engine keeps it as its attribute `tokenizer`.
        backbone: Hugging Face name, or a folder. The folder may be gone once the callable has returned.
        spec: the adapter's: where its vectors are injected, and how many numbers they have.
        config: all settings of `explain`; `config.compute.engine_arguments` are the engine's own.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
    """

    tokenizer: Any
    backbone: str
    spec: AdapterSpec
    config: ExplainConfig
    device: str


def is_custom(engine: str) -> bool:
    """Whether a setting names a user's own engine."""
    return ":" in engine


def check_custom(engine: str) -> None:
    """Refuse an engine that cannot be imported or called, or a class that lacks a method.

    Raises:
        ConfigError: naming the setting and the remedy.
    """
    made = _find(engine)
    if inspect.isclass(made):
        _check_methods(engine, made)


def open_custom(
    path: str, config: ExplainConfig, spec: AdapterSpec, device: str = "auto", name: str | None = None
) -> Engine:
    """Start the user's engine for the backbone in the folder, or of the Hugging Face name, `path`.

    Args:
        path: what the backbone's tokenizer and config are loaded from; its weights are not.
        config: generation settings.
        spec: the adapter's.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        name: the backbone's, None for the workspace's own.

    Raises:
        ConfigError: the engine is no engine.
        WorkspaceError: the backbone is another one than the adapter's.
    """
    make = _find(config.engine)
    check_backbone(spec, name, path, AutoConfig.from_pretrained(path))
    engine = make(EngineSetup(AutoTokenizer.from_pretrained(path), path, spec, config, device))
    _check_methods(config.engine, engine)
    if not hasattr(engine, "tokenizer"):
        raise ConfigError(
            f"explain.engine = {config.engine!r}: what it returned has no attribute tokenizer; keep the setup's as that"
        )
    return engine


def _find(engine: str) -> Any:
    module_name, _, path = engine.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"explain.engine = {engine!r}: the module {module_name!r} cannot be imported ({error}); install it, or put "
            "its folder on PYTHONPATH, wherever actors run"
        ) from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise ConfigError(
                f"explain.engine = {engine!r}: the module {module_name!r} has no {path!r}; name a class or function "
                "that is there"
            )
        found = getattr(found, name)
    if not callable(found):
        raise ConfigError(
            f"explain.engine = {engine!r}: it is of type {type(found).__name__}, which cannot be called; name a class, "
            "or a function that takes an EngineSetup and returns an engine"
        )
    return found


def _check_methods(engine: str, made: Any) -> None:
    missing = [name for name in _METHODS if not callable(getattr(made, name, None))]
    if missing:
        raise ConfigError(
            f"explain.engine = {engine!r} lacks the method {' and '.join(missing)}; an engine has "
            f"{', '.join(_METHODS)} (see docs/engines.md)"
        )
