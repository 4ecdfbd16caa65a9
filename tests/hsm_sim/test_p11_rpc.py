"""The codec of the PKCS#11 door: both forms of the protocol, and whatever else comes in."""

from __future__ import annotations

import tracemalloc
from contextlib import suppress
from itertools import pairwise
from typing import Any

import p11_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from p11_client import BY_NAME, NULL, request, u32, u64

from hsm_sim import cka
from hsm_sim.errors import Code, Rejected
from hsm_sim.mechanisms import TABLE, Ecdh1, Eddsa, Gcm, Oaep, Pss
from hsm_sim.pkcs11.rpc import LENGTH_ONLY, MAX_ATTRIBUTES, NO_MECHANISM, Framer, attribute, decode, encode, frame, refusal
from hsm_sim.pkcs11.table import CALLS
from pkix.errors import Malformed

PARAMETERS = {
    cka.CKM_RSA_PKCS_PSS: Pss(cka.CKM_SHA256, cka.CKG_MGF1_SHA256, 32),
    cka.CKM_RSA_PKCS_OAEP: Oaep(cka.CKM_SHA256, cka.CKG_MGF1_SHA256, b"label"),
    cka.CKM_AES_CBC: bytes(range(16)),
    cka.CKM_AES_CBC_PAD: b"\1" + bytes(15),
    cka.CKM_AES_GCM: Gcm(b"\1" * 12, b"additional", 128),
    cka.CKM_ECDH1_DERIVE: Ecdh1(cka.CKD_NULL, b"", b"\4" + bytes(64)),
    cka.CKM_EDDSA: Eddsa(False, b""),
}
OCTETS = st.one_of(st.none(), st.binary(max_size=80))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "u": st.integers(0, 0xFFFFFFFE_FFFFFFFF),
    "y": st.integers(0, 255),
    "z": OCTETS,
    "s": OCTETS,
    "ay": OCTETS,
    "fy": st.integers(1, 1 << 31),
    "fu": st.integers(0, 1 << 31),
    "aA": st.dictionaries(st.sampled_from((cka.CKA_LABEL, cka.CKA_ID, cka.CKA_VALUE)), st.binary(max_size=40))
    | st.just({cka.CKA_CLASS: 3, cka.CKA_TOKEN: True, cka.CKA_ALLOWED_MECHANISMS: (0x1041, 1), cka.CKA_DESTROYABLE: False}),
    "fA": st.lists(st.tuples(st.sampled_from((cka.CKA_LABEL, cka.CKA_CLASS)), st.integers(1, 1000)), max_size=5),
    "M": st.sampled_from([*PARAMETERS.items(), (cka.CKM_ECDSA, None), (cka.CKM_SHA256, None), NULL]),
}


@pytest.mark.parametrize("new", [False, True])
@given(data=st.data())
def test_every_call_is_read_as_it_was_written(data: st.DataObject, new: bool) -> None:
    call = data.draw(st.sampled_from(list(CALLS.values())))
    arguments = [data.draw(VALUES[kind]) for kind in call.request]
    found, read = decode(request(call.name, *arguments, new=new))
    assert found is call
    for kind, was, now in zip(call.request, arguments, read, strict=True):
        assert now == ((NO_MECHANISM, None) if was is NULL else was), kind


@pytest.mark.parametrize("number", TABLE)
@pytest.mark.parametrize("name", ["SignInit", "WrapKey", "UnwrapKey", "DeriveKey", "GenerateKey"])
def test_both_forms_of_a_mechanism_mean_the_same(number: int, name: str) -> None:
    params = PARAMETERS.get(number)
    rest: dict[str, tuple[Any, ...]] = {"SignInit": (7,), "WrapKey": (1, 256, 0), "GenerateKey": ({},)}
    rest |= {"UnwrapKey": (1, b"\1" * 40, {}), "DeriveKey": (1, {cka.CKA_TOKEN: True})}
    forms = [decode(request(name, 5, (number, params), *rest[name], new=new))[1] for new in (False, True)]
    assert forms[0] == forms[1]
    assert forms[0][:2] == [5, (number, params)]


@given(st.binary(max_size=200))
def test_octets_without_sense_are_refused(body: bytes) -> None:
    with pytest.raises(Rejected):
        decode(body)


@given(st.sampled_from(list(CALLS.values())), st.binary(max_size=300))
def test_arguments_without_sense_are_refused_or_arguments(call: Any, rest: bytes) -> None:
    with suppress(Rejected):
        found, arguments = decode(call.opening + rest)
        assert found is call
        assert len(arguments) == len(call.request)


@given(st.data())
def test_a_request_that_was_cut_or_changed_is_refused_or_read(data: st.DataObject) -> None:
    call = data.draw(st.sampled_from([call for call in CALLS.values() if call.request]))
    body = bytearray(request(call.name, *(data.draw(VALUES[kind]) for kind in call.request)))
    if data.draw(st.booleans()):
        del body[data.draw(st.integers(0, len(body) - 1)) :]
    else:
        body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(Rejected):
        decode(bytes(body))


@given(st.binary(max_size=400), st.lists(st.integers(0, 400)))
def test_a_stream_without_sense_ends_or_waits(stream: bytes, cuts: list[int]) -> None:
    framer = Framer(256)
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    with suppress(Malformed):
        for start, end in pairwise(places):
            for _, body in framer.feed(stream[start:end]):
                assert body is None or len(body) <= 256


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=6), st.integers(1, 50))
def test_frames_come_out_whole_however_they_were_cut(bodies: list[bytes], step: int) -> None:
    stream = b"".join(frame(number, body) for number, body in enumerate(bodies))
    framer = Framer(40)
    found = [item for start in range(0, len(stream), step) for item in framer.feed(stream[start : start + step])]
    assert found == [(number, body if len(body) <= 40 else None) for number, body in enumerate(bodies)]


