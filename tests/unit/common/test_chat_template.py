"""Chat templates: the text that transformers renders, and nothing that a hostile one could do to the process."""

from __future__ import annotations

import json
import time
from functools import lru_cache
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from tiermesh.common.chat_template import ChatTemplate
from tiermesh.common.errors import InvalidRequest, ModelDirError
from tiermesh.common.text import Text
from tiermesh.common.types import ChatMessage
from tiermesh.training.random_model import write_random_model

HEADERS = """
{%- set offset = 0 %}
{%- if messages and messages[0]['role'] == 'system' %}
    {%- set opening = messages[0]['content'] | trim %}
    {%- set offset = 1 %}
{%- else %}
    {%- set opening = '' %}
{%- endif %}
{{- bos_token }}
{{- '<|header|>system<|end_header|>\\n\\nToday: ' ~ strftime_now('%d %b %Y') ~ '\\n' + opening + '<|turn|>' }}
{%- if tools is not none %}{{ raise_exception('no tools here') }}{% endif %}
{%- for message in messages[offset:] %}
    {{- '<|header|>' + message['role'] + '<|end_header|>\\n\\n' + message['content'] | trim + '<|turn|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|header|>assistant<|end_header|>\\n\\n' }}
{%- endif %}
"""
TURNS = """
{%- if tools %}
    {{- '<|begin|>system\\n' + tools | tojson }}
{%- elif messages[0].role != 'system' %}
    {{- '<|begin|>system\\nYou help.<|end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages | length - 1, seen=[]) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if message.role == "user" and ns.last == messages | length - 1 %}{% set ns.last = index %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' %}{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}
    {%- if loop.index0 > ns.last %}{% continue %}{% endif %}
    {{- '<|begin|>' ~ message.role ~ '\\n' ~ content ~ '<|end|>' ~ '\\n' }}
    {%- set ns.seen = ns.seen + [message.role] %}
{%- endfor %}
{%- if add_generation_prompt %}
{{ '<|begin|>assistant\\n' }}{{ ns.seen | join(',') }} {{ ns.seen | unique | list | length }}
{{ {'é': ns.seen} | tojson }}
{%- endif %}
"""
ALTERNATING = """{{ bos_token }}
{%- macro turn(m, system) %}[I] {{ system ~ '\\n\\n' if system else '' }}{{ m['content'] }} [/I]{% endmacro %}
{% if messages[0]['role'] == 'system' %}
    {% set system, rest = messages[0]['content'], messages[1:] %}
{% else %}
    {% set system, rest = '', messages %}
{% endif %}
{% for m in rest %}
    {% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('roles must alternate: user, assistant, user') }}
    {% endif %}
    {% if m['role'] == 'user' %}
        {{ turn(m, system if loop.last else none) }}
    {% else %}
        {% generation %} {{ m.content.strip() }}{{ eos_token }}{% endgeneration %}
    {% endif %}
{% endfor %}
{{ '%s-%d' % (unk_token, 3) }}{{ messages | map(attribute='role') | list | tojson(indent=2) }}{{ pad_token is defined }}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | map('upper') | join('; ') }}
{{ messages[0].content.replace('a', 'bb') | replace('b', 'c') }}{{ {'b': 1, 'a': none} | dictsort }}{{ 3 * 2 ** 5 }}"""
TEMPLATES = {"headers": HEADERS, "turns": TURNS, "alternating": ALTERNATING}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
Chat = list[tuple[str, str]]


@lru_cache
def _tokenizer() -> transformers.PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE({"<s>": 0, "</s>": 1, "<unk>": 2}, []))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def theirs(template: str, chat: Chat) -> str:
    """What transformers' tokenizers render."""
    messages = [{"role": role, "content": content} for role, content in chat]
    text = _tokenizer().apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert isinstance(text, str)
    return text


def ours(template: str, chat: Chat) -> str:
    return ChatTemplate(template, SPECIAL).render([ChatMessage(role, content) for role, content in chat])  # type: ignore[arg-type]


contents = st.text(alphabet="ab <>&'\"{}%é€😀\n\t", max_size=12)
chats = st.builds(
    lambda system, turns: (
        [("system", system)] * (system is not None)
        + [(("user", "assistant")[i % 2], turn) for i, turn in enumerate(turns)]
    ),
    st.none() | contents,
    st.lists(contents, min_size=1, max_size=5),
)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=25)
@given(chat=chats)
def test_text_is_that_of_transformers(name: str, chat: Chat) -> None:
    assert ours(TEMPLATES[name], chat) == theirs(TEMPLATES[name], chat)


