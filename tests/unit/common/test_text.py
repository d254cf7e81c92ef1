"""Text ⇄ ids: any split of any text gives the cut of the whole text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from tiermesh.common.detokenize import Detokenizer, token_bytes
from tiermesh.common.errors import InvalidRequest, ModelDirError
from tiermesh.common.text import Text
from tiermesh.common.types import ChatMessage
from tiermesh.training.random_model import write_random_model


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def text(directory: Path) -> Text:
    return Text(directory)


# Every byte is a token of its own here, so that splits fall anywhere, within characters too.
BYTES = [bytes([i]) for i in range(256)]


def cut(whole: str, stops: list[str]) -> str:
    """The plain definition: before the stop string that ends first, the longest of those that end together."""
    ends = [(whole.find(s) + len(s), whole.find(s)) for s in stops if s in whole]
    return whole[: min(ends)[1]] if ends else whole


words = st.text(alphabet="abä€😀\n", max_size=12)


@given(whole=words, stops=st.lists(st.text(alphabet="abä€😀\n", min_size=1, max_size=4), max_size=3), data=st.data())
@example(whole="abab", stops=["bab", "abc"], data=None)
def test_any_split_gives_the_cut_of_the_whole(whole: str, stops: list[str], data: st.DataObject | None) -> None:
    ids, shown, target = list(whole.encode()), "", cut(whole, stops)
    out = Detokenizer(BYTES, stops)
    while ids and not out.stopped:
        size = data.draw(st.integers(1, len(ids))) if data else 1
        delta = out.push(ids[:size])
        shown += delta
        assert target.startswith(shown)
        if not out.stopped:
            assert out.used == min(size, len(ids))
            held = whole[: len(whole.encode()[: len(whole.encode()) - len(ids) + size].decode(errors="ignore"))]
            waits = held[len(shown) :]
            assert waits == "" or any(s.startswith(waits) for s in stops), "held back without need"
        ids = ids[size:]
    assert shown + out.finish() == target
    assert out.stopped == any(s in whole for s in stops)


@given(whole=words, stops=st.lists(st.text(alphabet="abä€", min_size=1, max_size=3), max_size=2), data=st.data())
def test_going_on_after_delivered_text(whole: str, stops: list[str], data: st.DataObject) -> None:
    ids = list(whole.encode())
    at = data.draw(st.integers(0, len(ids)))
    target = cut(whole, stops)
    prefix_chars = data.draw(st.integers(0, len(cut(whole.encode()[:at].decode(errors="ignore"), stops))))
    shown = target[:prefix_chars]
    out = Detokenizer(BYTES, stops, ids[:at], len(shown.encode()))
    assert shown + out.push(ids[at:]) + out.finish() == target


@given(st.lists(st.integers(0, 255), max_size=12), st.data())
def test_broken_utf8_is_what_the_whole_would_give(raw: list[int], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(raw)))
    out = Detokenizer(BYTES)
    assert out.push(raw[:at]) + out.push(raw[at:]) + out.finish() == bytes(raw).decode(errors="replace")


def test_a_stop_string_within_one_push_uses_only_its_ids() -> None:
    out = Detokenizer(BYTES, ["\n\n"])
    assert out.push(list(b"one\n\ntwo")) == "one"
    assert (out.stopped, out.used) == (True, 5)
    assert out.push(list(b"more")) == out.finish() == ""


@given(st.lists(st.integers(0, 319), max_size=30))
def test_decoding_agrees_with_the_tokenizers_own(directory: Path, text: Text, ids: list[int]) -> None:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert text.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True)


@given(st.text(max_size=40))
def test_text_survives_the_round_trip(text: Text, whole: str) -> None:
    assert text.decode(text.encode_prompt(whole)) == whole


def test_prompts_of_each_kind(text: Text) -> None:
    plain = text.encode_prompt("open the blinds\n")
    chat = text.encode_prompt((ChatMessage("user", "open the blinds"),))
    assert plain == chat
    assert plain[0] == 0
    assert text.encode_prompt((5, 6, 7)) == [5, 6, 7]
    assert text.count("open the blinds\n") == len(plain)


def test_ids_past_the_tokenizer_have_no_text(text: Text) -> None:
    assert text.decode([100_000, -1]) == ""


def test_sentencepiece_bytes_and_spaces() -> None:
    tokenizer = Tokenizer(models.BPE({"▁the": 0, "<0xE2>": 1, "<0x82>": 2, "<0xAC>": 3, "s": 4}, []))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    assert token_bytes(tokenizer) == [b" the", b"\xe2", b"\x82", b"\xac", b"s"]
    assert Detokenizer(token_bytes(tokenizer)).push([0, 1, 2, 3, 4]) == " the€s"


def test_a_decoder_that_is_not_per_token_is_refused() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0}, []))
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(ModelDirError, match="WordPiece"):
        token_bytes(tokenizer)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("", "no chat template"),
        ("{{ raise_exception('only users') }}", "only users"),
        ("{{ messages[5].x }}", "refuse"),
    ],
)
def test_templates_that_do_not_take_the_messages(tmp_path: Path, template: str, message: str) -> None:
    directory = write_random_model(tmp_path)
    (directory / "chat_template.jinja").write_text(template)
    with pytest.raises(InvalidRequest, match=message):
        Text(directory).encode_prompt((ChatMessage("user", "hello"),))


def test_a_template_can_not_leave_its_sandbox(tmp_path: Path) -> None:
    directory = write_random_model(tmp_path)
    (directory / "chat_template.jinja").write_text("{{ messages.__class__.__mro__ }}{{ ''.__class__.__base__() }}")
    with pytest.raises(InvalidRequest, match="refuses"):
        Text(directory).render([ChatMessage("user", "hello")])


def test_missing_and_broken_tokenizers_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelDirError, match=r"tokenizer\.json is missing"):
        Text(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelDirError, match="can't be read"):
        Text(tmp_path)
