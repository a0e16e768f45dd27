"""Which engine explains, and how it is started: from the settings of `explain` to an `Engine`."""

import importlib.util
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, PreTrainedConfig

from xrec.config import ConfigError, ExplainCompute, ExplainConfig
from xrec.explainer.adapter import AdapterSpec
from xrec.explainer.custom_engine import check_custom, is_custom, open_custom
from xrec.explainer.engine import Engine
from xrec.explainer.generation import HuggingFaceEngine
from xrec.explainer.loading import backbone_dtype, backbone_folder, check_backbone
from xrec.explainer.model import load_backbone, resolve_device
from xrec.explainer.vllm_plugin import unsupported
from xrec.workspace import Workspace

if TYPE_CHECKING:
    from xrec.explainer.vllm_engine import VLLMEngine

# Requests that an engine runs together where `max_num_seqs` is not among its arguments: vLLM's own default depends on
# the machine, and how many blocks an actor must hold depends on it.
SEQUENCES = 256


def choose_engine(workspace: Workspace, config: ExplainConfig, spec: AdapterSpec) -> str:
    """What `auto` means for a batch: vLLM where actors have a GPU, vLLM is here and it runs the backbone."""
    return resolve_engine(config, _backbone_config(workspace), spec)


def resolve_engine(config: ExplainConfig, backbone: Any, spec: AdapterSpec) -> str:
    """The same for a backbone given by its Hugging Face config."""
    if config.engine != "auto":
        return config.engine
    if not config.compute.gpus_per_actor or not has_vllm():
        return "hf"
    return "hf" if unsupported(backbone, spec.injection) else "vllm"  # pyright: ignore


def check_engine(workspace: Workspace, config: ExplainConfig, spec: AdapterSpec) -> None:
    """Refuse a named engine that cannot do what the settings ask.

    Raises:
        ConfigError: naming the setting and the remedy.
    """
    compute = config.compute
    if config.engine != "vllm":
        if compute.workers_per_engine > 1:
            raise ConfigError(
                f"explain.compute: tensor_parallel_size = {compute.tensor_parallel_size} and pipeline_parallel_size = "
                f"{compute.pipeline_parallel_size}, but the engine is {config.engine}, which runs in one process; set "
                "explain.engine to vllm, or both to 1"
            )
        if is_custom(config.engine):
            check_custom(config.engine)
        return
    _need_vllm()
    reason = unsupported(_backbone_config(workspace), spec.injection)  # pyright: ignore
    if reason is not None:
        raise ConfigError(f"explain.engine is vllm, but {reason}; set explain.engine to hf")


def open_engine(workspace: Workspace, config: ExplainConfig, spec: AdapterSpec, device: str = "auto") -> Engine:
    """Start the engine that `config.engine` names, on the backbone that an adapter was tuned for.

    `auto` is the Hugging Face engine: in one process, for a few pairs, vLLM's start takes longer than they do.

    Args:
        workspace: with the stage tune finished.
        config: generation settings.
        spec: the adapter's.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        ConfigError: vLLM is not here, or the user's own engine is no engine.
        WorkspaceError: the backbone is another one.
        ValueError: it cannot be loaded.
    """
    name = _backbone(workspace)
    with backbone_folder(workspace, name) as path:
        if config.engine == "vllm":
            return open_vllm(path, config, spec, device, name)
        if is_custom(config.engine):
            return open_custom(path, config, spec, device, name)
        return open_hugging_face(path, config, spec, device, name)


def open_vllm(
    path: str, config: ExplainConfig, spec: AdapterSpec, device: str = "auto", name: str | None = None
) -> "VLLMEngine":
    """Start vLLM on the backbone in the folder, or of the Hugging Face name, `path`; raises as `open_engine` does."""
    _need_vllm()
    from xrec.explainer.vllm_engine import VLLMEngine

    check_backbone(spec, name, path, AutoConfig.from_pretrained(path))
    dtype = str(backbone_dtype(resolve_device(device))).removeprefix("torch.")
    arguments = {"dtype": dtype} | vllm_arguments(config.compute)
    return VLLMEngine(path, spec.injection, spec.input_replacement, **arguments)  # pyright: ignore


def open_hugging_face(
    path: str, config: ExplainConfig, spec: AdapterSpec, device: str = "auto", name: str | None = None
) -> HuggingFaceEngine:
    """Load the backbone in the folder, or of the Hugging Face name, `path`; raises as `open_engine` does."""
    place = resolve_device(device)
    backbone, tokenizer = load_backbone(path, backbone_dtype(place), place)
    check_backbone(spec, name, path, backbone.config)
    return HuggingFaceEngine(
        backbone,
        tokenizer,
        spec.injection,  # pyright: ignore[reportArgumentType]
        spec.input_replacement,
        config.compute.batch_size,
    )


def vllm_arguments(compute: ExplainCompute) -> dict[str, Any]:
    """vLLM's engine arguments: those of the settings, and those that follow from them."""
    several = {}
    if compute.workers_per_engine > 1:
        several = {
            "tensor_parallel_size": compute.tensor_parallel_size,
            "pipeline_parallel_size": compute.pipeline_parallel_size,
            "distributed_executor_backend": "mp" if compute.placement == "STRICT_PACK" else "ray",
        }
    return {"max_num_seqs": SEQUENCES} | several | compute.engine_arguments


def has_vllm() -> bool:
    return importlib.util.find_spec("vllm") is not None


def _need_vllm() -> None:
    if not has_vllm():
        raise ConfigError(
            "explain.engine is vllm, but vLLM is not installed here; install it: `pip install 'xrec[vllm-gpu]'`, or on "
            "a CPU with `make setup-vllm`; or set explain.engine to hf (with --force where a batch was begun with vllm)"
        )


def _backbone_config(workspace: Workspace) -> Any:
    name = _backbone(workspace)
    if name is not None:
        return AutoConfig.from_pretrained(name)
    return PreTrainedConfig.from_dict(workspace.read_json("backbone", "model", "config.json"))


def _backbone(workspace: Workspace) -> str | None:
    return workspace.manifest("tune")["fingerprint"]["config"]["backbone"]
