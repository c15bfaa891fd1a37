"""Configurations from YAML, and back."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import TypeAdapter, ValidationError

from ssl_trainer.config.checks import ConfigError
from ssl_trainer.config.data import DataConfig
from ssl_trainer.config.run import TrainConfig

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

# Keys that are files or folders.
PATHS = (("data", "root"), ("student", "pretrained"), ("assistant", "root_certificates"))


def load(file: Path, overrides: list[str] | None = None) -> TrainConfig:
    """Read a YAML file; ``overrides`` are ``key.path=value`` with YAML values.

    Relative paths are relative to the file.

    Raises:
        ConfigError: the file is missing, not YAML, or a key or value is wrong.
    """
    try:
        content = yaml.safe_load(file.read_text())
    except OSError as error:
        raise ConfigError(f"config: {file}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"config: {file} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"config: {file}: expected keys and values at the top")
    for override in overrides or []:
        _set(content, override)
    for section, key in PATHS:
        part = content.get(section)
        if isinstance(part, dict) and isinstance(part.get(key), str):
            part[key] = str((file.parent / part[key]).resolve())
    return parse(content)


def parse(content: dict[str, Any]) -> TrainConfig:
    """Dictionary to configuration.

    Raises:
        ConfigError: names the key and what was expected.
    """
    try:
        return TypeAdapter(TrainConfig).validate_python(content)
    except ValidationError as error:
        raise ConfigError("\n".join(map(_said, error.errors()))) from error


def _said(error: ErrorDetails) -> str:
    """One error of pydantic's, with the key that may have been meant."""
    words = error["msg"].removeprefix("Value error, ")
    path = [str(part) for part in error["loc"]]
    if error["type"] == "unexpected_keyword_argument":
        near = difflib.get_close_matches(path[-1], _keys(path[:-1]), 1)
        words = f"no such key; did you mean {near[0]}?" if near else "no such key"
    return f"config: {'.'.join(path)}: {words}" if path else f"config: {words}"


def _keys(sections: Sequence[str]) -> list[str]:
    """Of a section of the configuration."""
    node: object = to_dict(TrainConfig(data=DataConfig(root=Path(), classes=("a",))))
    for name in sections:
        node = node.get(name) if isinstance(node, dict) else None
    return list(node) if isinstance(node, dict) else []


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Configuration to a dictionary of plain values, ready for YAML."""
    plain: dict[str, Any] = TypeAdapter(TrainConfig).dump_python(config, mode="json")
    return plain


def _set(content: dict[str, Any], override: str) -> None:
    path, separator, value = override.partition("=")
    if not separator:
        raise ConfigError(f"--set {override!r}: expected key.path=value")
    *parents, last = path.split(".")
    node = content
    for name in parents:
        if node.get(name) is None:  # also a section without keys
            node[name] = {}
        node = node[name]
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override!r}: {name} has no keys below it")
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: {value!r} is not YAML; quote text in it") from error