def test_a_message_over_the_limit_is_not_kept() -> None:
    framer = Framer(1000)
    tracemalloc.start()
    try:
        assert list(framer.feed(u32(7) + u32(0) + u32(0xFFFFFFF0))) == [(7, None)]
        for _ in range(1000):
            assert list(framer.feed(bytes(1 << 16))) == []
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_options_that_no_client_sends_end_the_connection() -> None:
    with pytest.raises(Malformed):
        list(Framer(1000).feed(u32(7) + u32(1 << 30) + u32(0)))


@pytest.mark.parametrize(
    "body",
    [
        BY_NAME["FindObjectsInit"].opening + u64(1) + u32(0x80000000),
        BY_NAME["GetAttributeValue"].opening + u64(1) + u64(1) + u32(0x80000000),
        BY_NAME["SignUpdate"].opening + u64(1) + b"\1" + u32(0x7FFFFFFE),
        BY_NAME["CreateObject"].opening + u64(1) + u32(1) + u32(cka.CKA_ALLOWED_MECHANISMS) + b"\1" + u32(8) + u32(0x80000000),
        BY_NAME["CreateObject"].opening + u64(1) + u32(1) + u32(cka.CKA_LABEL) + b"\1" + u32(0xFFFFFFF0) + u32(0xFFFFFFF0),
        BY_NAME["FindObjectsInit"].opening + u64(1) + u32(MAX_ATTRIBUTES + 1) + bytes(5 * (MAX_ATTRIBUTES + 1)),
    ],
)
def test_announced_sizes_take_no_memory(body: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(Rejected):
            decode(body)
        assert tracemalloc.get_traced_memory()[1] < 1 << 18
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("depth", [9, 100, 10_000])
def test_deeply_nested_attributes_are_refused(depth: int) -> None:
    nested = u32(0)
    for _ in range(depth):
        nested = u32(1) + u32(cka.CKA_WRAP_TEMPLATE) + b"\1" + u32(24) + nested
    with pytest.raises(Rejected) as caught:
        decode(BY_NAME["CreateObject"].opening + u64(1) + nested)
    assert caught.value.code is Code.BAD_REQUEST


def test_a_vendor_number_is_an_invalid_mechanism() -> None:
    with pytest.raises(Rejected) as caught:
        decode(request("SignInit", 1, (0x80008104, None), 2))
    assert caught.value.code is Code.MECHANISM_INVALID


@pytest.mark.parametrize(
    "wire",
    [
        u32(cka.CKA_TOKEN) + b"\1" + u32(2) + b"\1",
        u32(cka.CKA_CLASS) + b"\1" + u32(4) + u64(3),
        u32(cka.CKA_DESTROYABLE) + b"\1" + u32(2) + p11_client.text(b"\1\1"),
        u32(cka.CKA_LABEL) + b"\0",
    ],
)
def test_a_value_of_another_size_than_its_type(wire: bytes) -> None:
    with pytest.raises(Rejected) as caught:
        decode(BY_NAME["FindObjectsInit"].opening + u64(1) + u32(1) + wire)
    assert caught.value.code is Code.ATTRIBUTE_VALUE_INVALID


def test_an_attribute_given_twice() -> None:
    wire = p11_client.attribute(cka.CKA_ID, b"1")
    with pytest.raises(Rejected) as caught:
        decode(BY_NAME["FindObjectsInit"].opening + u64(1) + u32(2) + wire + wire)
    assert caught.value.code is Code.TEMPLATE_INCONSISTENT


def test_no_room_and_room_for_nothing_differ() -> None:
    for room, meaning in ((0, LENGTH_ONLY), (0xFFFFFFFF, 0), (64, 64)):
        assert decode(request("SignFinal", 1, room))[1] == [1, meaning]


def test_a_number_that_the_client_does_not_know_as_one() -> None:
    body = u32(1) + u32(cka.CKA_NAME_HASH_ALGORITHM) + b"\1" + u32(8) + p11_client.text((0x250).to_bytes(8, "little"))
    assert decode(BY_NAME["FindObjectsInit"].opening + u64(1) + body)[1][1] == {cka.CKA_NAME_HASH_ALGORITHM: 0x250}
    assert attribute(cka.CKA_NAME_HASH_ALGORITHM, 0x250) == body[4:]


def test_answers_as_a_client_reads_them() -> None:
    assert p11_client.answer("Sign", encode(BY_NAME["Sign"], (b"abc",))) == (b"abc",)
    assert p11_client.answer("Sign", encode(BY_NAME["Sign"], (64,))) == (64,)
    values = [(cka.CKA_LABEL, b"x"), (cka.CKA_VALUE, None), (cka.CKA_TOKEN, True), (cka.CKA_CLASS, 3), (cka.CKA_ALLOWED_MECHANISMS, (1, 2))]
    assert p11_client.answer("GetAttributeValue", encode(BY_NAME["GetAttributeValue"], (values, 0x11))) == (values, 0x11)
    with pytest.raises(p11_client.Refused) as caught:
        p11_client.answer("Sign", refusal(0xA0))
    assert caught.value.ckr == 0xA0
