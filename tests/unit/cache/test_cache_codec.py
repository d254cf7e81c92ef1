"""Entries and pieces as bytes: whole or not at all."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiermesh.cache.codec import decode_entry, decode_told, encode_ending, encode_entry, encode_piece
from tiermesh.cache.entry import Entry
from tiermesh.cache.port import Ending
from tiermesh.cache.recorder import Gap, Piece, Recorder
from tiermesh.cache.seal import Unreadable
from tiermesh.common.types import FinishReason, Origin, Tokens, Usage

COUNT = st.integers(0, 2**32 - 1)
FLOAT32 = st.floats(width=32, allow_nan=False)
REASON = st.sampled_from([FinishReason.STOP, FinishReason.LENGTH])
USAGE = st.builds(Usage, COUNT, COUNT, COUNT, COUNT, COUNT, COUNT, st.booleans())


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    ids = draw(st.lists(st.integers(0, draw(st.sampled_from([100, 2**16, 2**32 - 1]))), max_size=20))
    logprobs = draw(st.one_of(st.just([]), st.lists(FLOAT32, min_size=len(ids), max_size=len(ids))))
    return Entry(tuple(ids), draw(st.text(max_size=40)), draw(REASON), draw(USAGE), tuple(logprobs))


@given(entries())
def test_an_entry_comes_back_as_it_was(entry: Entry) -> None:
    assert decode_entry(encode_entry(entry)) == entry


@given(entries(), st.integers(0, 200), st.integers(0, 2000))
def test_a_piece_comes_back_as_it_was(entry: Entry, position: int, text_at: int) -> None:
    piece = Piece(position, text_at, entry.ids, entry.text, entry.logprobs)
    assert decode_told(encode_piece(piece)) == piece


@given(REASON, USAGE)
def test_an_ending_comes_back_as_it_was(reason: FinishReason, usage: Usage) -> None:
    assert decode_told(encode_ending(Ending(reason, usage))) == Ending(reason, usage)


@given(entries(), st.data())
def test_what_is_cut_or_longer_is_refused(entry: Entry, data: st.DataObject) -> None:
    encoded = encode_entry(entry)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    for wrong in (encoded[:cut], encoded + b"\0", b"\2" + encoded[1:]):
        with pytest.raises(Unreadable):
            decode_entry(wrong)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for decode in (decode_entry, decode_told):
        try:
            decode(data)
        except Unreadable:
            continue


def test_kinds_are_not_taken_for_each_other() -> None:
    entry = Entry((1,), "a", FinishReason.STOP, Usage())
    for wrong in (encode_entry(entry), b"", b"\1"):
        with pytest.raises(Unreadable):
            decode_told(wrong)
    with pytest.raises(Unreadable):
        decode_entry(encode_piece(Piece(0, 0, (1,), "a")))


def test_an_entry_is_compact() -> None:
    text = "the quick brown fox " * 16
    kept = encode_entry(Entry(tuple(range(64)), text, FinishReason.STOP, Usage(30, 64, 0, 94)))
    assert len(kept) <= len(text) + 2 * 64 + 16


def answer(ids: list[int]) -> Recorder:
    """Ids whose text lags: each id's text comes with the next one."""
    recorder = Recorder()
    for at, number in enumerate(ids):
        recorder.add(
            Tokens(
                (number,),
                f"é{ids[at - 1]} " if at else "",
                Origin.CLOUD,
                (struct.unpack("f", struct.pack("f", -number / 7))[0],),
            )
        )
    return recorder


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.data())
def test_whatever_pieces_come_the_answer_is_heard_once_and_whole(ids: list[int], data: st.DataObject) -> None:
    """Pieces that overlap, repeat and come again from the start, as after a leader's change."""
    said = Recorder()
    whole = answer(ids)
    cuts = []
    for number in range(len(ids)):
        cuts.append((len(said.ids), said.text_bytes))
        part = whole.since(*cuts[-1])
        said.hear(
            Piece(
                part.position, part.text_at, part.ids[:1], f"é{ids[number - 1]} " if number else "", part.logprobs[:1]
            )
        )
    listener, events = Recorder(), []
    while len(listener.ids) < len(ids):
        begin = data.draw(st.integers(0, len(listener.ids)))
        if (fresh := listener.hear(whole.since(*cuts[begin]))) is not None:
            events.append(fresh)
    assert [i for event in events for i in event.ids] == ids
    assert "".join(event.text for event in events) == whole.since(0, 0).text
    assert listener.hear(whole.since(0, 0)) is None


def test_a_gap_and_another_answer_are_noticed() -> None:
    listener = answer([1, 2, 3])
    before = listener.since(0, 0)
    for wrong in (
        Piece(4, listener.text_bytes, (5,), ""),
        Piece(3, listener.text_bytes + 1, (4,), "x"),
        Piece(0, 0, (1, 9), ""),
        Piece(0, 0, (1, 2, 3), "other"),
    ):
        with pytest.raises(Gap):
            listener.hear(wrong)
        assert listener.since(0, 0) == before
