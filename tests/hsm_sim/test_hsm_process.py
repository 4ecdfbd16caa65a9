"""The HSM as its clients see it: a separate process, started, killed, attacked."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import resource
import select
import signal
import socket
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import missing

from hsm_sim.token import Token
from pkix import der
from pkix.algorithms import KeyKind, load_public_key
from pkix.errors import Malformed

Run = Callable[..., subprocess.CompletedProcess[str]]
KINDS = [str(kind) for kind in KeyKind]


def log_lines(home: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (home / "sign.log").read_text().splitlines()]


def items(key: str, inputs: list[bytes]) -> list[dict[str, object]]:
    return [{"key": key, "data": data, "purpose": "certificate"} for data in inputs]


def digests(count: int, start: int = 0) -> list[bytes]:
    return [sha256(b"%d" % number).digest() for number in range(start, start + count)]


# --- keys ---


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_key_signs_and_outlives_a_kill_right_after_it_was_made(hsm: Any, kind: str) -> None:
    spki = hsm.login().call("generate", key="k", kind=kind)["public_key"]
    hsm.kill()
    hsm.start()
    client = hsm.login()
    public_key = load_public_key(spki)
    attributes = client.call("public_key", key="k")
    assert (attributes["public_key"], attributes["kind"], attributes["origin"]) == (spki, kind, "generated")
    for message in (b"first", b"second"):
        public_key.verify(client.sign("k", public_key.signing_input(message))["signature"], message)


def test_a_key_is_made_once_and_destroyed_for_good(hsm: Any) -> None:
    client = hsm.login()
    for _ in range(2):
        client.send("generate", key="k", kind="rsa-2048")
    answers = [client.receive() for _ in range(2)]
    assert sorted(answer.get("error", "") for answer in answers) == ["", "key_exists"]
    assert client.code("generate", key="k", kind="sm2") == "key_exists"
    client.call("destroy", key="k")
    assert client.code("destroy", key="k") == "key_not_found"
    assert client.sign("k")["error"] == "key_not_found"
    assert list((hsm.home / "keys").iterdir()) == []
    assert hsm.restart().call("keys") == []


def test_a_label_is_a_name_and_never_a_path(hsm: Any) -> None:
    client = hsm.login()
    labels = ["../../pin", "/etc/passwd", "a/b", "根 authority", "x" * 128]
    for label in labels:
        client.call("generate", key=label, kind="p-256")
    assert len(list((hsm.home / "keys").iterdir())) == len(labels)
    for label in ("", "line\nfeed", "x" * 129, 7, None):
        assert client.code("generate", key=label, kind="p-256") == "bad_request"
    assert {key["label"] for key in hsm.restart().call("keys")} == set(labels)


def test_one_bad_item_does_not_spoil_a_batch(hsm: Any) -> None:
    client = hsm.login()
    client.call("generate", key="p", kind="p-256")
    client.call("generate", key="s", kind="sm2")
    good = digests(3)
    batch = [*items("p", [good[0]]), *items("none", [good[1]]), *items("s", [good[2]]), *items("p", [b"short"]), "no item", {"key": "p"}]
    outcomes = client.call("sign_many", items=batch)
    codes = [None, "key_not_found", None, "data_len_range", "bad_request", "bad_request"]
    assert [outcome.get("error") for outcome in outcomes] == codes
    assert [line["input"] for line in log_lines(hsm.home)] in ([good[0].hex(), good[2].hex()], [good[2].hex(), good[0].hex()])


# --- who may ---


def test_nothing_but_a_greeting_without_the_pin(hsm: Any) -> None:
    hsm.login().call("generate", key="k", kind="p-256")
    stranger = hsm.connect()
    assert stranger.call("hello")["state"] == "operational"
    for op in ("keys", "public_key", "sign_many", "generate", "destroy", "log_head", "lock"):
        assert stranger.code(op, key="k", kind="sm2", items=[]) == "user_not_logged_in"
    assert "keys" not in stranger.call("status")


def test_a_lock_ends_every_login_until_somebody_has_the_pin(hsm: Any) -> None:
    one, other = hsm.login(), hsm.login()
    one.call("generate", key="k", kind="p-256")
    one.call("lock")
    for client in (one, other):
        assert client.code("sign_many", items=items("k", digests(1))) == "locked"
    status = other.call("status")
    assert (status["state"], status["locked_on_request"]) == ("locked", True)
    other.call("login", pin=hsm.pin)
    assert "signature" in other.sign("k")
    assert one.code("keys") == "user_not_logged_in"
    assert not other.call("status")["locked_on_request"]


def test_wrong_pins_are_counted_over_restarts_and_the_tenth_locks(hsm: Any) -> None:
    client = hsm.connect()
    for left in (9, 8, 7):
        assert client.code("login", pin="wrong pin") == "pin_incorrect"
        assert client.call("status")["tries_left"] == left
    hsm.kill()
    hsm.start()
    client = hsm.connect()
    assert client.call("status")["tries_left"] == 7
    client.call("login", pin=hsm.pin)
    assert client.call("status")["tries_left"] == 10  # a right one starts the count afresh

    stranger = hsm.connect()  # from here on against the open token, where the check is quick
    for _ in range(10):
        assert stranger.code("login", pin="wrong pin") == "pin_incorrect"
    assert stranger.code("login", pin=hsm.pin) == "pin_locked"
    assert client.call("keys") == []  # who is in, stays in
    hsm.kill()
    hsm.start()
    assert hsm.connect().code("login", pin=hsm.pin) == "pin_locked"
    (hsm.home / "pin.tries").write_text("0\n")  # the owner's way back (docs/hsm.md)
    hsm.login()


def test_guessing_in_parallel_gives_no_more_tries(hsm: Any) -> None:
    clients = [hsm.connect() for _ in range(8)]
    for client in clients:
        client.send("login", pin="wrong pin")
        client.send("login", pin="wrong pin too")
    codes = [client.receive()["error"] for client in clients for _ in range(2)]
    assert (codes.count("pin_incorrect"), codes.count("pin_locked")) == (10, 6)


def test_another_user_is_turned_away_even_if_the_files_let_him_in(hsm: Any) -> None:
    if os.geteuid() != 0:
        missing("the right to become somebody else (root)")
    hsm.home.parent.chmod(0o711)
    hsm.home.chmod(0o711)
    (hsm.home / "native.sock").chmod(0o666)
    child = os.fork()
    if child == 0:
        code = 9
        with contextlib.suppress(BaseException):
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(hsm.home / "native.sock"))
            code = 2
            request = cbor2.dumps({"id": 1, "op": "hello"})
            connection.sendall(len(request).to_bytes(4) + request)
            code = 0 if connection.recv(100) == b"" else 3
        os._exit({9: 9, 2: 0}.get(code, code))  # 2: reset already while sending
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    hsm.login()


# --- what leaves it ---


def secrets_of(contents: bytes) -> set[bytes]:
    """All integers and octet strings (also [0], ML-DSA's seed) of 31 octets and more in a DER structure, and in octet strings in it."""
    found, pos = set[bytes](), 0
    while pos < len(contents):
        element = der.read(contents, pos)
        body, pos = contents[element.body : element.end], element.end
        if element.tag & 0x20:
            found |= secrets_of(body)
        elif element.tag in (der.INTEGER, der.OCTET_STRING, 0x80) and len(body) >= 31:
            found.add(body)
            with contextlib.suppress(Malformed):
                found |= secrets_of(body)
    return found


def forms(secret: bytes) -> list[bytes]:
    """How a secret could be written down: as it is, little-endian, hex, base64 (at each of the three alignments), decimal."""
    plain = secret.lstrip(b"\0")
    encoded = [base64.b64encode(bytes(shift) + plain)[4 : 4 + len(plain)] for shift in range(3)]
    decimal = [str(int.from_bytes(plain)).encode()] if len(plain) <= 512 else []  # no single number is longer
    return [plain, plain[::-1], plain.hex().encode(), plain.hex().upper().encode(), *encoded, *decimal]


def test_no_private_number_leaves_in_any_answer_or_rests_in_any_file(hsm: Any) -> None:
    client = hsm.login()
    for kind in KINDS:
        client.call("generate", key=kind, kind=kind)
        client.sign(kind, bytes(48) if kind == "p-384" else bytes(32))
        for op in ("public_key", "generate", "export", "get", "backup"):
            with contextlib.suppress(RuntimeError):
                client.call(op, key=kind, kind=kind)
    for op in ("hello", "keys", "status", "log_head"):
        client.call(op)
    client.code("login", pin="wrong pin")
    client.call("destroy", key=KINDS[0])
    client.call("lock")
    assert hsm.stop() == 0

    token = Token(hsm.home)
    asyncio.run(token.login(hsm.pin))
    assert token.vault is not None
    keys = token.vault.all_keys()
    assert len(keys) == len(KINDS) - 1
    seen = bytes(client.received) + b"\0".join(path.read_bytes() for path in hsm.home.rglob("*") if path.is_file() and path.name != "pin")
    for key in keys:
        assert key.spki in seen  # the search finds what is there
        private = key.private.to_der()
        hidden = {private} | {secret for secret in secrets_of(private) if secret not in key.spki}  # PKCS#8 repeats an RSA modulus
        assert len(hidden) >= 3, key.kind
        for secret in hidden:
            for form in forms(secret):
                assert form not in seen, key.kind
    assert (hsm.home / "device.key").read_bytes() not in bytes(client.received)
    assert hsm.pin.encode() not in seen


def test_it_leaves_no_core_and_cannot_gain_privileges(hsm: Any) -> None:
    pid = hsm.process.pid
    assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)
    assert "NoNewPrivs:\t1" in Path(f"/proc/{pid}/status").read_text()
    if os.geteuid() != 0:  # not dumpable: closed even to its own user
        with pytest.raises(PermissionError):
            Path(f"/proc/{pid}/mem").read_bytes()
    assert stat.S_IMODE((hsm.home / "native.sock").stat().st_mode) == 0o600


