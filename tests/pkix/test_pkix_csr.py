"""Certificate requests: openssl's and ours, wishes, proof of possession, and ten thousand that somebody has been at."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import gmssl.sm2
import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa
from cryptography.x509.oid import AttributeOID
from hypothesis import given, settings
from hypothesis import strategies as st

from pkix import der, extensions, pem, sm2
from pkix.algorithms import SIGNATURES, KeyKind
from pkix.csr import Csr, build_csr, parse_csr
from pkix.errors import BadSignature, Malformed, Unsupported, WeakKey
from pkix.name import name
from pkix.privatekey import PrivateKey, generate

KINDS: list[KeyKind] = [
    kind for kind in KeyKind if kind not in (KeyKind.RSA_3072, KeyKind.RSA_4096)
]  # RSA-2048 stands for them; they take seconds to make
KEYS: dict[KeyKind, PrivateKey] = {kind: generate(kind) for kind in KINDS}
SUBJECT = name(("C", "CN"), ("O", "Example Plant"), ("CN", "press-7"))
NAMES = ("dns:press-7.plant", "ip:192.0.2.7", "ip:2001:db8::7", "uri:urn:ironroot:device:f:press-7", "email:ops@plant.example")
CSRS = {kind: build_csr(key, SUBJECT, NAMES, "secret") for kind, key in KEYS.items()}
P256 = KEYS[KeyKind.P_256]
EXTENSION_REQUEST, CHALLENGE_PASSWORD = der.oid("1.2.840.113549.1.9.14"), der.oid("1.2.840.113549.1.9.7")


def request(
    key: PrivateKey = P256,
    *attributes: bytes,
    subject: bytes = SUBJECT.der,
    spki: bytes | None = None,
    version: bytes = b"\x02\x01\x00",
    algorithm: bytes | None = None,
    sign: Callable[[bytes], bytes] | None = None,
) -> bytes:
    """A request made by hand, part by part."""
    info = der.sequence(version, subject, spki or key.public_key.spki, der.context(0, *attributes))
    return der.sequence(info, algorithm or SIGNATURES[key.kind].der, der.bit_string((sign or key.sign)(info)))


def wish(*wished: extensions.Extension) -> bytes:
    return der.sequence(EXTENSION_REQUEST, der.set_of([der.sequence(*(extension.der for extension in wished))]))


def alternatives(*general_names: bytes) -> bytes:
    return wish(extensions.Extension(extensions.SUBJECT_ALT_NAME, False, der.sequence(*general_names)))


# --- other people's programs ---------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., str]:
    """``run("req", …)``: the openssl program in ``tmp_path``, all that it printed."""

    def start(*arguments: str) -> str:
        done = subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True, timeout=60)
        return (done.stdout + done.stderr).decode()

    return start


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not KeyKind.ML_DSA_65])  # OpenSSL has it from 3.5 on
def test_openssl_reads_ours(kind: KeyKind, run: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "a.csr").write_bytes(CSRS[kind])
    distid = ("-vfyopt", "distid:1234567812345678") if kind is KeyKind.SM2 else ()
    text = run("req", "-inform", "DER", "-in", "a.csr", "-verify", "-noout", "-text", "-subject", *distid)
    assert "verify OK" in text
    assert "DNS:press-7.plant" in text
    assert "IP Address:192.0.2.7" in text
    assert "challengePassword" in text
    assert "subject=C = CN, O = Example Plant, CN = press-7" in text


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not KeyKind.SM2])
def test_cryptography_reads_ours(kind: KeyKind) -> None:
    theirs = x509.load_der_x509_csr(CSRS[kind])
    assert theirs.is_signature_valid
    assert theirs.subject.public_bytes() == SUBJECT.der
    assert theirs.attributes.get_attribute_for_oid(AttributeOID.CHALLENGE_PASSWORD).value == b"secret"
    wished = theirs.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert wished.get_values_for_type(x509.DNSName) == ["press-7.plant"]


CONFIG = """
[req]
prompt = no
distinguished_name = dn
req_extensions = wishes
attributes = more
[dn]
C = CN
O = Example Plant
CN = press-7
[more]
challengePassword = secret
[wishes]
subjectAltName = DNS:Press-7.Plant, IP:192.0.2.7, URI:urn:x, DNS:press-7.plant
keyUsage = critical, digitalSignature
basicConstraints = CA:{ca}
"""


@pytest.mark.parametrize(
    ("kind", "options", "identifier"),
    [
        (KeyKind.RSA_2048, [], "-"),
        (KeyKind.RSA_2048, ["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest"], "-"),
        (KeyKind.P_256, [], "-"),
        (KeyKind.P_256, ["-sha512"], "-"),
        (KeyKind.P_384, ["-sha384"], "-"),
        (KeyKind.ED25519, [], "-"),
        (KeyKind.SM2, ["-sm3", "-sigopt", "distid:1234567812345678"], "default"),
        (KeyKind.SM2, ["-sm3"], "empty"),
    ],
)
@pytest.mark.parametrize("ca", ["FALSE", "TRUE"])
def test_we_read_openssls(kind: KeyKind, options: list[str], identifier: str, ca: str, run: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(KEYS[kind].to_pem())
    (tmp_path / "a.cnf").write_text(CONFIG.format(ca=ca))
    run("req", "-new", "-key", "key.pem", "-config", "a.cnf", "-outform", "DER", "-out", "a.csr", *options)
    csr = parse_csr((tmp_path / "a.csr").read_bytes())
    assert csr.subject.attributes == [("C", "CN"), ("O", "Example Plant"), ("CN", "press-7")]
    assert csr.public_key == KEYS[kind].public_key
    assert csr.names == ("dns:press-7.plant", "ip:192.0.2.7", "uri:urn:x")
    assert csr.requests_ca is (ca == "TRUE")
    assert csr.challenge_password == "secret"
    assert csr.signature_id == identifier


def test_an_sm2_request_under_another_id_proves_nothing(run: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(KEYS[KeyKind.SM2].to_pem())
    run("req", "-new", "-key", "key.pem", "-sm3", "-sigopt", "distid:other", "-subj", "/CN=x", "-outform", "DER", "-out", "a.csr")
    with pytest.raises(BadSignature):
        parse_csr((tmp_path / "a.csr").read_bytes())


# --- what a request says -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_ours_read_back(kind: KeyKind) -> None:
    csr = parse_csr(CSRS[kind])
    assert csr == Csr(CSRS[kind], SUBJECT, KEYS[kind].public_key, NAMES, False, "secret", "default" if kind is KeyKind.SM2 else "-")
    assert "secret" not in repr(csr)
    bare = parse_csr(build_csr(KEYS[kind], SUBJECT))
    assert (bare.names, bare.challenge_password, bare.requests_ca) == ((), None, False)


@pytest.mark.parametrize(
    ("wished", "asked"),
    [
        (extensions.basic_constraints(True), True),
        (extensions.basic_constraints(True, 0), True),
        (extensions.basic_constraints(False), False),
        (extensions.key_usage("keyCertSign"), True),
        (extensions.key_usage("digitalSignature", "cRLSign"), True),
        (extensions.key_usage("digitalSignature", "keyAgreement"), False),
        (extensions.extended_key_usage("anyExtendedKeyUsage"), False),
        (extensions.Extension("1.2.3.4", True, b"\x05\x00"), False),
    ],
)
def test_wishes_for_authority_are_noticed(wished: extensions.Extension, asked: bool) -> None:
    assert parse_csr(request(P256, wish(wished))).requests_ca is asked


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        (der.context(2, b"Press-7.PLANT", constructed=False), "dns:press-7.plant"),
        (der.context(2, b"xn--bcher-kva.example", constructed=False), "dns:xn--bcher-kva.example"),
        (der.context(7, bytes(12) + bytes((0, 0, 0, 1)), constructed=False), "ip:::1"),
        (der.context(4, SUBJECT.der), "dirname:CN=press-7,O=Example Plant,C=CN"),
    ],
)
def test_names_have_one_form(given: bytes, canonical: str) -> None:
    assert parse_csr(request(P256, alternatives(given))).names == (canonical,)
    assert parse_csr(request(P256, alternatives(given, given))).names == (canonical,)


HOSTS = [
    b"",
    b"a\0.plant",
    b"a\r\nb",
    "压机".encode(),
    b"a b",
    b"a..b",
    b".a",
    b"a.",
    b"-a",
    b"a-",
    b"a/b",
    b"../b",
    b"x" * 64,
    b"x." * 127 + b"x",
]
HOSTS += [
    b"10.0.0.1",
    b"1",
    b"a.1",
    b"xn--a",
    b"xn--",
    b"xn---",
    b"xn--abc-",
    b"xn--bcher-kv\xe4",
    b"xn--tdaa-",
    b"a,b",
    b"a;b",
    b"a=b",
    b"*",
    b"a.*.b",
    b"@",
]


@pytest.mark.parametrize("host", HOSTS)
def test_hosts_that_are_none_are_refused(host: bytes) -> None:
    with pytest.raises(Malformed):
        parse_csr(request(P256, alternatives(der.context(2, host, constructed=False))))


@pytest.mark.parametrize(
    "general_name",
    [
        der.context(7, bytes(3), constructed=False),
        der.context(7, bytes(8), constructed=False),
        der.context(7, b"", constructed=False),
        der.context(6, b"", constructed=False),
        der.context(6, b"no-scheme", constructed=False),
        der.context(6, b"http://a b/", constructed=False),
        der.context(6, b"http://a/\n", constructed=False),
        der.context(1, b"nobody", constructed=False),
        der.context(1, b"a@b\0c", constructed=False),
        der.context(9, b"x", constructed=False),
        der.utf8_string("press-7"),
    ],
)
def test_other_names_that_are_none_are_refused(general_name: bytes) -> None:
    with pytest.raises(Malformed):
        parse_csr(request(P256, alternatives(general_name)))


def test_a_request_has_at_most_a_hundred_names() -> None:
    def hosts(count: int) -> bytes:
        return alternatives(*(der.context(2, b"h%d.plant" % number, constructed=False) for number in range(count)))

    assert len(parse_csr(request(P256, hosts(100))).names) == 100
    with pytest.raises(Malformed, match="at most 100"):
        parse_csr(request(P256, hosts(101)))


def challenge(value: bytes) -> bytes:
    return der.sequence(CHALLENGE_PASSWORD, der.set_of([value]))


def test_challenge_passwords_of_either_string_type() -> None:
    for value in (der.utf8_string("口令"), der.tlv(0x1E, "口令".encode("utf-16-be"))):
        assert parse_csr(request(P256, challenge(value))).challenge_password == "口令"
    assert parse_csr(request(P256, challenge(der.printable_string("p")))).challenge_password == "p"


_SAN = extensions.subject_alternative_name("dns:a.plant")
_UNKNOWN = der.sequence(der.oid("1.2.3.4"), der.set_of([der.null()]))
_EMPTY_SAN = extensions.Extension(extensions.SUBJECT_ALT_NAME, False, b"\x30\x00")
SHAPES = {
    "an attribute twice": (_UNKNOWN, _UNKNOWN),
    "attributes not in DER order": tuple(sorted((_UNKNOWN, challenge(der.utf8_string("x"))), reverse=True)),
    "two requests for extensions": tuple(sorted((wish(_SAN), wish(extensions.basic_constraints(True))))),
    "two challenge passwords": tuple(sorted((challenge(der.utf8_string("x")), challenge(der.utf8_string("y"))))),
    "an extension twice": (wish(_SAN, _SAN),),
    "a request for no extension": (wish(),),
    "an extension request without a value": (der.sequence(EXTENSION_REQUEST, der.set_of([])),),
    "two values": (der.sequence(CHALLENGE_PASSWORD, der.set_of([der.utf8_string("x"), der.utf8_string("y")])),),
    "no SET": (der.sequence(CHALLENGE_PASSWORD, der.utf8_string("x")),),
    "an empty password": (challenge(der.utf8_string("")),),
    "a password of 256 characters": (challenge(der.utf8_string("x" * 256)),),
    "a password that is a number": (challenge(der.integer(7)),),
    "no attribute": (der.null(),),
    "an empty attribute": (der.sequence(),),
    "an empty list of names": (wish(_EMPTY_SAN),),
    "constraints with a trailing octet": (wish(extensions.Extension(extensions.BASIC_CONSTRAINTS, True, b"\x30\x00\x00")),),
    "BOOLEAN 01": (wish(extensions.Extension(extensions.BASIC_CONSTRAINTS, True, b"\x30\x03\x01\x01\x01")),),
    "names nested 5000 deep": (wish(extensions.Extension(extensions.SUBJECT_ALT_NAME, False, b"\x30\x80" * 5000)),),
}


@pytest.mark.parametrize("attributes", SHAPES.values(), ids=SHAPES.keys())
def test_attributes_of_the_wrong_shape_are_refused(attributes: tuple[bytes, ...]) -> None:
    with pytest.raises(Malformed):
        parse_csr(request(P256, *attributes))


def test_attributes_that_nobody_knows_are_passed_over() -> None:
    assert parse_csr(request(P256, _UNKNOWN)).names == ()


NO_REQUESTS = {
    "nothing": b"",
    "empty": b"\x30\x00",
    "trailing octet": CSRS[KeyKind.P_256] + b"\0",
    "PEM": pem.encode("CERTIFICATE REQUEST", CSRS[KeyKind.P_256]).encode(),
    "version 2": request(version=b"\x02\x01\x01"),
    "no version": request(version=b""),
    "no subject": request(subject=b""),
    "a subject that is no name": request(subject=b"\x31\x00"),
    "escape in the subject": request(subject=name(("CN", "x")).der.replace(b"x", b"\x1b")),
    "a common name of 65": request(subject=der.sequence(der.set_of([der.sequence(der.oid("2.5.4.3"), der.utf8_string("x" * 65))]))),
    "a public key": P256.public_key.spki,
    "3000 elements": der.sequence(*[der.null()] * 3000),
}


@pytest.mark.parametrize("raw", NO_REQUESTS.values(), ids=NO_REQUESTS.keys())
def test_what_is_no_request_is_refused(raw: bytes) -> None:
    with pytest.raises(Malformed):
        parse_csr(raw)


def test_the_size_is_the_callers_choice() -> None:
    big = request(P256, der.sequence(der.oid("1.2.3.4"), der.set_of([der.octet_string(bytes(17000))])))
    with pytest.raises(Malformed, match="at most 16384"):
        parse_csr(big)
    assert parse_csr(big, max_size=20000).subject == SUBJECT


# --- proof of possession -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_holder_of_the_key_gets_through(kind: KeyKind) -> None:
    key = KEYS[kind]
    other = generate(kind)
    stolen = request(other, spki=key.public_key.spki, algorithm=SIGNATURES[kind].der)
    with pytest.raises(BadSignature, match="not signed with the private key"):
        parse_csr(stolen)
    body = der.children(CSRS[kind], der.read(CSRS[kind]))
    other_body = build_csr(key, name(("CN", "admin")), NAMES)
    swapped = der.sequence(
        other_body[4 : der.children(other_body, der.read(other_body))[0].end], *(CSRS[kind][part.start : part.end] for part in body[1:])
    )
    with pytest.raises(BadSignature):
        parse_csr(swapped)
    with pytest.raises(BadSignature):
        parse_csr(request(key, sign=lambda _: b""))


def test_a_signature_is_a_whole_number_of_octets() -> None:
    for number in range(100):
        raw = build_csr(KEYS[KeyKind.ED25519], name(("CN", str(number))))
        if raw[-1] % 2 == 0:
            info, algorithm, bits = der.children(raw, der.read(raw))
            seven_bits = der.bit_string(raw[bits.body + 1 :], 1)
            with pytest.raises(Malformed, match="whole number of octets"):
                parse_csr(der.sequence(raw[info.start : info.end], raw[algorithm.start : algorithm.end], seven_bits))
            return
    pytest.fail("a hundred signatures that end in a set bit")


def test_sm2_with_null_parameters_or_its_curve_as_algorithm() -> None:
    key = KEYS[KeyKind.SM2]
    null = der.sequence(der.oid("1.2.156.10197.1.501"), der.null())
    assert parse_csr(request(key, algorithm=null)).signature_id == "default"
    curve = der.oid("1.2.156.10197.1.301")
    for algorithm in (der.sequence(curve, curve), der.sequence(curve)):
        other = der.sequence(algorithm, der.bit_string(key.public_key.key_bits))
        assert parse_csr(request(key, spki=other)).public_key.spki == key.public_key.spki


def test_sm2_without_z_or_under_ecdsa_is_refused() -> None:
    key = KEYS[KeyKind.SM2]

    def without_z(message: bytes) -> bytes:
        digest = hashes.Hash(hashes.SM3())
        digest.update(message)
        return key.sign_input(digest.finalize())

    with pytest.raises(BadSignature):
        parse_csr(request(key, sign=without_z))
    ecdsa = SIGNATURES[KeyKind.P_256].der
    with pytest.raises(Unsupported, match="ecdsa-with-SHA256 does not fit a key of kind sm2; sign with sm2sign-with-sm3"):
        parse_csr(request(key, algorithm=ecdsa))
    on_p256 = der.sequence(
        der.sequence(der.oid("1.2.840.10045.2.1"), der.oid("1.2.156.10197.1.301")), der.bit_string(P256.public_key.key_bits)
    )
    with pytest.raises(WeakKey):
        parse_csr(request(spki=on_p256, algorithm=SIGNATURES[KeyKind.SM2].der))


@pytest.mark.parametrize("at", ["r", "s"])
@pytest.mark.parametrize("change", [lambda _: 0, lambda _: sm2.N, lambda _: -1, lambda v: v + sm2.N, lambda v: v + (sm2.N << 256)])
def test_sm2_signatures_with_numbers_outside_of_their_range(at: str, change: Callable[[int], int]) -> None:
    def forge(message: bytes) -> bytes:
        good = KEYS[KeyKind.SM2].sign(message)
        values = [int.from_bytes(good[part.body : part.end]) for part in der.children(good, der.read(good))]
        values["rs".index(at)] = change(values["rs".index(at)])
        return der.sequence(*map(der.integer, values))

    with pytest.raises(BadSignature):
        parse_csr(request(KEYS[KeyKind.SM2], sign=forge))


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ((der.oid("1.2.840.10045.4.1"),), "ecdsa-with-SHA1 is not taken"),
        ((der.oid("1.2.840.113549.1.1.5"), der.null()), "sha1WithRSAEncryption is not taken"),
        ((der.oid("1.2.840.113549.1.1.11"), der.null()), "does not fit a key of kind p-256"),
    ],
)
def test_signature_algorithms_that_are_not_taken(parts: tuple[bytes, ...], text: str) -> None:
    with pytest.raises(Unsupported, match=text):
        parse_csr(request(algorithm=der.sequence(*parts)))


def test_a_request_that_cannot_be_written() -> None:
    for names in (["press-7"], ["dns:a b"], ["ip:1"], ["dns:压机"], [""]):
        with pytest.raises(Malformed):
            build_csr(P256, SUBJECT, names)
    for password in ("", "x" * 256):
        with pytest.raises(Malformed):
            build_csr(P256, SUBJECT, (), password)


# --- hostile octets ------------------------------------------------------------------------------------------------


def independently_verified(csr: Csr) -> bool:
    """The proof of possession again, by another library for SM2, and from the parts as they lie for the others."""
    info, _, bits = der.children(csr.der, der.read(csr.der))
    message, signature = csr.der[info.start : info.end], csr.der[bits.body + 1 : bits.end]
    if csr.public_key.kind is KeyKind.SM2:
        theirs = gmssl.sm2.CryptSM2(private_key="", public_key="")
        theirs.public_key = csr.public_key.key_bits[1:].hex()  # set here: its constructor strips a leading 04
        e = sm2.digest(csr.public_key.key_bits, message, b"" if csr.signature_id == "empty" else sm2.DEFAULT_ID)
        values = [int.from_bytes(signature[part.body : part.end]) for part in der.children(signature, der.read(signature))]
        return bool(theirs.verify("".join(f"{value:064x}" for value in values), e))
    digest = hashes.SHA384() if csr.public_key.kind is KeyKind.P_384 else hashes.SHA256()
    key = serialization.load_der_public_key(csr.public_key.spki)
    try:
        match key:
            case rsa.RSAPublicKey():
                key.verify(signature, message, padding.PKCS1v15(), digest)
            case ec.EllipticCurvePublicKey():
                key.verify(signature, message, ec.ECDSA(digest))
            case ed25519.Ed25519PublicKey() | mldsa.MLDSA65PublicKey():
                key.verify(signature, message)
            case _:
                return False
    except InvalidSignature:
        return False
    return True


def mutated(raw: bytes, key: PrivateKey, source: random.Random) -> bytes:
    """``raw`` after one to three accidents, and signed again half of the time: whoever is hostile has a key of its own."""
    for _ in range(source.choice((1, 1, 1, 2, 3))):
        raw = source.choice((garbled, rewritten, rewritten))(raw, source)
    parts = list(elements(raw))
    if source.random() < 0.5 and len(parts) > 1:
        info = raw[parts[1].start : parts[1].end]
        raw = der.sequence(info, SIGNATURES[key.kind].der, der.bit_string(key.sign(info)))
    return raw


def garbled(raw: bytes, source: random.Random) -> bytes:
    """Octets flipped, cut off, doubled, removed or replaced, or the length of an element edited: lengths no longer fit."""
    at, size = source.randrange(len(raw)), source.choice((1, 1, 2, 4, 16, 64))
    match source.randrange(6):
        case 0:
            return raw[:at] + bytes((raw[at] ^ 1 << source.randrange(8),)) + raw[at + 1 :]
        case 1:
            return raw[: at + 1]
        case 2:
            return raw[:at] + raw[at : at + size] + raw[at:]
        case 3:
            return raw[:at] + raw[at + size :] or raw
        case 4:
            return raw[:at] + source.randbytes(size) + raw[at + size :]
        case _:
            header = source.choice(list(elements(raw)) or [der.Tlv(0, 0, 1, 1)]).start
            return raw[: header + 1] + source.randbytes(1) + raw[header + 2 :]


def rewritten(raw: bytes, source: random.Random) -> bytes:
    """One element emptied, doubled, removed, changed, retagged or replaced by another one; every length around it still true."""
    found = list(elements(raw))
    if not found:
        return raw
    target, other = source.choice(found), source.choice(found)
    contents, at = raw[target.body : target.end], source.randrange(max(1, target.end - target.body))
    replacement = source.choice(
        (
            b"",
            der.null(),
            der.tlv(target.tag),
            raw[target.start : target.end] * 2,
            raw[other.start : other.end],
            der.tlv(target.tag, contents[:-1]),
            der.tlv(target.tag, contents, b"\0"),
            der.tlv(target.tag, contents[:at], source.randbytes(1), contents[at + 1 :]),
            der.tlv(target.tag, contents[:at], source.randbytes(1), contents[at + 1 :]),
            der.tlv(source.choice((0x02, 0x03, 0x04, 0x06, 0x0C, 0x13, 0x30, 0x31, 0x82, 0xA0)), contents),
        )
    )

    def write(element: der.Tlv) -> bytes:
        if element == target:
            return replacement
        if element.tag & 0x20:
            return der.tlv(element.tag, *(write(child) for child in der.children(raw, element)))
        return raw[element.start : element.end]

    return write(found[0]) or raw


def elements(raw: bytes) -> list[der.Tlv]:
    """Every element from the outermost on, in the order of their octets; none if the lengths do not fit."""

    def walk(element: der.Tlv) -> Iterator[der.Tlv]:
        yield element
        if element.tag & 0x20:
            for child in der.children(raw, element):
                yield from walk(child)

    try:
        return list(walk(der.read(raw)))
    except Malformed:
        return []


# RSA, P-384 and ML-DSA differ in their key alone and take longer: fewer of them.
SHARE = {KeyKind.P_256: 5000, KeyKind.SM2: 3000, KeyKind.ED25519: 1500, KeyKind.RSA_2048: 200, KeyKind.P_384: 200, KeyKind.ML_DSA_65: 100}


@pytest.mark.parametrize(("kind", "count"), SHARE.items())
def test_ten_thousand_mutated_requests_are_refused_or_prove_possession(kind: KeyKind, count: int) -> None:
    source = random.Random(f"{kind} 1")
    originals = [CSRS[kind], build_csr(KEYS[kind], SUBJECT), request(KEYS[kind], wish(extensions.basic_constraints(True)), _UNKNOWN)]
    accepted = refused = 0
    for _ in range(count):
        raw = mutated(source.choice(originals), KEYS[kind], source)
        try:
            csr = parse_csr(raw)
        except Malformed:
            refused += 1
            continue
        accepted += raw not in originals
        assert csr.der == raw
        assert (kind is KeyKind.SM2 and accepted > 40) or independently_verified(csr)  # gmssl needs 40 ms
    assert sum(SHARE.values()) == 10_000
    assert refused > count / 2
    assert accepted > count / 100, "what is accepted has to be met often enough to say something of it"


def test_the_second_opinion_can_say_no() -> None:
    for kind in SHARE:
        csr = parse_csr(CSRS[kind])
        assert independently_verified(csr)
        body = csr.der.index(b"press-7")
        forged = Csr(csr.der[:body] + b"press-8" + csr.der[body + 7 :], *(getattr(csr, field) for field in list(Csr.__slots__)[1:]))
        assert not independently_verified(forged)


@settings(deadline=None)
@given(raw=st.binary(max_size=300) | st.lists(st.binary(max_size=40), min_size=3, max_size=4).map(lambda parts: der.sequence(*parts)))
def test_any_octets_are_a_request_or_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed):
        parse_csr(raw)
