"""Other people's programs at the PKCS#11 door: p11-kit's client in their process, the HSM in one of its own."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import p11_client
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from key_stores import P11_KIT_CLIENT
from programs import SM2_ID, missing, need, openssl

from hsm_sim import cka
from hsm_sim.access import TRIES
from hsm_sim.errors import Code
from hsm_sim.keys import P_256_PARAMS
from hsm_sim.mechanisms import x962
from pkix import sm2

ROOT = Path(__file__).parents[2]
MESSAGE = b"batch 7 of 12\n"
NEW_PIN = "87654321"
SM2_SPKI = bytes.fromhex("3059301306072a8648ce3d020106082a811ccf5501822d034200")
"""SubjectPublicKeyInfo of an SM2 key up to its point."""


class Token:
    """The HSM as programs see it; ``folder`` is theirs to write to."""

    def __init__(self, home: Path, folder: Path) -> None:
        self.home, self.folder = home, folder
        (folder / "message").write_bytes(MESSAGE)
        for name in ("sha256", "sha384"):
            (folder / name).write_bytes(hashlib.new(name, MESSAGE).digest())

    def run(self, *command: str, fails: bool = False, feed: str = "", **env: str) -> str:
        """Runs a program in ``folder``; what it said. Its exit code is 0, or is not if it ``fails``. PINs are in its environment."""
        pins = {"PIN": (self.home / "pin").read_text().strip(), "SO_PIN": (self.home / "so-pin").read_text().strip(), "NEW_PIN": NEW_PIN}
        address = {"P11_KIT_SERVER_ADDRESS": f"unix:path={self.home / 'pkcs11.sock'}", "PKCS11_MODULE_PATH": P11_KIT_CLIENT}
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=os.environ | pins | address | env,
            input=feed,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        said = done.stdout + done.stderr
        assert (done.returncode != 0) is fails, (command, done.returncode, said)
        return said

    def tool(self, *arguments: str, fails: bool = False) -> str:
        """``pkcs11-tool …``."""
        return self.run("pkcs11-tool", "--module", P11_KIT_CLIENT, *arguments, fails=fails)

    def officer(self, *arguments: str, fails: bool = False) -> str:
        """The same, logged in."""
        return self.tool("--login", "--pin", "env:PIN", *arguments, fails=fails)

    def public_key(self, number: str) -> str:
        """The file with the public key of this CKA_ID, as PEM."""
        shown = self.tool("-O", "--type", "pubkey").split("Public Key Object")
        (said,) = (one for one in shown if re.search(f"ID: +{number}$", one, re.MULTILINE))
        if point := re.search("EC_POINT: +04..(04[0-9a-f]+)", said):  # OpenSC 0.23 reads keys up to P-256 only
            octets = bytes.fromhex(point[1])
            key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1() if len(octets) == 65 else ec.SECP384R1(), octets)
            (self.folder / "public.pem").write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        else:
            self.tool("--read-object", "--type", "pubkey", "--id", number, "--output-file", "public.der")
            openssl("pkey", "-pubin", "-inform", "DER", "-in", "public.der", "-out", "public.pem", folder=self.folder)
        return "public.pem"

    def python(self, script: str, *arguments: str) -> list[str]:
        """A program that uses python-pkcs11 in a process of its own; the lines that it printed."""
        return self.run(sys.executable, "-c", PRELUDE + script, *arguments, PYTHONPATH=str(ROOT)).splitlines()


def needed() -> None:
    need("pkcs11-tool", "openssl")
    if not P11_KIT_CLIENT:
        missing("p11-kit-client.so (package p11-kit-modules)")


@pytest.fixture(scope="module")
def running(made_home: Path) -> Iterator[Path]:
    """One HSM for the tests that leave its PINs alone."""
    needed()
    folder = Path(tempfile.mkdtemp(prefix="ir", dir="/tmp"))
    shutil.copytree(made_home, folder / "hsm")
    command = [sys.executable, "-m", "hsm_sim", "serve", "--home", str(folder / "hsm")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield folder / "hsm"
        process.kill()
    shutil.rmtree(folder)


@pytest.fixture
def token(running: Path, tmp_path: Path) -> Token:
    return Token(running, tmp_path)


@pytest.fixture
def own(hsm: Any, tmp_path: Path) -> Token:
    """An HSM of the test's own."""
    needed()
    return Token(hsm.home, tmp_path)


