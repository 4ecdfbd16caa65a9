"""Slots, tokens, sessions, PINs, logins, randomness (PKCS#11 v3.0, 5.4 to 5.6 and 5.19)."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from hsm_sim import cka
from hsm_sim.access import TRIES
from hsm_sim.errors import Code, Rejected
from hsm_sim.mechanisms import TABLE
from hsm_sim.partition import Partition
from hsm_sim.pkcs11.state import FIND, Application, Session
from hsm_sim.roles import CKU, Caller, Role

HANDSHAKE = b"PRIVATE-GNOME-KEYRING-PKCS11-PROTOCOL-V-1"
"""What p11-kit's client says in C_Initialize."""
CRYPTOKI_VERSION, LIBRARY_VERSION = (2, 40), (1, 0)
MAX_RANDOM = 1 << 16  # octets of one C_GenerateRandom
Done = tuple[Any, ...]

_STATES = {Role.SO: (cka.CKS_RW_SO_FUNCTIONS,) * 2, Role.OFFICER: (cka.CKS_RO_USER_FUNCTIONS, cka.CKS_RW_USER_FUNCTIONS)}
_STATES[Role.USER] = _STATES[Role.OFFICER]
_STATES[Role.PUBLIC] = _STATES[Role.AUDITOR] = (cka.CKS_RO_PUBLIC_SESSION, cka.CKS_RW_PUBLIC_SESSION)
_OPERATIONS = (cka.CKF_ENCRYPT, cka.CKF_DECRYPT, cka.CKF_DIGEST, cka.CKF_SIGN, cka.CKF_VERIFY, FIND)


def initialize(application: Application, handshake: bytes | None, _reserved_given: int, _reserved: bytes | None) -> Done:
    """C_Initialize. Raises Rejected: GENERAL_ERROR."""
    if handshake != HANDSHAKE:
        raise Rejected(Code.GENERAL_ERROR, "this is not p11-kit's client")
    application.initialised = True
    return ()


def finalize(application: Application) -> Done:
    """C_Finalize."""
    application.close_all()
    application.initialised = False
    return ()


def get_info(application: Application) -> Done:
    """C_GetInfo."""
    maker = padded(application.device.personality.manufacturer, 32)
    return CRYPTOKI_VERSION, maker, 0, padded("ironroot hsm_sim", 32), LIBRARY_VERSION


def get_slot_list(application: Application, with_token: int, room: int) -> Done:
    """C_GetSlotList. A device that is away leaves its slots empty."""
    here = application.present or not with_token
    return (within([partition.slot for partition in application.device.partitions.values() if here], room),)


def get_slot_info(application: Application, slot: int) -> Done:
    """C_GetSlotInfo."""
    personality = application.device.personality
    if slot not in [partition.slot for partition in application.device.partitions.values()]:
        raise Rejected(Code.SLOT_ID_INVALID, f"there is no slot {slot}")
    flags = cka.CKF_REMOVABLE_DEVICE | (cka.CKF_TOKEN_PRESENT if application.present else 0)
    description = f"{personality.manufacturer} {personality.model} slot {slot}"
    return padded(description, 64), padded(personality.manufacturer, 32), flags, personality.hardware, personality.firmware


def get_token_info(application: Application, slot: int) -> Done:
    """C_GetTokenInfo."""
    partition, personality = application.slot(slot), application.device.personality
    writable = [session.writable for session in application.sessions.values() if session.partition is partition]
    names = padded(partition.name, 32), padded(personality.manufacturer, 32), padded(personality.model, 16), padded(partition.serial, 16)
    sessions = personality.sessions, len(writable), personality.sessions, sum(writable)
    memory = (cka.UNAVAILABLE,) * 4
    pins = personality.pin[1], personality.pin[0]
    return *names, _flags(partition), *sessions, *pins, *memory, personality.hardware, personality.firmware, b" " * 16


def _flags(partition: Partition) -> int:
    flags = cka.CKF_RNG | cka.CKF_LOGIN_REQUIRED
    if partition.state != "tampered":
        flags |= cka.CKF_TOKEN_INITIALIZED
    if partition.has_pin(Role.OFFICER):
        flags |= cka.CKF_USER_PIN_INITIALIZED | _pin_flags(partition.tries_left(Role.OFFICER))
    return flags | _pin_flags(partition.tries_left(Role.SO)) << 4


