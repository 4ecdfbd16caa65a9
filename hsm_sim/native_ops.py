"""The operations of the native door, one line each in ``OPS``; docs/hsm.md says what goes in and out.

A handler takes the device, the caller and the request's arguments, and returns what CBOR can say, or raises ``Rejected``. ``login`` and
``sign_many`` are the door's own. What belongs to other rooms comes with them: ``trust_ops.OPS``, ``sdf_ops.sdf``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from hsm_sim import native_admin as admin
from hsm_sim import native_keys as keys
from hsm_sim import trust_ops
from hsm_sim.device import Device
from hsm_sim.roles import Caller, Verb
from hsm_sim.sdf_ops import sdf

Handler = Callable[[Device, Caller, Mapping[str, Any]], Awaitable[Any]]


class Operation(NamedTuple):
    """What does it, and what the caller has to be allowed before; None: that is the handler's to check, or the partition's behind it."""

    run: Handler
    verb: Verb | None = None


OPS: Mapping[str, Operation] = MappingProxyType(
    {
        "hello": Operation(admin.hello, Verb.STATUS),
        "status": Operation(admin.status, Verb.STATUS),
        "random": Operation(admin.random, Verb.RANDOM),
        "digest": Operation(admin.digest, Verb.DIGEST),
        "logout": Operation(admin.logout),
        "lock": Operation(admin.lock, Verb.LOCK),
        "set_pin": Operation(admin.set_pin),
        "create_partition": Operation(admin.create_partition, Verb.CREATE_PARTITION),
        "init_partition": Operation(admin.init_partition, Verb.INIT_PARTITION),
        "zeroise": Operation(admin.zeroise, Verb.ZEROISE),
        "accept_damage": Operation(admin.accept_damage, Verb.ACCEPT_DAMAGE),
        "log_head": Operation(admin.log_head, Verb.AUDIT_HEAD),
        "audit_read": Operation(admin.audit_read, Verb.AUDIT_READ),
        "audit_ack": Operation(admin.audit_ack, Verb.AUDIT_ACK),
        "force_audit": Operation(admin.force_audit, Verb.FORCE_AUDIT),
        "lab": Operation(admin.lab, Verb.LAB),
        "keys": Operation(keys.keys, Verb.LIST_KEYS),
        "public_key": Operation(keys.attributes, Verb.LIST_KEYS),
        "attributes": Operation(keys.attributes, Verb.LIST_KEYS),
        "set_attributes": Operation(keys.set_attributes, Verb.SET_ATTRIBUTES),
        "generate": Operation(keys.generate, Verb.GENERATE),
        "destroy": Operation(keys.destroy, Verb.DESTROY),
        "encrypt": Operation(keys.encrypt, Verb.ENCRYPT),
        "decrypt": Operation(keys.decrypt, Verb.DECRYPT),
        "wrap": Operation(keys.wrap, Verb.WRAP),
        "unwrap": Operation(keys.unwrap, Verb.UNWRAP),
        "derive": Operation(keys.derive, Verb.DERIVE),
        "sdf": Operation(sdf),
        **{name: Operation(run) for name, run in trust_ops.OPS.items()},
    }
)