@pytest.fixture(scope="module")
def keys(running: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Key pairs that pkcs11-tool has made: what it calls them, and their CKA_ID."""
    made = {"rsa:2048": "01", "EC:prime256v1": "02", "EC:secp384r1": "03"}
    token = Token(running, tmp_path_factory.mktemp("keys"))
    for kind, number in made.items():
        said = token.officer("--keypairgen", "--key-type", kind, "--label", f"made {kind}", "--id", number)
        assert "sensitive, always sensitive, never extractable, local" in said
    return made


# --- pkcs11-tool


def test_what_pkcs11_tool_shows_of_the_token(token: Token, keys: dict[str, str]) -> None:
    assert "ironroot hsm_sim" in token.tool("-I")
    slots = token.tool("-L")
    assert "token label        : ironroot" in slots
    assert "login required, rng, token initialized, PIN initialized" in slots
    mechanisms = token.tool("-M")
    for line in ("ECDSA, keySize={256,384}, sign, verify", "SHA256-RSA-PKCS, keySize={2048,4096}, sign, verify", "AES-KEY-GEN"):
        assert line in mechanisms
    for kind in keys:
        assert f"made {kind}" in token.officer("-O", "--type", "privkey")
    assert "made" not in token.tool("-O", "--type", "privkey"), "private keys are not shown to who has not logged in"


@pytest.mark.parametrize(("kind", "digest"), [("EC:prime256v1", "sha256"), ("EC:secp384r1", "sha384")])
def test_pkcs11_tool_signs_with_ecdsa(token: Token, keys: dict[str, str], kind: str, digest: str) -> None:
    number = keys[kind]
    sign = ["--sign", "--mechanism", "ECDSA", "--id", number, "--input-file", digest]
    token.officer(*sign, "--signature-format", "openssl", "--output-file", "signature")
    openssl("dgst", f"-{digest}", "-verify", token.public_key(number), "-signature", "signature", "message", folder=token.folder)
    token.officer(*sign, "--output-file", "raw")
    verify = ["--verify", "--mechanism", "ECDSA", "--id", number, "--signature-file", "raw", "--input-file"]
    assert "Signature is valid" in token.tool(*verify, digest)
    assert "Invalid signature" in token.tool(*verify, "sha384" if digest == "sha256" else "sha256")


@pytest.mark.parametrize(
    ("mechanism", "what", "options"),
    [
        ("SHA256-RSA-PKCS", "message", ()),
        ("RSA-PKCS-PSS", "sha256", ("-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:32")),
    ],
)
def test_pkcs11_tool_signs_with_rsa(token: Token, keys: dict[str, str], mechanism: str, what: str, options: tuple[str, ...]) -> None:
    number = keys["rsa:2048"]
    pss = ["--hash-algorithm", "SHA256", "--mgf", "MGF1-SHA256"] if mechanism.endswith("PSS") else []
    asked = ["--mechanism", mechanism, *pss, "--id", number, "--input-file", what]
    token.officer("--sign", *asked, "--output-file", "signature")
    key = token.public_key(number)
    openssl("dgst", "-sha256", "-verify", key, *options, "-signature", "signature", "message", folder=token.folder)
    assert "Signature is valid" in token.tool("--verify", *asked, "--signature-file", "signature")


def test_p11_kit_0_24_keeps_some_mechanisms_to_itself(token: Token, keys: dict[str, str]) -> None:
    """What docs/pkcs11.md says of it; newer clients let it through, and then it has to work."""
    done = ["--sign", "--mechanism", "ECDSA-SHA256", "--id", keys["EC:prime256v1"], "--input-file", "message"]
    if "ECDSA-SHA256" in token.tool("-M"):
        token.officer(*done, "--signature-format", "openssl", "--output-file", "signature")
        key = token.public_key(keys["EC:prime256v1"])
        openssl("dgst", "-sha256", "-verify", key, "-signature", "signature", "message", folder=token.folder)
    else:
        assert "CKR_MECHANISM_INVALID" in token.officer(*done, fails=True)


def test_a_certificate_goes_in_and_comes_out(token: Token) -> None:
    make = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=gateway 7"]
    openssl(*make, "-keyout", "key.pem", "-outform", "DER", "-out", "certificate.der", folder=token.folder)
    said = token.officer("--write-object", "certificate.der", "--type", "cert", "--label", "gateway", "--id", "0a")
    assert "subject:    DN: CN=gateway 7" in said
    token.tool("--read-object", "--type", "cert", "--label", "gateway", "--output-file", "back.der")
    assert (token.folder / "back.der").read_bytes() == (token.folder / "certificate.der").read_bytes()
    token.officer("--delete-object", "--type", "cert", "--label", "gateway")
    assert "gateway" not in token.officer("-O")


def test_a_private_key_does_not_come_in_in_the_clear(token: Token) -> None:
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-outform", "DER", "-out", "key.der", folder=token.folder)
    assert "CKR_TEMPLATE_INCONSISTENT" in token.officer("--write-object", "key.der", "--type", "privkey", "--id", "0c", fails=True)
    openssl("ec", "-inform", "DER", "-in", "key.der", "-pubout", "-outform", "DER", "-out", "public.der", folder=token.folder)
    token.officer("--write-object", "public.der", "--type", "pubkey", "--label", "theirs", "--id", "0c")


def test_pkcs11_tool_makes_secret_keys(token: Token) -> None:
    said = token.officer("--keygen", "--key-type", "AES:32", "--label", "cipher", "--id", "0d")
    assert "AES length 32" in said
    assert "C_GetAttributeValue(VALUE) failed: rv = CKR_ATTRIBUTE_SENSITIVE" in said  # it asks, and is told
    token.officer("--keygen", "--key-type", "GENERIC:32", "--label", "mac", "--id", "0e", "--usage-sign")
    token.officer("--sign", "--mechanism", "SHA256-HMAC", "--id", "0e", "--input-file", "message", "--output-file", "mac")
    assert (token.folder / "mac").stat().st_size == 32


def test_pkcs11_tool_decrypts(token: Token, keys: dict[str, str]) -> None:
    key = token.public_key(keys["rsa:2048"])
    oaep = ("-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha256", "-pkeyopt", "rsa_mgf1_md:sha256")
    openssl("pkeyutl", "-encrypt", "-pubin", "-inkey", key, "-in", "message", "-out", "sealed", *oaep, folder=token.folder)
    asked = ["--mechanism", "RSA-PKCS-OAEP", "--hash-algorithm", "SHA256", "--mgf", "MGF1-SHA256", "--id", keys["rsa:2048"]]
    token.officer("--decrypt", *asked, "--input-file", "sealed", "--output-file", "opened")
    assert (token.folder / "opened").read_bytes() == MESSAGE


def test_a_destroyed_key_is_gone(token: Token) -> None:
    token.officer("--keypairgen", "--key-type", "EC:prime256v1", "--label", "short", "--id", "0b")
    for kind in ("privkey", "pubkey"):
        token.officer("--delete-object", "--type", kind, "--id", "0b")
    assert "short" not in token.officer("-O")


def test_pkcs11_tools_own_test(token: Token, keys: dict[str, str]) -> None:
    said = token.officer("--test")
    assert "No errors" in said
    assert f"testing key 0 (made {next(iter(keys))})" in said


def test_a_pin_is_changed(own: Token) -> None:
    own.officer("--change-pin", "--new-pin", "env:NEW_PIN")
    assert "CKR_PIN_INCORRECT" in own.officer("-O", fails=True)
    own.tool("--login", "--pin", "env:NEW_PIN", "-O")


def test_the_security_officer_unlocks(own: Token) -> None:
    for _ in range(TRIES):
        assert "CKR_PIN_INCORRECT" in own.tool("--login", "--pin", "wrong-pin", "-O", fails=True)
    assert "CKR_PIN_LOCKED" in own.officer("-O", fails=True)
    assert "user PIN locked" in own.tool("-L")
    own.tool("--login", "--login-type", "so", "--so-pin", "env:SO_PIN", "--init-pin", "--new-pin", "env:NEW_PIN")
    own.tool("--login", "--pin", "env:NEW_PIN", "-O")
    assert "user PIN locked" not in own.tool("-L")


# --- OpenSSL's engine


@pytest.mark.parametrize("kind", ["rsa:2048", "EC:prime256v1", "EC:secp384r1"])
def test_openssl_signs_a_request(token: Token, keys: dict[str, str], kind: str) -> None:
    if not list(Path("/usr/lib").glob("*/engines-3/pkcs11.so")):
        missing("OpenSSL's pkcs11 engine (package libengine-pkcs11-openssl)")
    (token.folder / "openssl.cnf").write_text(ENGINE)
    (token.folder / "pin").write_text((token.home / "pin").read_text().strip())  # the engine takes a line's end for a part of the PIN
    key = f"pkcs11:token=ironroot;object=made%20{kind.replace(':', '%3A')};type=private?pin-source=file:{token.folder / 'pin'}"
    token.run(
        *("openssl", "req", "-new", "-engine", "pkcs11", "-keyform", "engine", "-key", key, "-subj", "/CN=gateway", "-out", "request"),
        OPENSSL_CONF=str(token.folder / "openssl.cnf"),
    )
    assert "verify OK" in openssl("req", "-verify", "-noout", "-in", "request", folder=token.folder)
    inside = openssl("req", "-noout", "-pubkey", "-in", "request", folder=token.folder)
    token.public_key(keys[kind])
    assert (token.folder / "public.pem").read_text() in inside


ENGINE = """\
openssl_conf = begin
[begin]
engines = engines
[engines]
pkcs11 = pkcs11
[pkcs11]
engine_id = pkcs11
init = 0
[req]
distinguished_name = name
[name]
"""


# --- python-pkcs11

PRELUDE = """
import os, sys
import pkcs11
from pkcs11 import Attribute, KDF, KeyType, MGF, Mechanism, ObjectClass
from pkcs11.exceptions import *
token = pkcs11.lib(os.environ["PKCS11_MODULE_PATH"]).get_token(token_label="ironroot")

def login(**more):
    return token.open(user_pin=os.environ["PIN"], **more)

def pair(session, params, label, **more):
    return session.create_domain_parameters(KeyType.EC, {Attribute.EC_PARAMS: params}, local=True).generate_keypair(label=label, **more)
"""
SM2 = """
from pkix import sm2
with login(rw=True) as session:
    public, private = pair(session, bytes.fromhex("06082A811CCF5501822D"), "sm2 key", store=True)
    point = public[Attribute.EC_POINT]
    assert point[:3] == bytes.fromhex("044104"), "an OCTET STRING around the uncompressed point"
    e = sm2.digest(point[2:], sys.argv[1].encode(), id=b"1234567812345678")
    signature = private.sign(e, mechanism=Mechanism.ECDSA)
    assert public.verify(e, signature, mechanism=Mechanism.ECDSA)
    assert not public.verify(e[::-1], signature, mechanism=Mechanism.ECDSA)
    assert private[Attribute.EC_PARAMS] == bytes.fromhex("06082A811CCF5501822D")
    print(point[2:].hex(), signature.hex())
"""


def test_sm2_signature_over_its_digest(token: Token) -> None:
    ((point, signature),) = [[bytes.fromhex(word) for word in line.split()] for line in token.python(SM2, MESSAGE.decode())]
    assert sm2.verify(point, x962(signature), MESSAGE, id=b"1234567812345678")
    (token.folder / "signature").write_bytes(x962(signature))
    (token.folder / "sm2.der").write_bytes(SM2_SPKI + point)
    verify = ["pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", "sm2.der", "-rawin", "-digest", "sm3", "-pkeyopt", SM2_ID]
    said = openssl(*verify, "-in", "message", "-sigfile", "signature", folder=token.folder)
    assert "Signature Verified Successfully" in said


SCRIPTS = {
    "find and read attributes": """
with login(rw=True) as session:
    public, private = pair(session, bytes.fromhex("06082A8648CE3D030107"), "found", id=b"\\x77", store=True)
    (found,) = session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.LABEL: "found"})
    assert found == private and found.id == b"\\x77" and found.key_type is KeyType.EC
    for name in (Attribute.SENSITIVE, Attribute.ALWAYS_SENSITIVE, Attribute.NEVER_EXTRACTABLE, Attribute.LOCAL, Attribute.PRIVATE):
        assert found[name] is True, name
    assert found[Attribute.EXTRACTABLE] is False
    assert session.get_key(object_class=ObjectClass.PUBLIC_KEY, label="found")[Attribute.EC_POINT] == public[Attribute.EC_POINT]
    assert list(session.get_objects({Attribute.LABEL: "nobody"})) == []
    found[Attribute.LABEL] = "renamed"
    assert session.get_key(object_class=ObjectClass.PRIVATE_KEY, label="renamed").id == b"\\x77"