def _pin_flags(left: int) -> int:
    """Of the user; those of the SO are the same, four bits up."""
    if left == 0:
        return cka.CKF_USER_PIN_LOCKED
    return (cka.CKF_USER_PIN_COUNT_LOW if left < TRIES else 0) | (cka.CKF_USER_PIN_FINAL_TRY if left == 1 else 0)


def get_mechanism_list(application: Application, slot: int, room: int) -> Done:
    """C_GetMechanismList."""
    application.slot(slot)
    return (within([number for number, entry in TABLE.items() if application.device.personality.allows(entry.name)], room),)


def get_mechanism_info(application: Application, slot: int, number: int) -> Done:
    """C_GetMechanismInfo."""
    application.slot(slot)
    entry = application.offered(number, ~0)
    return entry.minimum, entry.maximum, entry.flags


async def init_token(application: Application, slot: int, pin: bytes | None, label: bytes | None) -> Done:
    """C_InitToken: everything in the partition is gone; the SO keeps its PIN. Raises Rejected: SESSION_EXISTS, PIN_INCORRECT …"""
    partition = application.slot(slot)
    if any(session.partition is partition for session in application.sessions.values()):
        raise Rejected(Code.SESSION_EXISTS, "close all sessions with the token first")
    # p11-kit's client up to 0.25 sends what follows the 32 octets in memory, too.
    name, so_pin = text((label or b"")[:32].rstrip(b" \0"), Code.BAD_REQUEST), text(pin)
    caller = Caller("pkcs11", application.connection, partition.name)
    await partition.login(caller, Role.SO, so_pin)
    await partition.init_partition(caller, so_pin, name)  # which ends all logins, this one too
    return ()


def open_session(application: Application, slot: int, flags: int) -> Done:
    """C_OpenSession."""
    return (application.open(slot, flags).handle,)


def close_session(application: Application, handle: int) -> Done:
    """C_CloseSession."""
    application.close(application.session(handle))
    return ()


def close_all_sessions(application: Application, slot: int) -> Done:
    """C_CloseAllSessions."""
    application.close_all(application.slot(slot))
    return ()


def get_session_info(application: Application, handle: int) -> Done:
    """C_GetSessionInfo."""
    session = application.session(handle)
    role, _ = application.login(session.partition)
    flags = cka.CKF_SERIAL_SESSION | (cka.CKF_RW_SESSION if session.writable else 0)
    return session.partition.slot, _STATES[role][session.writable], flags, 0


def session_cancel(application: Application, handle: int, flags: int) -> Done:
    """C_SessionCancel (v3.0)."""
    session = application.session(handle)
    for operation in _OPERATIONS:
        if flags & operation:
            application.cancel(session, operation)
    return ()


async def login(application: Application, handle: int, user: int, pin: bytes | None) -> Done:
    """C_Login: for all sessions of the application with this token.

    Raises Rejected: USER_TYPE_INVALID, USER_ALREADY_LOGGED_IN, USER_ANOTHER_ALREADY_LOGGED_IN, SESSION_READ_ONLY_EXISTS, PIN_INCORRECT …
    """
    session = application.session(handle)
    if user == cka.CKU_CONTEXT_SPECIFIC:
        raise Rejected(Code.OPERATION_NOT_INITIALIZED, "no key here asks for its own login (CKA_ALWAYS_AUTHENTICATE)")
    role = CKU.get(user)
    if role is None:
        raise Rejected(Code.USER_TYPE_INVALID, f"there is no user type 0x{user:X}")
    async with application.logging_in:
        current, _ = application.login(session.partition)
        if current is role:
            raise Rejected(Code.USER_ALREADY_LOGGED_IN, f"{role} is logged in already")
        if current is not Role.PUBLIC:
            raise Rejected(Code.USER_ANOTHER_ALREADY_LOGGED_IN, f"{current} is logged in; log out first")
        _only_writable(application, session, role)
        await session.partition.login(session.caller, role, text(pin))
        try:
            application.session(handle)
            _only_writable(application, session, role)
        except Rejected:
            session.partition.logout(session.caller)
            raise
        application.set_login(session.partition, role, session.caller.epoch)
    return ()


def _only_writable(application: Application, session: Session, role: Role) -> None:
    others = (other for other in application.sessions.values() if other.partition is session.partition)
    if role is Role.SO and not all(other.writable for other in others):
        raise Rejected(Code.SESSION_READ_ONLY_EXISTS, "the security officer needs all sessions to be read-write; close the others")