def test_what_a_template_refuses_is_told_in_its_words() -> None:
    with pytest.raises(ValueError, match="roles must alternate"):
        ours(ALTERNATING, [("user", "a"), ("user", "b")])


NESTED = "{% set ns = namespace(s=[]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}"
GROWING = "{% set ns = namespace(s='x', l=[], x=9) %}{% for i in range(9999) %}"
HOSTILE = {
    "an endless loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops over text": "{% set s = 'x' * 999 %}{% for a in s %}{% for b in s %}{% for c in s %}{% endfor %}{% endfor %}"
    "{% endfor %}",
    "searching": "{% set s = 'x' * 4000000 %}{% for a in range(99999) %}{% if 'y' in s %}{% endif %}{% endfor %}",
    "a long string": "{{ 'x' * 9999999999 }}",
    "a long list": "{{ [1] * 9999999999 }}",
    "doubling": GROWING + "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "adding": GROWING + "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "a list of lists": NESTED + "{{ ns.s }}",
    "its json": NESTED + "{{ ns.s | tojson }}",
    "blocks": GROWING + "{% set s %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = s %}{% endfor %}",
    "many strings": GROWING + "{% set ns.l = ns.l + ['x' * 99999 ~ i] %}{% endfor %}",
    "many slices": GROWING + "{% set ns.s = 'x' * 99999 %}{% set ns.l = ns.l + [ns.s[1:]] %}{% endfor %}",
    "joining": "{{ (['x' * 99999] * 99999) | join }}",
    "joining by method": "{{ ''.join(['x' * 99999] * 99999) }}",
    "replacing": "{{ ('x' * 99999) | replace('x', 'y' * 99999) }}",
    "replacing by method": "{{ ('x' * 99999).replace('x', 'y' * 99999) }}",
    "a width": "{{ '%999999999d' % 1 }}",
    "a width beside": "{{ '%*d' % (999999999, 1) }}",
    "a width of a date": "{{ strftime_now('%999999999Y') }}",
    "an indent": "{{ [1] | tojson(indent=999999999) }}",
    "formatting": "{{ '{:999999999}'.format(1) }}",
    "padding": "{{ 'x'.ljust(999999999) }}",
    "bytes of a number": "{{ (5).to_bytes(999999999, 'big') }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "squaring": GROWING + "{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "the interpreter": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "the interpreter by format": "{{ '{0.__class__}'.format(1) }}",
    "its arguments": "{{ messages.append(1) }}",
    "another file": "{% include '/etc/passwd' %}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_stopped(name: str) -> None:
    began = time.thread_time()
    with pytest.raises(ValueError, match=r"\w"):
        ChatTemplate(HOSTILE[name], SPECIAL, cpu_s=0.2).render([ChatMessage("user", "hello")])
    assert time.thread_time() - began < 2.0


@pytest.mark.parametrize(
    "template", ["{{ 'x' | center(999999999) }}", "{{ lipsum | batch(9) }}", "{% if %}", "{{" + "(" * 5000]
)
def test_what_can_not_be_compiled_is_told_at_load(tmp_path: Path, template: str) -> None:
    directory = write_random_model(tmp_path)
    (directory / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelDirError, match="the chat template is broken"):
        Text(directory)


def test_a_long_conversation_is_well_within_the_limits() -> None:
    for template in TEMPLATES.values():
        chat = [(("user", "assistant")[i % 2], "word " * 200) for i in range(1001)]
        assert len(ours(template, chat)) > 900_000


def configure(directory: Path, **changes: object) -> None:
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_special_tokens_and_templates_come_from_the_tokenizers_configuration(tmp_path: Path) -> None:
    directory = write_random_model(tmp_path)
    (directory / "chat_template.jinja").unlink(missing_ok=True)
    default = {"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}{{ sep_token is defined }}"}
    configure(directory, bos_token={"content": "<go>"}, chat_template=[{"name": "tool_use", "template": "x"}, default])
    assert Text(directory).render([ChatMessage("user", "hello")]) == "<go>helloFalse"
    configure(directory, chat_template=[{"name": "tool_use", "template": "x"}])
    with pytest.raises(ModelDirError, match="none is named default"):
        Text(directory)


def test_a_refusal_names_the_field(tmp_path: Path) -> None:
    directory = write_random_model(tmp_path)
    (directory / "chat_template.jinja").write_text(HOSTILE["doubling"])
    with pytest.raises(InvalidRequest, match=r"prompt\.messages: the chat template refuses them: it builds more than"):
        Text(directory).encode_prompt((ChatMessage("user", "hello"),))
