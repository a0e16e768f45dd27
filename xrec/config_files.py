"""Settings from YAML files and `--set` overrides, and back: with errors that name the field, its value and the remedy.

What the settings are is `config.py`'s business.
"""

import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from xrec.config import SECTIONS, ConfigError, RunConfig, Section


def load_config(path: str | os.PathLike | None = None, overrides: list[str] | None = None) -> RunConfig:
    """Read a YAML file and apply `section.key=value` overrides (values are parsed as YAML).

    Raises:
        ConfigError: the file is absent or not YAML, or a field is unknown or out of range; names it and its value.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values = _read_yaml(Path(path))
    for override in overrides or []:
        _apply_override(values, override)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_describe(error, str(path) if path else "config")) from error


def with_overrides(run: RunConfig, overrides: dict[str, Any], source: str) -> RunConfig:
    """The same settings but for some, given by `section.key`.

    Args:
        source: who gives them, for errors.

    Raises:
        ConfigError: a field is unknown or out of range.
    """
    values = run.model_dump(mode="json", by_alias=True, exclude_none=True)
    for key, value in overrides.items():
        _set_value(values, key, value, f"{source}: {key}")
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_describe(error, source)) from error


def section_config(stage: str, run: RunConfig) -> Any:
    """The section of `stage` in `run`, or the stage's defaults where the file does not name it."""
    section = run.section(stage)
    if section is not None:
        return section
    try:
        return SECTIONS[stage]()
    except ValidationError as error:
        raise ConfigError(_describe(error, f"stage {stage!r}")) from error


def to_yaml(section: Section) -> str:
    """The resolved settings, defaults written out."""
    return yaml.safe_dump(section.model_dump(mode="json", by_alias=True, exclude_none=True), sort_keys=False)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"config file {str(path)!r} does not exist; configs/ has examples") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"config file {str(path)!r} is not valid YAML: {error}") from error
    if not isinstance(values or {}, dict):
        raise ConfigError(f"config file {str(path)!r} holds a {type(values).__name__}; it must map stages to settings")
    # `embed:` without a value asks for the stage with its defaults.
    return {k: {} if v is None and k in SECTIONS else v for k, v in (values or {}).items()}


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {override!r} is not of the form section.key=value, such as tune.epochs=2")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: {text!r} is not a YAML value; quote it") from error
    _set_value(values, key.strip(), value, f"--set {override!r}")


def _set_value(values: dict[str, Any], key: str, value: Any, source: str) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{source}: {parent!r} is a value, not a section")
    values[leaf] = value


def _describe(error: ValidationError, source: str) -> str:
    lines = []
    for problem in error.errors():
        field = ".".join(str(p) for p in problem["loc"]) or "(whole file)"
        if problem["type"] == "extra_forbidden":
            lines.append(f"{field} is not a setting{_known_fields(problem['loc'])}")
        elif problem["type"] == "missing":
            lines.append(f"{field} is not set, and has no default; set it")
        elif problem["type"] == "value_error":  # the message names the fields, and the input is the whole section
            lines.append(f"{field}: {problem['msg'].removeprefix('Value error, ')}")
        else:
            lines.append(f"{field} = {problem['input']!r}: {problem['msg']}")
    return f"{source}: " + "; ".join(lines)


def _known_fields(location: tuple) -> str:
    model: Any = RunConfig
    for part in location[:-1]:
        model = SECTIONS.get(part) if model is RunConfig else model.model_fields[part].annotation
    return f" (known: {', '.join(f.alias or n for n, f in model.model_fields.items())})"