# --- the log ---


def test_the_log_has_every_signature_in_one_chain(hsm: Any) -> None:
    client, other = hsm.login(), hsm.login()
    for kind in ("p-256", "sm2", "ed25519"):
        client.call("generate", key=kind, kind=kind)
    expected = []
    for number, kind in enumerate(("p-256", "sm2", "p-256", "sm2")):
        inputs = digests(70, 100 * number)
        (client if number % 2 else other).send("sign_many", items=items(kind, inputs))
        expected += [(kind, data.hex()) for data in inputs]
    for single in digests(50, 1000):
        client.send("sign_many", items=items("p-256", [single]))
        expected.append(("p-256", single.hex()))
    answers = [client.receive() for _ in range(52)] + [other.receive() for _ in range(2)]
    assert all("signature" in outcome for answer in answers for outcome in answer["ok"])
    client.sign("ed25519", b"m" * 1000, "crl")

    lines = log_lines(hsm.home)
    assert sorted((line["key"], line["input"]) for line in lines[:-1]) == sorted(expected)
    assert (lines[-1]["purpose"], lines[-1]["sha256"]) == ("crl", sha256(b"m" * 1000).hexdigest())
    raw = (hsm.home / "sign.log").read_bytes().splitlines()
    assert [line["prev"] for line in lines] == ["0" * 64, *(sha256(line).hexdigest() for line in raw[:-1])]
    assert client.call("log_head") == {"seq": len(raw), "sha256": sha256(raw[-1]).hexdigest()}


