"""Text in and out of token ids, as the directory of a model defines it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from .chat_template import ChatTemplate
from .detokenize import Detokenizer, token_bytes
from .errors import InvalidRequest, ModelDirError
from .model_dir import read_chat_template, read_json
from .types import ChatMessage, Prompt

__all__ = ["Detokenizer", "Text"]

_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class Text:
    """Tokenizer and chat template of one model. Safe to use from several threads."""

    def __init__(self, directory: Path) -> None:
        """Reads tokenizer.json, tokenizer_config.json and the chat template; ModelDirError when they can't be used."""
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise ModelDirError(f"{directory} is no complete model directory: tokenizer.json is missing")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as exc:
            raise ModelDirError(f"{path} can't be read: {exc}") from exc
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.token_bytes: Sequence[bytes] = token_bytes(self._tokenizer)
        """Bytes of each id; special tokens have none."""
        self._template = _compile(directory)

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt: text with the tokenizer's special tokens, messages through the template, ids as they are.

        Raises InvalidRequest when the model has no chat template or the template refuses the messages.
        """
        if isinstance(prompt, str):
            return self._tokenizer.encode(prompt).ids
        messages = [m for m in prompt if isinstance(m, ChatMessage)]
        if messages:
            return self._tokenizer.encode(self.render(messages), add_special_tokens=False).ids
        return [i for i in prompt if isinstance(i, int)]

    def count(self, prompt: Prompt) -> int:
        """Tokens of a prompt."""
        return len(self.encode_prompt(prompt))

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """The conversation as the template writes it, ready for the answer."""
        if self._template is None:
            raise InvalidRequest.field("prompt.messages", "this model has no chat template; send text instead")
        try:
            return self._template.render(messages)
        except ValueError as exc:
            raise InvalidRequest.field("prompt.messages", f"the chat template refuses them: {exc}") from exc

    def detokenizer(
        self, stop: Sequence[str] = (), delivered_ids: Sequence[int] = (), delivered_bytes: int | None = None
    ) -> Detokenizer:
        """The text of one answer; see `Detokenizer`."""
        return Detokenizer(self.token_bytes, stop, delivered_ids, delivered_bytes)

    def decode(self, ids: Sequence[int]) -> str:
        """The whole text of `ids`, special tokens left out."""
        whole = self.detokenizer()
        return whole.push(ids) + whole.finish()


def _special_tokens(directory: Path) -> dict[str, str]:
    """The texts of the special tokens that tokenizer_config.json names, by their names there."""
    path = directory / "tokenizer_config.json"
    config: dict[str, Any] = read_json(path) if path.exists() else {}
    tokens = {}
    for key in _SPECIAL:
        value = config.get(key)
        if value is not None:
            tokens[key] = value["content"] if isinstance(value, dict) else str(value)
    return tokens


def _compile(directory: Path) -> ChatTemplate | None:
    source = read_chat_template(directory)
    try:
        return ChatTemplate(source, _special_tokens(directory)) if source else None
    except ValueError as exc:
        raise ModelDirError(f"{directory}: the chat template is broken: {exc}") from exc
