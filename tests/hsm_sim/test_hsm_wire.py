"""Frames from anywhere: a message or Malformed, whatever the octets and however they arrive."""

from __future__ import annotations

from itertools import pairwise

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_sim.wire import MAX_DEPTH, Framer, frame
from pkix.errors import Malformed

SCALARS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.text(max_size=8), st.binary(max_size=8), st.booleans(), st.none())
MESSAGES = st.dictionaries(st.text(max_size=4), st.one_of(SCALARS, st.lists(SCALARS, max_size=3)), max_size=4)


def messages(chunks: list[bytes], limit: int = 1 << 16) -> list[object]:
    """What a framer makes of the chunks; a refusal is the last element."""
    framer, found = Framer(limit), []
    try:
        for chunk in chunks:
            found += framer.feed(chunk)
    except Malformed as error:
        found.append(str(error))
    return found


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


@given(st.lists(MESSAGES, max_size=4), st.lists(st.integers(0, 300), max_size=6))
def test_messages_arrive_whole_however_the_stream_is_cut(sent: list[dict[str, object]], cuts: list[int]) -> None:
    assert messages(pieces(b"".join(map(frame, sent)), cuts)) == sent


@given(st.binary(max_size=300))
def test_any_payload_is_a_map_or_malformed(payload: bytes) -> None:
    (result,) = messages([len(payload).to_bytes(4) + payload])
    assert isinstance(result, dict | str)


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
def test_any_stream_means_the_same_however_it_is_cut(stream: bytes, cuts: list[int]) -> None:
    assert repr(messages(pieces(stream, cuts))) == repr(messages([stream]))


NESTED = b"\xa1\x61a" + b"\x81" * 10_000 + b"\x00"


@pytest.mark.parametrize(
    "payload",
    [
        NESTED,
        b"\xa1\x61a" + b"\x81" * MAX_DEPTH + b"\x00",
        b"\xa1\x61a\x9a\x80\x00\x00\x00",  # an array of 2^31
        b"\xa1\x61a\x5b" + (1 << 62).to_bytes(8),  # a byte string of 2^62
        b"\xbf\x61a\x00\xff",  # an indefinite map
        b"\xa2\x61a\x00\x61a\x01",  # one key twice
        cbor2.dumps({"a": cbor2.CBORTag(35, "(a+)+$")}),  # a regular expression
        cbor2.dumps({"a": cbor2.CBORTag(4, [10**9, 1])}),  # 10^1000000000
        cbor2.dumps({"a": cbor2.CBORTag(28, [])}),  # something shared
        cbor2.dumps({"a": 1}) + b"\x00",
        cbor2.dumps([1, 2]),
        b"",
    ],
)
def test_what_no_client_of_ours_sends_is_refused(payload: bytes) -> None:
    assert isinstance(messages([len(payload).to_bytes(4) + payload])[0], str)


def test_a_long_frame_is_refused_by_its_length_alone() -> None:
    assert "2147483648" in str(messages([(1 << 31).to_bytes(4)])[0])
    assert messages([frame({"a": b"x" * 100})], limit=50) != messages([frame({"a": b"x" * 100})], limit=200)