def test_what_strangers_can_ask_for_is_summed_up(hsm: Any) -> None:
    client = hsm.login()
    for key, kind in (("fast", "p-256"), ("slow", "sm2"), ("ca", "p-256")):
        client.call("generate", key=key, kind=kind)
    for key, start in (("fast", 0), ("slow", 1000)):
        for data in digests(300, start):
            assert "signature" in client.sign(key, data, "ocsp")
    assert "signature" in client.sign("ca")
    lines = log_lines(hsm.home)
    assert lines[-1]["purpose"] == "certificate"  # and everything before it is in the log by now
    summaries = lines[:-1]
    assert {line["purpose"] for line in summaries} == {"ocsp"}
    assert len(summaries) < 100
    assert sum((Counter(line["keys"]) for line in summaries), Counter()) == {"fast": 300, "slow": 300}
    inputs = iter(digests(300) + digests(300, 1000))
    for line in summaries:
        assert line["inputs"] == sha256(b"".join(sha256(next(inputs)).digest() for _ in range(line["count"]))).hexdigest()

    assert "signature" in client.sign("fast", b"\x05" * 32, "ocsp")
    assert hsm.stop() == 0
    assert log_lines(hsm.home)[-1]["inputs"] == sha256(sha256(b"\x05" * 32).digest()).hexdigest()
    raw = (hsm.home / "sign.log").read_bytes().splitlines()
    assert [line["prev"] for line in log_lines(hsm.home)] == ["0" * 64, *(sha256(line).hexdigest() for line in raw[:-1])]


