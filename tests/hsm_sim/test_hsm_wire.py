"""Frames from anywhere: a message or Malformed, whatever the octets and however they arrive; arguments, and the client."""

from __future__ import annotations

import signal
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_sim.client import Client
from hsm_sim.errors import Code, Rejected
from hsm_sim.wire import MAX_DEPTH, Framer, Request, frame
from pkix.errors import Malformed, Unavailable

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


# --- arguments ---


def refused(look: Callable[[Request], object], **args: object) -> str:
    """The sentence with which an argument is refused."""
    with pytest.raises(Rejected) as caught:
        look(Request.over(args))
    assert caught.value.code is Code.BAD_REQUEST
    return caught.value.text


def test_arguments_are_what_they_have_to_be_or_refused_by_name() -> None:
    request = Request.over({"text": "根", "octets": b"x" * 9, "number": 7, "many": [b"a"], "map": {"a": 1}})
    assert (request.text("text"), request.text_or("text", "-"), request.text_or("none", "-")) == ("根", "根", "-")
    assert (request.octets("octets", 9, 9), request.octets("none", 0)) == (b"x" * 9, b"")
    assert (request.number("number", 7, 7), request.number("none", 1, 2, 2)) == (7, 2)
    assert (request.many("many", bytes), request.many("none", str), request.mapping("map"), request.mapping("none")) == (
        [b"a"],
        [],
        {"a": 1},
        {},
    )
    for value in ("", "x" * 129, "line\nfeed", b"octets", 7, None, ["x"]):
        assert '"it"' in refused(lambda asked: asked.text("it"), it=value)
    for value in (b"", b"x" * 10, "text", bytearray(b"xx"), None):
        assert '"it"' in refused(lambda asked: asked.octets("it", 1, 9), it=value)
    for value in (0, 11, True, 1.0, "1", None):
        assert '"it"' in refused(lambda asked: asked.number("it", 1, 10), it=value)
    for value in ([1], [b"x", "x"], [b"x"] * 65, b"x", {}, None):
        assert '"it"' in refused(lambda asked: asked.many("it", bytes), it=value)
    for value in ({1: 2}, [], "x", None):
        assert '"it"' in refused(lambda asked: asked.mapping("it"), it=value)


# --- the client ---


def test_the_client_gives_answers_or_says_why_not(hsm: Any) -> None:
    path = hsm.home / "native.sock"
    with Client(path) as client:
        with pytest.raises(Rejected) as caught:
            client.call("sign_many", key="k", purpose="certificate", data=[bytes(32)])
        assert caught.value.code is Code.USER_NOT_LOGGED_IN or caught.value.code is Code.LOCKED
        client.call("login", pin=hsm.pin)
        assert client.call("generate", key="k", kind="p-256")["label"] == "k"
        assert len(client.call("sign_many", key="k", purpose="certificate", data=[bytes(32)] * 3)) == 3
        hsm.kill()
        with pytest.raises(Unavailable, match="not known"):
            client.call("status")
    with pytest.raises(Unavailable, match="no HSM answers"):
        Client(path)


def test_the_client_does_not_wait_for_ever(hsm: Any) -> None:
    with Client(hsm.home / "native.sock", timeout=0.2) as client:
        hsm.process.send_signal(signal.SIGSTOP)
        with pytest.raises(Unavailable):
            client.call("status")
        hsm.process.send_signal(signal.SIGCONT)