with token.open() as session:
    assert not list(session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY}))
""",
    "a wrong PIN": """
for pin in ("00000000", os.environ["PIN"][:-1]):
    try:
        token.open(user_pin=pin)
    except PinIncorrect:
        continue
    sys.exit("a wrong PIN was taken")
with login():
    pass
""",
    "RSA-OAEP": """
with login() as session:
    public, private = session.generate_keypair(KeyType.RSA, 2048, store=False)
    parameter = (Mechanism.SHA256, MGF.SHA256, None)
    sealed = public.encrypt(b"session key", mechanism=Mechanism.RSA_PKCS_OAEP, mechanism_param=parameter)
    assert len(sealed) == 256
    assert private.decrypt(sealed, mechanism=Mechanism.RSA_PKCS_OAEP, mechanism_param=parameter) == b"session key"
    try:
        private.decrypt(sealed[::-1], mechanism=Mechanism.RSA_PKCS_OAEP, mechanism_param=parameter)
    except (EncryptedDataInvalid, EncryptedDataLenRange):
        pass
    else:
        sys.exit("changed data was decrypted")
    sealed = public.encrypt(b"session key")  # OAEP with SHA-1, the library's default
    assert private.decrypt(sealed) == b"session key"
""",
    "a secret key under an RSA key": """
