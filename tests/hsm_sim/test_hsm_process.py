"""The HSM as its clients see it: a separate process, started, killed, attacked."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hsm_inside import pin_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import missing

from hsm_sim.audit import verify
from hsm_sim.native_ops import OPS
from hsm_sim.roles import PERMISSIONS, Role
from pkix import pem
from pkix.algorithms import KeyKind, load_public_key

Run = Callable[..., subprocess.CompletedProcess[str]]
KINDS = [str(kind) for kind in KeyKind]


def log_lines(home: Path, op: str = "sign") -> list[dict[str, Any]]:
    """What the log says of signatures."""
    lines = [json.loads(line) for line in (home / "audit.log").read_text().splitlines() if line]
    return [line for line in lines if line["op"] == op]


def inputs_of(lines: list[dict[str, Any]]) -> list[str]:
    return [data for line in lines for data in line["inputs"]]


def items(key: str, inputs: list[bytes]) -> list[dict[str, object]]:
    return [{"key": key, "data": data, "purpose": "certificate"} for data in inputs]


def lean(key: str, inputs: list[Any], purpose: str = "certificate") -> dict[str, Any]:
    return {"key": key, "purpose": purpose, "data": inputs}


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
    assert hsm.restart().call("keys") == []


def test_a_label_is_a_name_and_never_a_path(hsm: Any) -> None:
    client = hsm.login()
    labels = ["../../pin", "/etc/passwd", "a/b", "根 authority", "x" * 128]
    for label in labels:
        client.call("generate", key=label, kind="p-256")
    assert len(client.call("keys")) == len(labels)
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
    assert sorted(inputs_of(log_lines(hsm.home))) == sorted([good[0].hex(), good[2].hex()])


@pytest.mark.parametrize("kind", KINDS)
def test_the_lean_form_signs_many_with_one_key(hsm: Any, kind: str) -> None:
    client = hsm.login()
    public_key = load_public_key(client.call("generate", key="k", kind=kind)["public_key"])
    messages = [b"%d" % number for number in range(5)]
    inputs: list[Any] = [public_key.signing_input(message) for message in messages]
    inputs[2:2] = [7, b"", b"x" * 31]
    outcomes = client.call("sign_many", **lean("k", inputs))
    hashing = kind in ("ed25519", "ml-dsa-65")  # takes any message
    assert [outcome["error"] for outcome in outcomes[2:4]] == ["bad_request"] * 2
    assert isinstance(outcomes[4], bytes) if hashing else outcomes[4]["error"] == "data_len_range"
    for message, signature in zip(messages, outcomes[:2] + outcomes[5:], strict=True):
        public_key.verify(signature, message)
    (line,) = log_lines(hsm.home)
    assert line["inputs"][:2] == [data.hex() if len(data) <= 64 else f"sha256:{sha256(data).hexdigest()}" for data in inputs[:2]]
    assert line["count"] == len(line["inputs"]) == 5 + hashing
    for wrong in ({}, {"data": []}, {"data": [b"x"] * 1025, "key": "k", "purpose": "p"}, {"data": [b"x"], "key": "k"}, {"items": 7}):
        assert client.code("sign_many", **wrong) == "bad_request"
    assert client.code("sign_many", **lean("none", inputs)) == "key_not_found"


# --- who may ---


def test_nothing_but_what_is_open_to_all_without_the_pin(hsm: Any) -> None:
    hsm.login().call("generate", key="k", kind="p-256")
    stranger = hsm.connect()
    assert stranger.call("hello")["state"] == "operational"
    for op, operation in OPS.items():
        if operation.verb is not None and Role.PUBLIC not in PERMISSIONS[operation.verb]:
            assert stranger.code(op, key="k", kind="sm2") == "user_not_logged_in"
    assert stranger.code("sign_many", **lean("k", digests(1))) == "user_not_logged_in"
    assert stranger.code("public_key", key="k") == "user_not_logged_in"
    assert "keys" not in stranger.call("status")
    assert len(stranger.call("random", length=32)) == 32


@pytest.mark.parametrize("role", [Role.SO, Role.AUDITOR])
def test_each_role_has_its_own_work(hsm: Any, role: Role) -> None:
    hsm.login().call("generate", key="k", kind="p-256")
    client = hsm.login(role)
    for op, operation in OPS.items():
        if operation.verb is not None and role not in PERMISSIONS[operation.verb]:
            assert client.code(op, key="k", kind="sm2", data=b"x", wrapping="k") == "permission_denied"
    assert client.code("sign_many", **lean("k", digests(1))) == "permission_denied"
    hsm.login().call("generate", key="written", kind="p-256")
    assert {line["result"] for line in log_lines(hsm.home)} == {"permission_denied"}


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


def test_wrong_pins_are_counted_over_a_kill_and_the_so_unlocks(hsm: Any) -> None:
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

    stranger = hsm.connect()
    for _ in range(10):
        assert stranger.code("login", pin="wrong pin") == "pin_incorrect"
    assert stranger.code("login", pin=hsm.pin) == "pin_locked"
    assert client.call("keys") == []  # who is in, stays in
    hsm.login(Role.SO).call("set_pin", role="officer", new="a new PIN")
    stranger.call("login", pin="a new PIN")


def test_a_failed_login_changes_nothing_for_who_is_in(hsm: Any) -> None:
    client = hsm.login()
    assert client.code("login", pin="wrong pin", role="so") == "pin_incorrect"
    assert client.code("login", pin="wrong pin", partition="none") == "slot_id_invalid"
    assert client.code("login", pin=hsm.pin, role="king") == "user_type_invalid"
    assert client.call("status")["role"] == "officer"
    client.call("login", pin=pin_of(hsm.home, Role.SO), role="so")
    assert client.code("keys") == "permission_denied"
    client.call("logout")
    assert client.code("keys") == "user_not_logged_in"


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


# --- the log ---


def test_the_log_has_every_signature_in_one_chain(hsm: Any) -> None:
    client, other = hsm.login(), hsm.login()
    for kind in ("p-256", "sm2", "ed25519"):
        client.call("generate", key=kind, kind=kind)
    expected = []
    for number, kind in enumerate(("p-256", "sm2", "p-256", "sm2")):
        inputs = digests(70, 100 * number)
        (client if number % 2 else other).send("sign_many", **(lean(kind, inputs) if number < 2 else {"items": items(kind, inputs)}))
        expected += [(kind, data.hex()) for data in inputs]
    for single in digests(50, 1000):
        client.send("sign_many", **lean("p-256", [single]))
        expected.append(("p-256", single.hex()))
    answers = [client.receive() for _ in range(52)] + [other.receive() for _ in range(2)]
    assert all(type(outcome) is bytes or "signature" in outcome for answer in answers for outcome in answer["ok"])
    client.sign("ed25519", b"m" * 1000, "crl")

    lines = log_lines(hsm.home)
    assert sorted((line["key"], data) for line in lines[:-1] for data in line["inputs"]) == sorted(expected)
    assert len(lines) < 40
    assert (lines[-1]["purpose"], lines[-1]["inputs"]) == ("crl", ["sha256:" + sha256(b"m" * 1000).hexdigest()])
    head = client.call("log_head")
    verdict = verify(hsm.home)
    assert (verdict.flaw, verdict.last, verdict.head, head["hash"]) == (None, head["seq"], head["digest"], "sha256")


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
        assert line["sha256"] == sha256(b"".join(sha256(next(inputs)).digest() for _ in range(line["count"]))).hexdigest()

    assert "signature" in client.sign("fast", b"\x05" * 32, "ocsp")
    assert hsm.stop() == 0
    assert log_lines(hsm.home)[-1]["sha256"] == sha256(sha256(b"\x05" * 32).digest()).hexdigest()
    assert (verify(hsm.home).flaw, verify(hsm.home).unsigned) == (None, 0)


def test_no_signature_is_out_that_the_log_lacks_when_it_is_killed(hsm: Any) -> None:
    client = hsm.login()
    client.call("generate", key="k", kind="p-256")
    inputs = dict(enumerate(digests(1000), client._number + 1))
    for data in inputs.values():
        client.send("sign_many", **lean("k", [data]))
    answered = {client.receive()["id"] for _ in range(200)}
    hsm.process.send_signal(signal.SIGKILL)
    with contextlib.suppress(ConnectionResetError):
        while True:
            answered.add(client.receive()["id"])
    hsm.process.communicate()
    assert verify(hsm.home).ok
    logged = set(inputs_of((hsm.start(), log_lines(hsm.home))[1]))
    assert {inputs[number].hex() for number in answered} <= logged
    assert len(answered) >= 200
    assert hsm.stop() == 0
    assert verify(hsm.home, [manufacturer(hsm.home)]).ok


def manufacturer(home: Path) -> bytes:
    """What the device's manufacturer gave out: its certificate."""
    ((_, octets),) = pem.decode((home / "manufacturer.pem").read_bytes())
    return octets


