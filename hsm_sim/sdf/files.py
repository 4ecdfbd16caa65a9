"""Files (GM/T 0018 6.6): data objects of the partition, of a size that does not change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hsm_sim import cka
from hsm_sim.errors import Code, Rejected
from hsm_sim.sdf.call import Call

if TYPE_CHECKING:
    from hsm_sim.objects import Object

MAX_FILE = 65536


async def create_file(call: Call) -> None:
    """``{name, size}``: a file of zeros."""
    size = call.request.number("size", 1, MAX_FILE)
    if _found(call):
        raise Rejected(Code.KEY_EXISTS, f"there is a file {call.request.text('name')} already")
    await _store(call, bytes(size))


async def read_file(call: Call) -> bytes:
    """``{name, offset, length}``: what there is of it."""
    content = _content(call)
    offset, length = call.request.number("offset", 0, MAX_FILE), call.request.number("length", 0, MAX_FILE)
    if offset > len(content):
        raise Rejected(Code.DATA_LEN_RANGE, f"the file has {len(content)} octets")
    return content[offset : offset + length]


async def write_file(call: Call) -> None:
    """``{name, offset, data}``: within its size. The new contents are stored before the old are dropped: a crash leaves one or both."""
    content, before = _content(call), _found(call)
    offset, data = call.request.number("offset", 0, MAX_FILE), call.request.octets("data", 0, MAX_FILE)
    if offset + len(data) > len(content):
        raise Rejected(Code.DATA_LEN_RANGE, f"the file has {len(content)} octets, and does not grow")
    await _store(call, content[:offset] + data + content[offset + len(data) :])
    for old in before:
        await call.partition.destroy(call.caller, old)


async def delete_file(call: Call) -> None:
    """``{name}``."""
    _content(call)
    for obj in _found(call):
        await call.partition.destroy(call.caller, obj)


def _label(call: Call) -> bytes:
    return f"sdf.file.{call.request.text('name')}".encode()


def _found(call: Call) -> list[Object]:
    return call.partition.find(call.caller, {cka.CKA_CLASS: cka.CKO_DATA, cka.CKA_LABEL: _label(call)})


def _content(call: Call) -> bytes:
    """The newest contents. Raises Rejected(OBJECT_HANDLE_INVALID): no such file."""
    found = _found(call)
    if not found:
        raise Rejected(Code.OBJECT_HANDLE_INVALID, f"there is no file {call.request.text('name')}")
    return found[-1].value or b""


async def _store(call: Call, content: bytes) -> None:
    kind = {cka.CKA_CLASS: cka.CKO_DATA, cka.CKA_TOKEN: True, cka.CKA_PRIVATE: True}
    await call.partition.create(call.caller, {**kind, cka.CKA_LABEL: _label(call), cka.CKA_APPLICATION: b"SDF", cka.CKA_VALUE: content})