with login() as session:
    public, private = session.generate_keypair(KeyType.RSA, 2048, store=False)
    aes = session.generate_key(KeyType.AES, 256, store=False, template={Attribute.EXTRACTABLE: True})
    oaep = {"mechanism": Mechanism.RSA_PKCS_OAEP, "mechanism_param": (Mechanism.SHA256, MGF.SHA256, None)}
    parcel = public.wrap_key(aes, **oaep)
    back = private.unwrap_key(ObjectClass.SECRET_KEY, KeyType.AES, parcel, store=False, **oaep)
    ecb = {"mechanism": Mechanism.AES_ECB}
    assert back.decrypt(aes.encrypt(bytes(range(32)), **ecb), **ecb) == bytes(range(32))
    assert back[Attribute.LOCAL] is False and back[Attribute.SENSITIVE] is True
    stays = session.generate_key(KeyType.AES, 256, store=False)
    try:
        public.wrap_key(stays, **oaep)
    except KeyUnextractable:
        pass
    else:
        sys.exit("a key that is not extractable left")
""",
    "values of secrets": """
with login() as session:
    _, private = pair(session, bytes.fromhex("06082A8648CE3D030107"), "closed", store=False)
    rsa = session.generate_keypair(KeyType.RSA, 2048, store=False)[1]
    aes = session.generate_key(KeyType.AES, 128, store=False)
    for key, name in ((private, Attribute.VALUE), (aes, Attribute.VALUE), (rsa, Attribute.PRIVATE_EXPONENT), (rsa, Attribute.PRIME_1)):
        try:
            key[name]
        except AttributeSensitive:
            continue
        sys.exit(f"{name} was shown")
    assert len(rsa[Attribute.MODULUS]) == 256