def test_no_signature_is_out_that_the_log_lacks_when_it_is_killed(hsm: Any) -> None:
    client = hsm.login()
    client.call("generate", key="k", kind="p-256")
    inputs = dict(enumerate(digests(1000), client._number + 1))
    for data in inputs.values():
        client.send("sign_many", items=items("k", [data]))
    answered = {client.receive()["id"] for _ in range(200)}
    hsm.process.send_signal(signal.SIGKILL)
    with contextlib.suppress(ConnectionResetError):
        while True:
            answered.add(client.receive()["id"])
    hsm.process.communicate()
    logged = {line["input"] for line in (hsm.start(), log_lines(hsm.home))[1]}
    assert {inputs[number].hex() for number in answered} <= logged
    assert len(answered) >= 200


def test_without_room_for_the_log_nothing_is_signed_until_there_is(hsm: Any) -> None:
    client = hsm.login()
    client.call("generate", key="k", kind="p-256")
    assert "signature" in client.sign("k")
    size = (hsm.home / "sign.log").stat().st_size
    resource.prlimit(hsm.process.pid, resource.RLIMIT_FSIZE, (size + 500, resource.RLIM_INFINITY))
    outcomes = client.call("sign_many", items=items("k", digests(3)))
    assert [set(outcome) for outcome in outcomes] == [{"error", "text"}] * 3
    assert {outcome["error"] for outcome in outcomes} == {"storage"}
    resource.prlimit(hsm.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert "signature" in client.sign("k")
    assert [line["seq"] for line in log_lines(hsm.home)] == [1, 2]


# --- its life ---


def test_it_finishes_what_is_running_when_asked_to_end(hsm: Any) -> None:
    client = hsm.login()
    client.call("generate", key="k", kind="sm2")
    numbers = [client.send("sign_many", items=items("k", digests(64))) for _ in range(8)]
    numbers.append(client.send("generate", key="late", kind="rsa-2048"))
    answers = [client.receive()]
    hsm.process.send_signal(signal.SIGTERM)
    with contextlib.suppress(ConnectionResetError):
        while True:
            answers.append(client.receive())
    hsm.process.communicate()
    assert hsm.process.returncode == 0
    assert sorted(answer["id"] for answer in answers) == numbers
    assert not (hsm.home / "native.sock").exists()
    made = [answer["id"] for answer in answers if "public_key" in answer.get("ok", [])]
    labels = {key["label"] for key in hsm.start().login().call("keys")}
    assert ("late" in labels) == (numbers[-1] in made)


def test_with_parent_it_ends_when_its_parent_is_killed(home: Path) -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'hsm_sim', '--with-parent', '--home', sys.argv[1]])"
    command = [sys.executable, "-c", program, str(home)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        parent.kill()
        assert parent.stdout.read() == b""  # the end of the pipe: nobody holds its other side any more
    assert not (home / "native.sock").exists()


def test_a_home_has_one_process(hsm: Any, run_hsm: Run) -> None:
    second = run_hsm("--home", str(hsm.home))
    assert (second.returncode, second.stdout) == (5, "")
    assert "another HSM process" in second.stderr
    hsm.login()


def test_the_socket_of_a_dead_process_is_replaced(hsm: Any) -> None:
    hsm.kill()
    assert (hsm.home / "native.sock").exists()
    hsm.start().login()


def test_a_home_too_deep_for_a_socket_is_named(tmp_path: Path, run_hsm: Run) -> None:
    home = tmp_path / ("x" * 100)
    assert run_hsm("init", "--home", str(home)).returncode == 0
    ended = run_hsm("--home", str(home))
    assert ended.returncode == 2
    assert "too long" in ended.stderr


# --- hostile clients ---


def attack(hsm: Any, stream: bytes, *, logged_in: bool) -> None:
    """Sends the octets, ends sending, and reads what comes until the HSM closes: only frames with an id and an answer."""
    client = hsm.login() if logged_in else hsm.connect()
    with contextlib.suppress(ConnectionError):
        client.socket.sendall(stream)
        client.socket.shutdown(socket.SHUT_WR)
        while True:
            assert {"id"} < set(client.receive()) <= {"id", "ok", "error", "text"}
    client.close()


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**64), 2**64 - 1), st.binary(max_size=40), st.text(max_size=40), st.just("k")),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)
OPS = st.sampled_from(["hello", "status", "keys", "public_key", "sign_many", "generate", "destroy", "log_head", "nonsense"])
ITEMS = st.lists(st.one_of(VALUES, st.fixed_dictionaries({"key": VALUES, "data": VALUES, "purpose": VALUES})), max_size=4)
REQUESTS = st.fixed_dictionaries(
    {"id": st.one_of(st.integers(0, 2**63 - 1), VALUES), "op": st.one_of(OPS, VALUES)},
    optional={"items": st.one_of(ITEMS, VALUES), "key": VALUES, "kind": VALUES, "pin": VALUES},
)


