"""Keys: generated, wrapped, unwrapped, derived (PKCS#11 v3.0, 5.18)."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from hsm_sim.cka import CKF_DERIVE, CKF_GENERATE, CKF_GENERATE_KEY_PAIR, CKF_UNWRAP, CKF_WRAP
from hsm_sim.errors import Code, Rejected
from hsm_sim.mechanisms import wrapped_length
from hsm_sim.objects import Object, Template
from hsm_sim.pkcs11.calls_object import for_writing
from hsm_sim.pkcs11.rpc import Mechanism as Asked
from hsm_sim.pkcs11.state import Application, Session

Done = tuple[Any, ...]
Result = Done | Coroutine[Any, Any, Done]


async def generate_key(application: Application, handle: int, asked: Asked, template: Template) -> Done:
    """C_GenerateKey."""
    session = application.session(handle)
    for_writing(session, template)
    application.offered(asked[0], CKF_GENERATE)
    return (application.keep(session, await session.partition.generate_secret(session.caller, asked[0], template, asked[1])),)


async def generate_key_pair(application: Application, handle: int, asked: Asked, public: Template, private: Template) -> Done:
    """C_GenerateKeyPair."""
    session = application.session(handle)
    for_writing(session, public)
    for_writing(session, private)
    application.offered(asked[0], CKF_GENERATE_KEY_PAIR)
    made = await session.partition.generate_pair(session.caller, asked[0], public, private, asked[1])
    return tuple(application.keep(session, obj) for obj in made)


def wrap_key(application: Application, handle: int, asked: Asked, wrapping: int, target: int, room: int) -> Result:
    """C_WrapKey."""
    session = application.session(handle)
    wrapper = application.object(session, wrapping, Code.WRAPPING_KEY_HANDLE_INVALID)
    obj = application.object(session, target, Code.KEY_HANDLE_INVALID)
    if wrapper.key is None or obj.key is None:
        raise Rejected(Code.KEY_HANDLE_INVALID, "this object is no key")
    application.check(CKF_WRAP, asked, wrapper)
    if obj.extractable and room < (length := wrapped_length(wrapper.key, asked[0], obj.key)):  # LENGTH_ONLY is less than any
        return (length,)
    return _wrapped(session, asked, wrapper, obj)


async def _wrapped(session: Session, asked: Asked, wrapper: Object, obj: Object) -> Done:
    return (await session.partition.wrap(session.caller, asked[0], asked[1], wrapper, obj),)


async def unwrap_key(
    application: Application, handle: int, asked: Asked, unwrapping: int, wrapped: bytes | None, template: Template
) -> Done:
    """C_UnwrapKey."""
    session = application.session(handle)
    for_writing(session, template)
    unwrapper = application.object(session, unwrapping, Code.UNWRAPPING_KEY_HANDLE_INVALID)
    application.check(CKF_UNWRAP, asked, unwrapper)
    made = await session.partition.unwrap(session.caller, asked[0], asked[1], unwrapper, wrapped or b"", template)
    return (application.keep(session, made),)


async def derive_key(application: Application, handle: int, asked: Asked, base: int, template: Template) -> Done:
    """C_DeriveKey."""
    session = application.session(handle)
    for_writing(session, template)
    obj = application.object(session, base, Code.KEY_HANDLE_INVALID)
    application.check(CKF_DERIVE, asked, obj)
    return (application.keep(session, await session.partition.derive(session.caller, obj, asked[0], asked[1], template)),)


HANDLERS: dict[str, Callable[..., Any]] = {
    "GenerateKey": generate_key,
    "GenerateKeyPair": generate_key_pair,
    "WrapKey": wrap_key,
    "UnwrapKey": unwrap_key,
    "DeriveKey": derive_key,
}