""",
    "ciphers, digests, random numbers": """
import hashlib
with login() as session:
    aes = session.generate_key(KeyType.AES, 256, store=False)
    assert aes.decrypt(aes.encrypt(b"octets 8" * 10, mechanism=Mechanism.AES_ECB), mechanism=Mechanism.AES_ECB) == b"octets 8" * 10
    mac = session.generate_key(KeyType.GENERIC_SECRET, 256, store=False, template={Attribute.SIGN: True, Attribute.VERIFY: True})
    assert mac.verify(b"abc", mac.sign(b"abc", mechanism=Mechanism.SHA256_HMAC), mechanism=Mechanism.SHA256_HMAC)
    assert session.digest(b"abc", mechanism=Mechanism.SHA256) == hashlib.sha256(b"abc").digest()
    parts = (b"abc", b"d" * 5000, b"")
    assert session.digest(parts, mechanism=Mechanism.SHA384) == hashlib.sha384(b"".join(parts)).digest()
    assert len({session.generate_random(256) for _ in range(20)}) == 20
""",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_python_pkcs11(token: Token, script: str) -> None:
    assert token.python(SCRIPTS[script]) == []


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize(
    ("mechanism", "parameter"),
    [
        (cka.CKM_AES_CBC_PAD, bytes(range(16))),
        (cka.CKM_AES_KEY_WRAP_PAD, None),
        (cka.CKM_AES_KEY_WRAP_KWP, None),
    ],
)
def test_a_private_key_travels_under_an_aes_key(running: Path, mechanism: int, parameter: bytes | None, new: bool) -> None:
    """As newer clients ask for it; that of p11-kit 0.24 refuses these mechanisms by itself."""
    client = p11_client.P11(running / "pkcs11.sock", new=new)
    session = client.session(pin=(running / "pin").read_text().strip())
    wrapping = client.secret(session, wrap=True, unwrap=True)
    public, private = client.pair(session, P_256_PARAMS, extractable=True)
    (parcel,) = client.call("WrapKey", session, (mechanism, parameter), wrapping, private, 4096)
    as_what = {cka.CKA_CLASS: cka.CKO_PRIVATE_KEY, cka.CKA_KEY_TYPE: cka.CKK_EC, cka.CKA_SIGN: True}
    (back,) = client.call("UnwrapKey", session, (mechanism, parameter), wrapping, parcel, as_what)
    client.call("SignInit", session, (cka.CKM_ECDSA, None), back)
    (signature,) = client.call("Sign", session, bytes(32), 64)
    client.call("VerifyInit", session, (cka.CKM_ECDSA, None), public)
    assert client.call("Verify", session, bytes(32), signature) == ()
    assert client.get(session, back, cka.CKA_SENSITIVE) is True
    assert client.get(session, back, cka.CKA_ALWAYS_SENSITIVE) is False
    changed = bytes((*parcel[:-1], parcel[-1] ^ 1))
    assert client.ckr("UnwrapKey", session, (mechanism, parameter), wrapping, changed, as_what) == Code.WRAPPED_KEY_INVALID.ckr
    client.close()


def test_many_threads_share_one_connection(token: Token) -> None:
    """Answers find the calls that they belong to, whichever comes first."""
    script = """
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
keep = login()
public, private = pair(keep, bytes.fromhex("06082A8648CE3D030107"), "shared", store=False)
rsa = keep.generate_keypair(KeyType.RSA, 2048, store=False)[1]

def work(number):
    with token.open() as session:
        key = session.get_key(object_class=ObjectClass.PRIVATE_KEY, label="shared")
        for turn in range(25):
            e = sha256(b"%d %d" % (number, turn)).digest()
            assert public.session is keep and key.sign(e, mechanism=Mechanism.ECDSA)
            if turn % 5 == number % 5:
                assert len(rsa.sign(e, mechanism=Mechanism.SHA256_RSA_PKCS)) == 256
    return number

with ThreadPoolExecutor(4) as pool:
    assert list(pool.map(work, range(8))) == list(range(8))
"""
    assert token.python(script) == []


def test_no_pin_is_in_the_log(token: Token) -> None:
    token.officer("-O")
    token.tool("--login", "--pin", "not-the-pin", "-O", fails=True)
    token.tool("--login", "--login-type", "so", "--so-pin", "env:SO_PIN", "--session-rw", "-O")
    log = b"".join(file.read_bytes() for file in token.home.glob("audit.log*"))
    assert b'"op":"login"' in log
    for pin in ("not-the-pin", *((token.home / name).read_text().strip() for name in ("pin", "so-pin"))):
        assert pin.encode() not in log