def test_without_room_for_the_log_nothing_is_signed_until_there_is(hsm: Any) -> None:
    client = hsm.login()
    client.call("generate", key="k", kind="p-256")
    assert "signature" in client.sign("k")
    resource.prlimit(hsm.process.pid, resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))
    outcomes = client.call("sign_many", **lean("k", digests(3)))
    assert {outcome["error"] for outcome in outcomes} == {"storage"}
    resource.prlimit(hsm.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert "signature" in client.sign("k")
    assert len(log_lines(hsm.home)) == 2
    assert verify(hsm.home).ok


def test_when_nobody_reads_the_log_keys_are_not_used(hsm: Any) -> None:
    client, auditor = hsm.login(), hsm.login(Role.AUDITOR)
    client.call("generate", key="k", kind="p-256")
    head = auditor.call("log_head")["seq"]
    auditor.call("force_audit", limit=head + 5)
    while "signature" in (outcome := client.sign("k")):
        pass
    assert outcome["error"] == "log_full"
    assert client.code("generate", key="more", kind="p-256") == "log_full"
    hsm.kill()
    hsm.start()
    client, auditor = hsm.login(), hsm.login(Role.AUDITOR)  # logging in and reading go on
    assert client.sign("k")["error"] == "log_full"
    lines = auditor.call("audit_read", after=0)
    read = [json.loads(line)["seq"] for line in lines]
    assert read == list(range(1, len(read) + 1))
    assert auditor.call("audit_read", after=3, limit=2) == lines[3:5]
    assert auditor.call("audit_ack", seq=read[-1])["acknowledged"] == read[-1]
    assert auditor.code("audit_ack", seq=10**6) == "bad_request"
    assert "signature" in client.sign("k")
    auditor.call("force_audit")
    assert hsm.restart().call("status")["force_audit"] is None


# --- its life ---


def test_it_finishes_what_is_running_when_asked_to_end(hsm: Any) -> None:
    client = hsm.login()
    client.call("generate", key="k", kind="sm2")
    numbers = [client.send("sign_many", **lean("k", digests(64))) for _ in range(8)]
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
QUICK = st.sampled_from(["hello", "status", "keys", "attributes", "sign_many", "generate", "destroy", "log_head", "digest", "nonsense"])
ITEMS = st.lists(st.one_of(VALUES, st.fixed_dictionaries({"key": VALUES, "data": VALUES, "purpose": VALUES})), max_size=4)
REQUESTS = st.fixed_dictionaries(
    {"id": st.one_of(st.integers(0, 2**63 - 1), VALUES), "op": st.one_of(QUICK, VALUES)},
    optional={"items": st.one_of(ITEMS, VALUES)} | dict.fromkeys(("key", "kind", "data", "purpose", "attributes", "hash"), VALUES),
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
        framed(cbor2.dumps({"id": 1, "op": "sign_many", **lean("k", [b""] * 1025)})),
        framed(cbor2.dumps({"id": 1, "op": "random", "length": 1 << 40})),
        framed(cbor2.dumps({"id": 1, "op": "generate", "key": "x", "kind": "p-256", "attributes": {"sensitive": {}}})),
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


def test_connections_beyond_the_limit_are_closed_and_the_others_go_on(hsm: Any) -> None:
    bystander = hsm.login()
    bystander.call("generate", key="k", kind="p-256")
    crowd = []
    closed = 0
    try:
        for _ in range(600):
            crowd.append(one := socket.socket(socket.AF_UNIX))
            one.connect(str(hsm.home / "native.sock"))  # waits while the queue is full
        hello = cbor2.dumps({"id": 1, "op": "hello"})
        for one in crowd:
            with contextlib.suppress(ConnectionError):
                one.sendall(len(hello).to_bytes(4) + hello)
                closed += one.recv(4) == b""
                continue
            closed += 1
        assert closed == 600 - 511
        assert "signature" in bystander.sign("k")
    finally:
        for one in crowd:
            one.close()
    while True:
        try:
            hsm.login()
            break
        except ConnectionError:  # it has not noticed yet that they are gone
            continue
