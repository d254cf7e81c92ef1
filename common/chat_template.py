"""Chat templates: the Jinja text by which a model's directory says how it wants a conversation written.

A template comes with the model, and a model is data: it runs in Jinja's sandbox, with the filters and methods that chat
templates use, without those that pad and format to any width, and with limits on CPU time and on what it builds.
Beyond that it finds what Hugging Face's tokenizers offer it, so that the prompt is the one the model was trained on.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import FrameType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from .types import ChatMessage

_CPU_S = 2.0
"""Thread time of one rendering. The largest prompt that is accepted takes some milliseconds."""

_BUILT = 1 << 26
"""Characters of all strings that one rendering may build: a prompt of 2²⁰ goes through a few hands on its way."""

_ITEM = 64
"""What a small value counts for: about its memory. A list counts 8 for each of its references."""

_FILTERS = (
    *("abs", "count", "d", "default", "dictsort", "first", "float", "int", "items", "last", "length", "map", "max"),
    *("min", "reject", "rejectattr", "safe", "select", "selectattr", "sort", "unique"),
)

_TEXT_FILTERS = ("capitalize", "e", "escape", "lower", "reverse", "title", "trim", "upper", "wordcount")

_STRING_METHODS = frozenset(
    (
        *("capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit"),
        *("islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower", "lstrip", "partition"),
        *("removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split"),
        *("splitlines", "startswith", "strip", "swapcase", "title", "upper"),
    )
)

_WIDTH = re.compile(r"%[^a-zA-Z%]*(\d{3}|\*)")


class ChatTemplate:
    """One template. Safe to use from several threads."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], cpu_s: float = _CPU_S) -> None:
        """Raises ValueError when it can't be compiled. `special_tokens` are texts by their names, as "bos_token"."""
        self._environment = _Environment()
        try:
            self._template = self._environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as exc:
            raise ValueError(str(exc)) from exc
        self._special_tokens = dict(special_tokens)
        self._cpu_s = cpu_s

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """The conversation, ready for the answer. Raises ValueError with the reason when the template refuses it."""
        try:
            with self._environment.limits(self._cpu_s):
                return self._template.render(
                    messages=[{"role": m.role, "content": m.content} for m in messages],
                    tools=None,
                    documents=None,
                    add_generation_prompt=True,
                    **self._special_tokens,
                )
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as exc:
            raise ValueError(str(exc)) from exc
        except RecursionError as exc:
            raise ValueError("it calls itself too deeply") from exc


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, in which whatever can build something large is counted before it does."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
        self._local = threading.local()
        self.filters = {name: FILTERS[name] for name in _FILTERS}
        self.filters |= {name: self._counting(name) for name in _TEXT_FILTERS}
        self.filters |= {"tojson": self._to_json, "concatenated": self._concatenated}
        self.filters |= {"join": self._join, "replace": self._replace, "string": self._string, "list": self._list}
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _refuse, "strftime_now": _strftime_now}
        self.finalize = self._counted
        self.concat = self._concat  # type: ignore[method-assign]

    @contextmanager
    def limits(self, cpu_s: float) -> Iterator[None]:
        """Around one rendering: `jinja2.TemplateError` once it has taken too long or built too much."""
        self._local.built = 0
        before, ends = sys.gettrace(), time.thread_time() + cpu_s

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            if time.thread_time() > ends:
                raise jinja2.TemplateError(f"it takes more than {cpu_s:g} s")
            return trace if frame.f_code.co_filename == "<template>" else None

        # Loops of a template are Python's own, with nothing in them that could be hooked.
        sys.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(before)

    def spend(self, size: int) -> None:
        """Counts what is about to be built."""
        self._local.built = getattr(self._local, "built", 0) + size
        if self._local.built > _BUILT:
            raise jinja2.TemplateError(f"it builds more than {_BUILT} characters")

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Of strings the methods that can't blow them up, of numbers none."""
        if isinstance(obj, str):
            return attr in _STRING_METHODS
        return not isinstance(obj, int | float | bytes) and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """`str.format` is a method as any other here, and none of those that are safe."""

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls of methods, macros and globals; strings that build strings are counted before."""
        self, owner = __self, getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            if __obj.__name__ == "join" and len(args) == 1:
                return self._join(args[0], owner)
            if __obj.__name__ == "replace":
                return self._replace(owner, *args)
            self.spend(len(owner) * (_ITEM if "split" in __obj.__name__ else 1))
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Operators on strings and lists, and on numbers that would become large."""
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * (right if operator == "**" else 1) + right.bit_length()
            self.spend(_BUILT + 1 if bits > 4096 else _ITEM)
        elif operator == "*":
            times, what = (left, right) if isinstance(left, int) else (right, left)
            self.spend(_weight(what) * max(0, times) if isinstance(times, int) else _ITEM)
        elif operator == "%" and isinstance(left, str):
            if _WIDTH.search(left):
                raise jinja2.TemplateError("widths of more than two digits are not supported")
            self.spend(len(left) + self._text_weight(right))
        else:
            self.spend(_weight(left) + _weight(right))
        return super().call_binop(context, operator, left, right)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Slices are counted."""
        if isinstance(argument, slice):
            self.spend(_weight(obj))
        return super().getitem(obj, argument)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _CountConcatenation().visit(super()._parse(source, name, filename))  # type: ignore[no-any-return]

    def _text_weight(self, value: Any) -> int:
        """Characters of a value's text, about. Items that occur many times count each time, as they are written."""
        if isinstance(value, Mapping):
            value = [*value.keys(), *value.values()]
        if isinstance(value, list | tuple):
            weight = 0
            for item in value:
                weight += self._text_weight(item)
                if weight > _BUILT:
                    break
            return weight + 2
        return len(value) if isinstance(value, str) else _ITEM

    def _counted(self, value: Any) -> Any:
        self.spend(self._text_weight(value))
        return value

    def _counting(self, name: str) -> Callable[..., Any]:
        """A filter of text, counted."""

        def counted(value: Any, *args: Any, **kwargs: Any) -> Any:
            self.spend(_weight(value))
            return FILTERS[name](value, *args, **kwargs)

        return counted

    def _list(self, values: Iterable[Any]) -> list[Any]:
        self.spend(_ITEM * len(values) if isinstance(values, str) else _weight(values))
        return list(values)

    def _concat(self, parts: Iterable[str]) -> str:
        known = list(parts)
        self.spend(sum(map(len, known)))
        return "".join(known)

    def _concatenated(self, values: list[Any]) -> str:
        return "".join(str(self._counted(value)) for value in values)

    def _string(self, value: Any) -> str:
        return str(self._counted(value))

    def _join(self, values: Iterable[Any], separator: str = "", attribute: str | int | None = None) -> str:
        known = [self.getitem(value, attribute) if attribute is not None else value for value in values]
        self.spend(len(separator) * len(known))
        return str(separator).join(str(self._counted(value)) for value in known)

    def _replace(self, text: str, old: str, new: str, count: int = -1) -> str:
        text, old, new = str(text), str(old), str(new)
        self.spend(len(text) + text.count(old) * len(new))
        return text.replace(old, new, -1 if count is None else count)

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        if isinstance(indent, int) and indent > 16:
            raise jinja2.TemplateError("tojson indents by 16 at most")
        text = json.dumps(
            self._counted(value),
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )
        self.spend(len(text))
        return text


class _CountConcatenation(NodeTransformer):
    """Makes `a ~ b` a filter, since the operator itself can't be intercepted."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        values = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(values, "concatenated", [], [], None, None, lineno=node.lineno)


class _Generation(Extension):
    """`{% generation %}` marks what training should learn; for a prompt it is its contents."""

    tags = {"generation"}  # noqa: RUF012 - the base class has it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The contents."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _weight(value: Any) -> int:
    """Characters of a string, memory of a list."""
    if isinstance(value, str):
        return len(value)
    return 8 * len(value) if isinstance(value, list | tuple) else _ITEM


def _refuse(message: str) -> None:
    """`raise_exception`: what templates call on messages that they do not take."""
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    if _WIDTH.search(form):
        raise jinja2.TemplateError("widths of more than two digits are not supported")
    return datetime.now().astimezone().strftime(form)