def test_any_octets_get_an_error_or_a_closed_connection_and_disturb_nobody(hsm: Any) -> None:
    bystander = hsm.login()
    bystander.call("generate", key="k", kind="p-256")
    bystander.call("generate", key="bystander", kind="p-256")
    unhurried = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

    @unhurried
    @given(st.binary(max_size=400), st.booleans())
    def noise(stream: bytes, logged_in: bool) -> None:
        attack(hsm, stream, logged_in=logged_in)
        assert "signature" in bystander.sign("bystander")

    @unhurried
    @given(st.lists(REQUESTS, min_size=1, max_size=5))
    def nonsense(requests: list[dict[str, object]]) -> None:
        payloads = [cbor2.dumps(request) for request in requests]
        attack(hsm, b"".join(len(payload).to_bytes(4) + payload for payload in payloads), logged_in=True)
        assert "signature" in bystander.sign("bystander")

    noise()
    nonsense()
    assert bystander.call("status")["tries_left"] == 10


@pytest.mark.parametrize("logged_in", [False, True])
def test_the_classics(hsm: Any, logged_in: bool) -> None:
    bystander = hsm.login()
    bystander.call("generate", key="k", kind="p-256")

    def framed(payload: bytes) -> bytes:
        return len(payload).to_bytes(4) + payload

    for stream in (
        (1 << 31).to_bytes(4),
        b"\xff\xff\xff\xff" + bytes(1000),
        framed(b"\xa1\x61a" + b"\x81" * 10_000 + b"\x00"),
        framed(b"\xa3\x62id\x01\x62op\x69sign_many\x65items" + b"\x81" * 10_000),
        framed(b"\xa3\x62id\x01\x62op\x69sign_many\x65items\x9a\x80\x00\x00\x00"),
        framed(b""),
        b"\x00\x00\x01",
        framed(cbor2.dumps({"id": 1, "op": "sign_many", "items": [{}] * 1025})),
        framed(cbor2.dumps({"id": 1, "op": "sign_many", "items": items("k", [b"x" * 70_000])})),
        b"GET / HTTP/1.1\r\n\r\n",
    ):
        attack(hsm, stream, logged_in=logged_in)
        assert "signature" in bystander.sign("k")


def test_a_client_that_asks_and_does_not_read_is_waited_for_and_loses_nothing(hsm: Any) -> None:
    greedy, bystander = hsm.login(), hsm.login()
    bystander.call("generate", key="k", kind="p-256")
    request = cbor2.dumps({"id": 1, "op": "sign_many", "items": items("k", digests(500))})
    data = (len(request).to_bytes(4) + request) * 250  # 8 MB, 125,000 signatures
    greedy.socket.setblocking(False)
    sent = 0
    while sent < len(data) and select.select([], [greedy.socket], [], 0.5)[1]:
        sent += greedy.socket.send(data[sent : sent + 65536])
    assert sent < len(data)  # it stopped reading
    assert "signature" in bystander.sign("k")
    greedy.socket.settimeout(60)
    read = 0
    while read < sent // (len(request) + 4):
        assert len(greedy.receive()["ok"]) == 500
        read += 1
    assert read
