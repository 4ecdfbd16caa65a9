"""The calls of p11-kit's RPC protocol: number, name, and the types of what goes in and what comes back.

The letters are the protocol's own: ``u`` CK_ULONG, ``y`` octet, ``v`` version, ``s`` padded text, ``z`` text, ``ay`` octets, ``fy`` room
for octets, ``au`` and ``fu`` the same for CK_ULONG, ``aA`` attributes, ``fA`` room for attributes, ``M`` mechanism with its parameter.
Both sides write the string into every message, and a message with another one is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ERROR = 0
"""Number of the answer that says "no": its one value is the CKR."""

_CALLS = """
1 Initialize ayyay -
2 Finalize - -
3 GetInfo - vsusv
4 GetSlotList yfu au
5 GetSlotInfo u ssuvv
6 GetTokenInfo u ssssuuuuuuuuuuuvvs
7 GetMechanismList ufu au
8 GetMechanismInfo uu uuu
9 InitToken uayz -
10 OpenSession uu u
11 CloseSession u -
12 CloseAllSessions u -
13 GetSessionInfo u uuuu
14 InitPIN uay -
15 SetPIN uayay -
16 GetOperationState ufy ay
17 SetOperationState uayuu -
18 Login uuay -
19 Logout u -
20 CreateObject uaA u
21 CopyObject uuaA u
22 DestroyObject uu -
23 GetObjectSize uu u
24 GetAttributeValue uufA aAu
25 SetAttributeValue uuaA -
26 FindObjectsInit uaA -
27 FindObjects ufu au
28 FindObjectsFinal u -
29 EncryptInit uMu -
30 Encrypt uayfy ay
31 EncryptUpdate uayfy ay
32 EncryptFinal ufy ay
33 DecryptInit uMu -
34 Decrypt uayfy ay
35 DecryptUpdate uayfy ay
36 DecryptFinal ufy ay
37 DigestInit uM -
38 Digest uayfy ay
39 DigestUpdate uay -
40 DigestKey uu -
41 DigestFinal ufy ay
42 SignInit uMu -
43 Sign uayfy ay
44 SignUpdate uay -
45 SignFinal ufy ay
46 SignRecoverInit uMu -
47 SignRecover uayfy ay
48 VerifyInit uMu -
49 Verify uayay -
50 VerifyUpdate uay -
51 VerifyFinal uay -
52 VerifyRecoverInit uMu -
53 VerifyRecover uayfy ay
54 DigestEncryptUpdate uayfy ay
55 DecryptDigestUpdate uayfy ay
56 SignEncryptUpdate uayfy ay
57 DecryptVerifyUpdate uayfy ay
58 GenerateKey uMaA u
59 GenerateKeyPair uMaAaA uu
60 WrapKey uMuufy ay
61 UnwrapKey uMuayaA u
62 DeriveKey uMuaA u
63 SeedRandom uay -
64 GenerateRandom ufy ay
65 WaitForSlotEvent u u
66 LoginUser uuayay -
67 SessionCancel uu -
88 InitToken2 uays -
"""


@dataclass(frozen=True, slots=True)
class Call:
    """One call: ``C_`` and ``name``. ``request`` and ``response`` are the types in order; ``opening`` is how a request's body begins."""

    number: int
    name: str
    request: tuple[str, ...]
    response: tuple[str, ...]
    opening: bytes
    answer: bytes


def opening(number: int, signature: str) -> bytes:
    """Number and signature as a body begins with them."""
    return number.to_bytes(4) + len(signature).to_bytes(4) + signature.encode()


def _calls() -> dict[int, Call]:
    made = {}
    for line in _CALLS.split("\n")[1:-1]:
        digits, name, request, response = line.replace("-", "").split(" ")
        kinds = tuple(re.findall("[af]?[a-zA-Z]", request)), tuple(re.findall("[af]?[a-zA-Z]", response))
        number = int(digits)
        made[number] = Call(number, name, *kinds, opening(number, request), opening(number, response))
    return made


CALLS = _calls()
"""Number to call. The message calls of v3.0 (68 to 87) and all of v3.2 are not among them."""
