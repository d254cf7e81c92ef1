"""The tokenizer's promises: lossless, single digits, lone newlines, prompts as prefixes."""

from hypothesis import given
from hypothesis import strategies as st

from tiermesh.training.tokenizer import BOS, EOS, PAD, train_tokenizer

TOKENIZER = train_tokenizer(["def f(x):\n    return x + 40\n", "dim the kitchen lights to 40 %\n"] * 3, 320)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_survives(text: str) -> None:
    if not any(special in text for special in ("<|bos|>", "<|eos|>", "<|pad|>")):
        assert TOKENIZER.decode(TOKENIZER.encode(text).ids) == text


@given(st.text("ab1 \n", max_size=20), st.text("ab1 \n", max_size=20))
def test_a_prompt_that_ends_with_a_newline_is_a_prefix_in_tokens(prompt: str, answer: str) -> None:
    prompt_ids = TOKENIZER.encode(prompt + "\n").ids
    assert TOKENIZER.encode(prompt + "\n" + answer).ids[: len(prompt_ids)] == prompt_ids


def test_digits_and_newlines_stand_alone() -> None:
    pieces = [
        TOKENIZER.decode([token]) for token in TOKENIZER.encode("set 1240\n\n    x", add_special_tokens=False).ids
    ]
    assert [piece for piece in pieces if piece.isdigit()] == ["1", "2", "4", "0"]
    assert pieces.count("\n") == 2


def test_specials_have_their_ids_and_are_parsed() -> None:
    assert [TOKENIZER.token_to_id(name) for name in ("<|bos|>", "<|eos|>", "<|pad|>")] == [BOS, EOS, PAD]
    assert TOKENIZER.encode("a<|eos|>").ids[-1] == EOS


def test_a_json_key_is_one_token_with_its_marks() -> None:
    line = '[{"device":"pump.line_2","set":{"on":false}},{"device":"pump.line_3","set":{"on":true}}]'
    tokenizer = train_tokenizer([line + "\n"] * 3, 340)
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode(line, add_special_tokens=False).ids]
    assert pieces[:8] == ['[{"device":"', "pump", ".line", "_2", '","set":{"', "on", '":false', '}},{"device":"']
