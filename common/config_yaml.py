"""YAML with memory: the values of a file, the line of each key, and overrides from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import yaml

from .errors import ConfigError

Path = tuple[str | int, ...]
ENV_PREFIX = "TIERMESH_"
_ALONE = {"insecure"}
"""Keys on the top level that are values themselves, so their variable has no double underscore."""


@dataclass(slots=True)
class Document:
    """The values of a file and where each came from."""

    source: str
    """File name, for messages."""
    values: dict[str, object] = field(default_factory=dict)
    places: dict[Path, str] = field(default_factory=dict)
    """`mesh.yaml:12` or the variable's name, by path."""

    def place(self, path: Path) -> str:
        """Where a path was set; a path that is absent belongs to its nearest parent."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, self.source)


def read_document(text: str, source: str) -> Document:
    """Parses one YAML mapping; ConfigError names the line of a syntax error or a repeated key."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else 1
        raise ConfigError(f"{source}:{line}: no valid YAML: {exc.problem}") from exc
    except yaml.YAMLError as exc:
        raise ConfigError(f"{source}: no valid YAML: {exc}") from exc
    except RecursionError as exc:
        raise ConfigError(f"{source}: is nested deeper than any configuration") from exc
    document = Document(source)
    if root is None:
        raise ConfigError(f"{source}: says nothing; a file that is being written, or was cut off, looks like this")
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{source}:{root.start_mark.line + 1}: the file must be a mapping of sections")
    values = _value(document, root, ())
    assert isinstance(values, dict)
    document.values = values
    return document


def _value(document: Document, node: yaml.Node, path: Path) -> object:
    document.places.setdefault(path, f"{document.source}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.MappingNode):
        return _mapping(document, node, path)
    if isinstance(node, yaml.SequenceNode):
        return [_value(document, item, (*path, index)) for index, item in enumerate(node.value)]
    loader = yaml.SafeLoader("")
    try:
        value: object = loader.construct_object(node)
        return value
    except (yaml.YAMLError, ValueError) as exc:
        raise ConfigError(f"{document.place(path)}: {dotted(path)}: no plain value") from exc
    finally:
        loader.dispose()


def _mapping(document: Document, node: yaml.MappingNode, path: Path) -> dict[str, object]:
    result: dict[str, object] = {}
    for key_node, value_node in node.value:
        place = f"{document.source}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"{place}: {dotted(path)}: a key must be a name")
        key = str(key_node.value)
        if key in result:
            raise ConfigError(f"{place}: {dotted((*path, key))}: given twice")
        document.places[(*path, key)] = place
        result[key] = _value(document, value_node, (*path, key))
    return result


def dotted(path: Path) -> str:
    """`tiers.realtime.ttft_ms`, `router.workers[0]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.lstrip(".") or "file"


def apply_environment(document: Document, environ: Mapping[str, str]) -> None:
    """Puts `TIERMESH_SECTION__KEY` variables over the file's values; each value is read as YAML."""
    for variable in sorted(environ):
        if not variable.startswith(ENV_PREFIX):
            continue
        parts = variable[len(ENV_PREFIX) :].lower().split("__")
        if len(parts) == 1 and parts[0] not in _ALONE:
            continue  # TIERMESH_… without a section belongs to others, such as the command line
        if not all(parts):
            raise ConfigError(f"{variable}: write TIERMESH_SECTION__KEY")
        _override(document, variable, parts, environ[variable])


def _override(document: Document, variable: str, parts: list[str], text: str) -> None:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise ConfigError(f"{variable}: no valid YAML value") from exc
    target: dict[str, object] = document.values
    path: Path = ()
    for part in parts[:-1]:
        key = _existing(target, part)
        path = (*path, key)
        inner = target.setdefault(key, {})
        if inner is None:
            inner = target[key] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"{variable}: {dotted(path)} is a value, not a section")
        document.places.setdefault(path, variable)
        target = inner
    key = _existing(target, parts[-1])
    path = (*path, key)
    target[key] = value
    for known in [known for known in document.places if known[: len(path)] == path]:
        del document.places[known]
    document.places[path] = variable


def _existing(section: dict[str, object], part: str) -> str:
    """The key of a section that a variable's part means: case and dashes don't survive in variable names."""
    for key in section:
        if key.lower().replace("-", "_").replace(".", "_") == part:
            return key
    return part