async def login_user(application: Application, handle: int, user: int, pin: bytes | None, name: bytes | None) -> Done:
    """C_LoginUser (v3.0): user types have no names here."""
    if name:
        raise Rejected(Code.BAD_REQUEST, "users of this token have no names; leave it empty")
    return await login(application, handle, user, pin)


def logout(application: Application, handle: int) -> Done:
    """C_Logout."""
    session = application.session(handle)
    if application.login(session.partition)[0] is Role.PUBLIC:
        raise Rejected(Code.USER_NOT_LOGGED_IN, "nobody is logged in")
    session.partition.logout(session.caller)
    application.set_login(session.partition, Role.PUBLIC, -1)
    return ()


async def init_pin(application: Application, handle: int, pin: bytes | None) -> Done:
    """C_InitPIN: the SO gives the officer a PIN; this also unlocks it."""
    session = application.session(handle)
    if application.login(session.partition)[0] is not Role.SO:
        raise Rejected(Code.USER_NOT_LOGGED_IN, "log in as security officer first")
    await session.partition.set_pin(session.caller, Role.OFFICER, text(pin, Code.PIN_INVALID))
    return ()


async def set_pin(application: Application, handle: int, old: bytes | None, new: bytes | None) -> Done:
    """C_SetPIN: of whoever is logged in, of the officer if nobody is."""
    session = application.session(handle)
    if not session.writable:
        raise Rejected(Code.SESSION_READ_ONLY, "a PIN is changed in a read-write session")
    caller, (role, _) = session.caller, application.login(session.partition)
    if role is Role.PUBLIC:
        caller, role = Caller("pkcs11", application.connection, session.partition.name, session=session.handle), Role.OFFICER
        await session.partition.login(caller, role, text(old))
    await session.partition.set_pin(caller, role, text(new, Code.PIN_INVALID), text(old))
    return ()


def seed_random(application: Application, handle: int, _seed: bytes | None) -> Done:
    """C_SeedRandom: the operating system's generator takes no seed."""
    application.session(handle)
    raise Rejected(Code.RANDOM_SEED_NOT_SUPPORTED, "the random generator seeds itself")


def generate_random(application: Application, handle: int, room: int) -> Done:
    """C_GenerateRandom."""
    application.session(handle)
    if room > MAX_RANDOM:
        raise Rejected(Code.BAD_REQUEST, f"ask for at most {MAX_RANDOM} random octets at a time")
    return (secrets.token_bytes(max(0, room)),)


def wait_for_slot_event(_application: Application, flags: int) -> Done:
    """C_WaitForSlotEvent, for those who do not wait."""
    if flags & cka.CKF_DONT_BLOCK:
        raise Rejected(Code.NO_EVENT, "nothing has happened at the slots")
    raise Rejected(Code.FUNCTION_NOT_SUPPORTED, "waiting for slot events is not supported; ask with CKF_DONT_BLOCK")


def padded(value: str, size: int) -> bytes:
    """UTF-8, cut and filled with spaces to ``size`` octets."""
    return value.encode()[:size].decode(errors="ignore").encode().ljust(size)


def within(values: list[int], room: int) -> list[int] | int:
    """The values, or how many there are if there is no room for all."""
    return values if len(values) <= room else len(values)


def text(octets: bytes | None, otherwise: Code = Code.PIN_INCORRECT) -> str:
    """A PIN or a name, which is UTF-8. Raises Rejected with ``otherwise``."""
    if octets is None:
        raise Rejected(Code.BAD_REQUEST, "there is no other way to give a PIN than with the call")
    try:
        return octets.decode()
    except UnicodeDecodeError:
        raise Rejected(otherwise, "this is not UTF-8") from None


HANDLERS: dict[str, Callable[..., Any]] = {
    "Initialize": initialize,
    "Finalize": finalize,
    "GetInfo": get_info,
    "GetSlotList": get_slot_list,
    "GetSlotInfo": get_slot_info,
    "GetTokenInfo": get_token_info,
    "GetMechanismList": get_mechanism_list,
    "GetMechanismInfo": get_mechanism_info,
    "InitToken": init_token,
    "InitToken2": init_token,
    "OpenSession": open_session,
    "CloseSession": close_session,
    "CloseAllSessions": close_all_sessions,
    "GetSessionInfo": get_session_info,
    "SessionCancel": session_cancel,
    "Login": login,
    "LoginUser": login_user,
    "Logout": logout,
    "InitPIN": init_pin,
    "SetPIN": set_pin,
    "SeedRandom": seed_random,
    "GenerateRandom": generate_random,
    "WaitForSlotEvent": wait_for_slot_event,
}
