"""Adapter, injection, prompts, tuning and generation: how a frozen language model learns to read embeddings."""

from xrec.explainer.adapter import AdapterSpec, MoEAdapter, XRecAdapter
from xrec.explainer.engine import Engine, Request, Result, Sampling
from xrec.explainer.explain import Explainer
from xrec.explainer.generation import HuggingFaceEngine
from xrec.explainer.model import XRecModel, load_backbone
from xrec.explainer.prompt import PromptBuilder
from xrec.explainer.tuning import tune

__all__ = [
    "AdapterSpec",
    "Engine",
    "Explainer",
    "HuggingFaceEngine",
    "MoEAdapter",
    "PromptBuilder",
    "Request",
    "Result",
    "Sampling",
    "XRecAdapter",
    "XRecModel",
    "load_backbone",
    "tune",
]
