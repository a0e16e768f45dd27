"""The vLLM engine that writes texts: from the stage's settings to what `ray.data.llm` is given.

Nothing here imports vLLM: the engine lives in processes of its own.
"""

import functools
import json
import os
from pathlib import Path
from typing import Any

import jinja2
from ray.data.llm import vLLMEngineProcessorConfig

from ray_jobs.resources import section_demands
from ray_jobs.runtime import innermost_cause, logs_of_workers
from xrec.config import ProfileConfig, TextKind
from xrec.explainer.vllm_failures import VARIABLE, blames_another_process
from xrec.explainer.vllm_memory import cache_arguments
from xrec.profiles.answers import FatalError
from xrec.profiles.prompts import SCHEMAS

# An engine on the CPU would bind its threads to all cores by itself, each engine to the same ones.
_CPU_ENVIRONMENT = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1"}
# Settings of ours among the engine's arguments.
_CHAT_TEMPLATE = "chat_template"


def engine_config(config: ProfileConfig, blocks: int, failures: str) -> vLLMEngineProcessorConfig:
    """What `ray.data.llm` runs: engines alone, since prompts come as token ids and texts come back as text.

    Args:
        config: the stage's settings.
        blocks: blocks to write; more engines than these are not started.
        failures: the folder, for every node, where vLLM's processes write why they fail.
    """
    compute = config.compute
    on_cpu = compute.gpus_per_actor == 0
    arguments = {name: value for name, value in compute.engine.items() if name != _CHAT_TEMPLATE}
    if compute.gpus_per_actor > 1:
        arguments.setdefault("tensor_parallel_size", int(compute.gpus_per_actor))
    least, most = compute.actors
    environment = _ENVIRONMENT | (_CPU_ENVIRONMENT if on_cpu else {}) | compute.engine_environment
    if on_cpu:
        arguments |= _cpu_cache(config, arguments, os.environ | environment)
    environment[VARIABLE] = failures
    return vLLMEngineProcessorConfig(
        model_source=config.model or "",
        engine_kwargs=arguments,
        batch_size=compute.rows_per_block,
        concurrency=(least, max(least, min(most, blocks))),
        placement_group_config={"bundles": section_demands("profile", config)[0].bundles},
        runtime_env={"env_vars": environment},
        # A row that the engine refuses becomes a failed row, and costs no other one its answer.
        should_continue_on_error=True,
        log_engine_metrics=False,
        chat_template_stage={"enabled": False},
        tokenize_stage={"enabled": False},
        detokenize_stage={"enabled": False},
    )


def sampling_parameters(config: ProfileConfig, kind: TextKind) -> dict[str, Any]:
    """vLLM's sampling parameters; the schema as text, because Ray Data would fill a table's gaps with nulls."""
    parameters: dict[str, Any] = {"temperature": config.temperature, "max_tokens": config.max_tokens}
    if config.structured_output == "json_schema":
        parameters["structured_outputs"] = {"json": json.dumps(SCHEMAS[kind])}
    elif config.structured_output == "json_object":
        parameters["structured_outputs"] = {"json_object": True}
    return parameters


def load_chat_tokenizer(config: ProfileConfig) -> Any:
    """The model's tokenizer, known to turn our messages into a prompt; loaded once a process.

    Raises:
        FatalError: there is no such model, or its chat template is missing or does not take a system message.
    """
    engine = config.compute.engine
    return _load_chat_tokenizer(
        engine.get("tokenizer") or config.model or "",
        engine.get("tokenizer_revision") or engine.get("revision"),
        bool(engine.get("trust_remote_code", False)),
        engine.get(_CHAT_TEMPLATE),
        config.model or "",
    )


@functools.cache
def _load_chat_tokenizer(
    source: str, revision: str | None, trust_remote_code: bool, template: str | None, model: str
) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise FatalError(
            f"the tokenizer of profile.model = {model!r} does not load ({_first_line(error)}); name a model on the "
            "Hugging Face hub or a folder that every node can read"
        ) from error
    if template is not None:
        tokenizer.chat_template = Path(template).read_text() if os.path.isfile(template) else template
    if not tokenizer.chat_template:
        raise FatalError(
            f"the model {model!r} has no chat template, so it does not say how a chat becomes a prompt; name an "
            "instruction-tuned model, or set profile.compute.engine.chat_template to a Jinja template or its file"
        )
    try:
        tokenizer.apply_chat_template(
            [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}],
            add_generation_prompt=True,
        )
    except jinja2.TemplateError as error:
        raise FatalError(
            f"the chat template of {model!r} does not take a system and a user message ({_first_line(error)}); set "
            "profile.compute.engine.chat_template to one that does"
        ) from error
    return tokenizer


def start_error(config: ProfileConfig, error: Exception, failure: str | None = None) -> FatalError:
    """The error for users of engines that did not start or that Ray gave up.

    Args:
        config: the stage's settings.
        error: as Ray raised it.
        failure: what failed in vLLM's own processes, of which its error may say no more than that they did.
    """
    cause, logs = innermost_cause(error), logs_of_workers()
    if "vLLM is not installed" in cause:
        return FatalError(
            "the vllm backend needs vLLM where Ray's workers run; install it: `pip install 'xrec[vllm-gpu]'`, or on "
            "a CPU with `make setup-vllm`"
        )
    if failure and blames_another_process(cause):
        cause = failure
    remedy = "set what it starts with by profile.compute.engine and profile.compute.engine_environment"
    return FatalError(f"the vLLM engine for profile.model = {config.model!r} failed: {cause}; {remedy}{logs}")


def _cpu_cache(config: ProfileConfig, arguments: dict[str, Any], environment: dict[str, str]) -> dict[str, int]:
    """The size of vLLM's cache on CPUs. How much memory is free there, the engine itself checks at its start."""
    from transformers import AutoConfig

    named = {name: arguments[name] for name in ("revision", "trust_remote_code") if name in arguments}
    try:
        model = AutoConfig.from_pretrained(config.model or "", **named)
    except (OSError, ValueError):
        # A model that only vLLM knows, or none, which loading its tokenizer says better.
        return {}
    return cache_arguments(model, arguments, environment)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
