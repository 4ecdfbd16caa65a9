"""The device's side of SDF (GM/T 0018): the native operation ``sdf``. The other side is ``SdfDevice``.

Key index n is the two SM2 pairs ``sdf.n.sign`` and ``sdf.n.enc``, KEK n the SM4 key ``sdf.kek.n``, a file the data object
``sdf.file.NAME``. The keys allow one mechanism, ours, that no other door has: so their password cannot be walked around through
``sign_many`` or PKCS#11.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from hsm_sim.errors import Code, Rejected
from hsm_sim.roles import Caller, Verb
from hsm_sim.sdf import files, indices, keys
from hsm_sim.sdf.call import Call, permitted
from hsm_sim.wire import Request

if TYPE_CHECKING:
    from hsm_sim.device import Device


async def sdf(device: Device, caller: Caller, args: Mapping[str, Any]) -> Any:
    """``{call, …}``: one of ``CALLS``, with its arguments. Raises Rejected."""
    request = Request.over(args)
    name = request.text("call")
    if name not in CALLS:
        raise Rejected(Code.FUNCTION_NOT_SUPPORTED, f"there is no call but {', '.join(CALLS)}")
    verb, handler = CALLS[name]
    return await handler(permitted(device, caller, request, verb))


CALLS: Mapping[str, tuple[Verb, Callable[[Call], Awaitable[Any]]]] = {
    "make_key_pair": (Verb.GENERATE, indices.make_key_pair),
    "make_kek": (Verb.GENERATE, indices.make_kek),
    "set_password": (Verb.SET_ATTRIBUTES, indices.set_password),
    "get_access": (Verb.SIGN, indices.get_access),
    "release_access": (Verb.SIGN, indices.release_access),
    "public_key": (Verb.LOOK, indices.public_key),
    "sign": (Verb.SIGN, keys.sign),
    "decrypt": (Verb.DECRYPT, keys.decrypt),
    "exchange": (Verb.DECRYPT, keys.exchange),
    "generate_for_index": (Verb.DECRYPT, keys.generate_for_index),
    "generate_for_point": (Verb.DECRYPT, keys.generate_for_point),
    "import_key": (Verb.DECRYPT, keys.import_key),
    "generate_under_kek": (Verb.DECRYPT, keys.generate_under_kek),
    "import_under_kek": (Verb.DECRYPT, keys.import_under_kek),
    "destroy_key": (Verb.DECRYPT, keys.destroy_key),
    "cipher": (Verb.DECRYPT, keys.cipher),
    "mac": (Verb.DECRYPT, keys.mac),
    "create_file": (Verb.CREATE, files.create_file),
    "read_file": (Verb.DECRYPT, files.read_file),
    "write_file": (Verb.CREATE, files.write_file),
    "delete_file": (Verb.DESTROY, files.delete_file),
}
"""The calls, and what permission each needs: the officer's for what makes things, the officer's or user's for what uses them."""
