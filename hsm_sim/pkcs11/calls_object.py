"""Objects: made, found, read, changed, destroyed (PKCS#11 v3.0, 5.7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hsm_sim import cka
from hsm_sim.errors import Code, Rejected
from hsm_sim.objects import Object, Template, Value
from hsm_sim.pkcs11.rpc import LENGTH_ONLY, width
from hsm_sim.pkcs11.state import FIND, Application, Operation, Session, size

Done = tuple[Any, ...]


def for_writing(session: Session, obj: Object | Template) -> None:
    """Raises Rejected SESSION_READ_ONLY if this, an object or the template of one, is the token's and the session may only read."""
    token = obj.token if isinstance(obj, Object) else obj.get(cka.CKA_TOKEN) is True
    if token and not session.writable:
        raise Rejected(Code.SESSION_READ_ONLY, "objects of the token are made, changed and destroyed in a read-write session")


async def create_object(application: Application, handle: int, template: Template) -> Done:
    """C_CreateObject."""
    session = application.session(handle)
    for_writing(session, template)
    return (application.keep(session, await session.partition.create(session.caller, template)),)


async def copy_object(application: Application, handle: int, source: int, template: Template) -> Done:
    """C_CopyObject."""
    session = application.session(handle)
    obj = application.object(session, source)
    for_writing(session, {cka.CKA_TOKEN: obj.token, **template})
    return (application.keep(session, await session.partition.copy(session.caller, obj, template)),)


async def destroy_object(application: Application, handle: int, target: int) -> Done:
    """C_DestroyObject."""
    session = application.session(handle)
    obj = application.object(session, target)
    for_writing(session, obj)
    if obj.attributes.get(cka.CKA_DESTROYABLE) is False:
        raise Rejected(Code.ACTION_PROHIBITED, "CKA_DESTROYABLE of this object is false")
    if obj.token:
        await session.partition.destroy(session.caller, obj)
        application.forget(obj)
    else:
        application.drop(session, obj)
    return ()


def get_object_size(application: Application, handle: int, target: int) -> Done:
    """C_GetObjectSize: what it counts for."""
    session = application.session(handle)
    return (size(application.object(session, target)),)


def get_attribute_value(application: Application, handle: int, target: int, wanted: list[tuple[int, int]]) -> Done:
    """C_GetAttributeValue: what there is and fits; and the code of what does not."""
    session = application.session(handle)
    obj = application.object(session, target)
    answers: list[tuple[int, Value | None]] = []
    result = 0
    for name, room in wanted:
        value, code = _shown(obj, name)
        if value is not None and room != LENGTH_ONLY and width(value) > room:
            value, code = None, Code.BUFFER_TOO_SMALL
        result = result or (code.ckr if code else 0)
        answers.append((name, value))
    return answers, result


def _shown(obj: Object, name: int) -> tuple[Value | None, Code | None]:
    """A value that may be read, or why not."""
    if name in cka.SECRETS and obj.secret and obj.key is not None:
        numbers = obj.key.revealed()
        if name not in numbers:
            return None, Code.ATTRIBUTE_TYPE_INVALID
        return (None, Code.ATTRIBUTE_SENSITIVE) if obj.closed else (numbers[name], None)
    value = obj.value if name == cka.CKA_VALUE and obj.value is not None else obj.attributes.get(name)
    return value, None if value is not None else Code.ATTRIBUTE_TYPE_INVALID


async def set_attribute_value(application: Application, handle: int, target: int, template: Template) -> Done:
    """C_SetAttributeValue."""
    session = application.session(handle)
    obj = application.object(session, target)
    for_writing(session, obj)
    before = size(obj)
    await session.partition.set_attributes(session.caller, obj, template)
    application.resized(obj, before)
    return ()


def find_objects_init(application: Application, handle: int, template: Template) -> Done:
    """C_FindObjectsInit: searches at once; what is found is handed out by the next call."""
    session = application.session(handle)
    application.idle(session, FIND)
    application.login(session.partition)
    operation = Operation(found=application.find(session, template)[::-1])
    application.retain(operation, 8 * len(operation.found))
    session.operations[FIND] = operation
    return ()


def find_objects(application: Application, handle: int, room: int) -> Done:
    """C_FindObjects: as many handles as there is room for."""
    session = application.session(handle)
    found = application.operation(session, FIND).found
    return ([application.handle(found.pop()) for _ in range(min(room, len(found)))],)


def find_objects_final(application: Application, handle: int) -> Done:
    """C_FindObjectsFinal."""
    session = application.session(handle)
    application.operation(session, FIND)
    application.cancel(session, FIND)
    return ()


HANDLERS: dict[str, Callable[..., Any]] = {
    "CreateObject": create_object,
    "CopyObject": copy_object,
    "DestroyObject": destroy_object,
    "GetObjectSize": get_object_size,
    "GetAttributeValue": get_attribute_value,
    "SetAttributeValue": set_attribute_value,
    "FindObjectsInit": find_objects_init,
    "FindObjects": find_objects,
    "FindObjectsFinal": find_objects_final,
}
