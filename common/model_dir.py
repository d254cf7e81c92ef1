"""What a model directory says about itself, read without loading weights: digests, end ids, chat template.

Serves both layouts: a Hugging Face directory (config.json, *.safetensors) and an edge directory (edge.json, *.onnx).
Two sides may exchange token ids only when their tokenizer digests agree.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from .errors import ModelDirError
from .types import Digests


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model directory; ModelDirError when it is missing or broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ModelDirError(f"{path.parent} is no complete model directory: {path.name} is missing") from exc
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as exc:
        raise ModelDirError(f"{path} can't be read: {exc}") from exc
    if not isinstance(value, dict):
        raise ModelDirError(f"{path} holds no JSON object")
    return value


def read_chat_template(directory: Path) -> str:
    """The Jinja text that renders messages, of several the one named "default"; "" when the model has none."""
    try:
        return (directory / "chat_template.jinja").read_text(encoding="utf-8")
    except FileNotFoundError:
        template = read_json(directory / "tokenizer_config.json").get("chat_template") or ""
    except (OSError, UnicodeDecodeError) as exc:
        raise ModelDirError(f"{directory}: the chat template can't be read: {exc}") from exc
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if not isinstance(template, str):
        raise ModelDirError(f"{directory}: of its chat templates none is named default; put one in chat_template.jinja")
    return template


def read_eos_ids(directory: Path) -> tuple[int, ...]:
    """Ids that end an answer: edge.json's, else those of generation_config.json, else those of config.json."""
    if (directory / "edge.json").exists():
        ids = read_json(directory / "edge.json").get("eos_ids")
    else:
        names = [name for name in ("generation_config.json", "config.json") if (directory / name).exists()]
        found = [read_json(directory / name).get("eos_token_id") for name in names or ["config.json"]]
        ids = next((value for value in found if value is not None), None)
    ids = [ids] if isinstance(ids, int) else ids
    if not isinstance(ids, list) or not ids or not all(isinstance(value, int) for value in ids):
        raise ModelDirError(f"{directory} names no end-of-text ids (eos_token_id)")
    return tuple(ids)


def file_digest(path: Path) -> str:
    """SHA-256 in hex of a file's bytes; ModelDirError when it can't be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise ModelDirError(f"{path} can't be read: {exc.strerror}") from exc


def digests(directory: Path) -> Digests:
    """SHA-256 in hex of a model directory's weights, of tokenizer.json's bytes and of its chat template's text.

    The model's is that of the one *.onnx file, or that of the digests of several in the order of their names; for a
    Hugging Face directory that of the digests of config.json and of all *.safetensors. Raises ModelDirError when a file
    is missing.
    """
    template = hashlib.sha256(read_chat_template(directory).encode()).hexdigest()
    return Digests(model_digest(directory), file_digest(directory / "tokenizer.json"), template)


def model_digest(directory: Path) -> str:
    """SHA-256 in hex of the weights, as in `digests`."""
    graphs, weights = sorted(directory.glob("*.onnx")), sorted(directory.glob("*.safetensors"))
    if len(graphs) == 1:
        return file_digest(graphs[0])
    if not graphs and not weights:
        raise ModelDirError(f"{directory} holds neither *.onnx nor *.safetensors")
    parts = [file_digest(path) for path in graphs or (directory / "config.json", *weights)]
    return hashlib.sha256("".join(parts).encode()).hexdigest()
