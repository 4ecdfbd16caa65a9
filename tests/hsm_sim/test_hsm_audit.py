"""The audit log: one chain over every crash, and no change to it that ``verify`` does not find."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import stat
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hsm_sim import audit, chain
from hsm_sim.audit import AuditLog, AuditSigner, Event, SyncFailed, verify
from hsm_sim.chain import Body, Chain, digester, rotated
from hsm_sim.errors import Code, Rejected
from hsm_sim.roles import Caller, Role
from pkix import extensions
from pkix.algorithms import SIGNATURES, KeyKind
from pkix.certificate import assemble, build_tbs
from pkix.errors import Fatal, NotFound
from pkix.name import name
from pkix.privatekey import PrivateKey, generate

NOW = datetime(2026, 11, 23, 20, 15, tzinfo=UTC)
OFFICER = Caller("native", 3, "ironroot", Role.OFFICER)


def certificate(subject: str, key: PrivateKey, issuer: str, issuer_key: PrivateKey, *, ca: bool) -> bytes:
    algorithm = SIGNATURES[issuer_key.kind]
    tbs = build_tbs(
        serial=7,
        issuer=name(("CN", issuer)),
        subject=name(("CN", subject)),
        not_before=NOW,
        not_after=NOW + timedelta(days=1),
        public_key=key.public_key,
        signature=algorithm,
        extensions=[extensions.basic_constraints(ca=ca)],
    )
    return assemble(tbs, algorithm, issuer_key.sign(tbs))


class Maker:
    """A manufacturer, and the audit key of a device of his."""

    def __init__(self, kind: KeyKind = KeyKind.ED25519) -> None:
        self.root, self.key = generate(kind), generate(kind)
        self.certificate = certificate("maker", self.root, "maker", self.root, ca=True)
        self.signer = AuditSigner(self.key.sign, (certificate("device", self.key, "maker", self.root, ca=False), self.certificate))


MAKER = Maker()
Scene = Callable[[AuditLog], Awaitable[None]]


def run(home: Path, scene: Scene, *, algorithm: str = "sha256", signer: AuditSigner | None = MAKER.signer) -> None:
    """One life of the log."""

    async def life() -> None:
        log = AuditLog(home, lambda: NOW, algorithm=algorithm, signer=signer)
        try:
            await scene(log)
        finally:
            await log.close()

    asyncio.run(life())


async def some(log: AuditLog, count: int = 4) -> None:
    for number in range(count):
        await log.write(Event("sign", OFFICER, key=f"key {number}", mech="CKM_ECDSA", purpose="certificate", inputs=[bytes([number]) * 32]))


def lines(home: Path) -> list[dict[str, object]]:
    """All lines, those put aside first, after checking numbers and digests by hand."""
    previous, found = "0" * 64, []
    for number, line in enumerate(
        (line for file in chain.chain_files(home / "audit.log") for line in file.read_bytes().splitlines() if line), 1
    ):
        members = json.loads(line)
        assert (members["seq"], members["prev"]) == (number, previous)
        previous = sha256(line).hexdigest()
        found.append(members)
    return found


# --- what is written ---


def test_it_says_what_was_done_by_whom(tmp_path: Path) -> None:
    session = Caller("pkcs11", 4, "plant 2 \u00fc\n", Role.USER, session=9)

    async def scene(log: AuditLog) -> None:
        await log.write(Event("sign", OFFICER, key="k", mech="CKM_ECDSA", purpose="certificate", inputs=[b"\x01" * 32, b"m" * 65]))
        await log.write(Event("generate", session, key='"k" {x}', result="key_exists", more={"counter": 7}))

    run(tmp_path, scene)
    start, sign, generate_, stop = lines(tmp_path)
    assert (start["op"], start["hash"], start["boot"]) == ("start", "sha256", 1)
    assert {member: sign[member] for member in sign if member not in ("seq", "prev")} == {
        "time": "2026-11-23T20:15:00.000000Z",
        "boot": 1,
        "op": "sign",
        "door": "native",
        "conn": 3,
        "partition": "ironroot",
        "role": "officer",
        "key": "k",
        "mech": "CKM_ECDSA",
        "purpose": "certificate",
        "count": 2,
        "inputs": ["01" * 32, "sha256:" + sha256(b"m" * 65).hexdigest()],
        "result": "ok",
    }
    assert (generate_["session"], generate_["partition"], generate_["key"]) == (9, "plant 2 \u00fc\n", '"k" {x}')
    assert (generate_["result"], generate_["counter"]) == ("key_exists", 7)
    assert stop["op"] == "stop"
    verdict = verify(tmp_path, [MAKER.certificate])
    assert (verdict.flaw, verdict.first, verdict.last, verdict.checkpoints, verdict.unsigned) == (None, 1, 4, 2, 0)
    assert verdict.signed_by == sha256(MAKER.signer.chain[0]).hexdigest()


def test_what_is_asked_for_at_once_shares_a_sync_and_signatures_share_a_line(tmp_path: Path) -> None:
    other = Caller("native", 4, "ironroot", Role.OFFICER)

    async def scene(log: AuditLog) -> None:
        heard: list[object] = []
        for number in range(3):
            for caller in (OFFICER, other):
                log.signed(caller, "k", "CKM_ECDSA", "certificate", [bytes([number]) * 32] * 2, heard.append)
        log.signed(OFFICER, "k", "CKM_ECDSA", "crl", [b"c" * 32], heard.append)
        await log.write(Event("destroy", OFFICER, key="old"))
        assert heard == [None] * 7

    run(tmp_path, scene)
    said = [(line["op"], line.get("conn"), line.get("purpose"), line.get("count")) for line in lines(tmp_path)[1:-1]]
    assert said == [("sign", 3, "certificate", 6), ("sign", 4, "certificate", 6), ("sign", 3, "crl", 1), ("destroy", 3, None, None)]


def test_ocsp_and_refusals_are_summed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_SOON", 100)

    async def scene(log: AuditLog) -> None:
        for number in range(300):
            assert log.sum_up(OFFICER, "ab"[number % 2], [b"%d" % number]) is None
            log.write_soon(Event("login", OFFICER, result="pin_incorrect"))
        for number in range(3000):
            log.write_soon(Event("sign", OFFICER, key=f"{number}", result="key_not_found"))
        await log.write(Event("lock", OFFICER))

    run(tmp_path, scene)
    _, ocsp, login, *rest = lines(tmp_path)
    assert (ocsp["purpose"], ocsp["count"], ocsp["keys"]) == ("ocsp", 300, {"a": 150, "b": 150})
    assert ocsp["sha256"] == sha256(b"".join(sha256(b"%d" % number).digest() for number in range(300))).hexdigest()
    assert (login["op"], login["result"], login["times"]) == ("login", "pin_incorrect", 300)
    assert len(rest) == 99 + 1 + 2  # as many as are named, the others counted; what was waited for; the end
    assert rest[-3] == rest[-3] | {"op": "others", "times": 2901}


@pytest.mark.parametrize("kind", [KeyKind.ED25519, KeyKind.SM2])
def test_checkpoints_by_lines_and_by_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: KeyKind) -> None:
    maker = Maker(kind)
    monkeypatch.setattr(audit, "CHECKPOINT_LINES", 3)
    algorithm = "sm3" if kind is KeyKind.SM2 else "sha256"

    async def scene(log: AuditLog) -> None:
        await some(log, 7)
        monkeypatch.setattr(audit, "CHECKPOINT_SECONDS", 0.0)
        await some(log, 1)

    run(tmp_path, scene, algorithm=algorithm, signer=maker.signer)
    ops = [json.loads(line)["op"] for line in (tmp_path / "audit.log").read_bytes().splitlines()]
    assert ops == [
        "start",
        "sign",
        "sign",
        "sign",
        "checkpoint",
        "sign",
        "sign",
        "sign",
        "checkpoint",
        "sign",
        "sign",
        "checkpoint",
        "stop",
    ]
    verdict = verify(tmp_path, [maker.certificate])
    assert (verdict.flaw, verdict.checkpoints) == (None, 5)
    assert (verify(tmp_path, [MAKER.certificate]).flaw or verdict)[3] == "untrusted"


def test_the_auditor_reads_on_from_any_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "ROTATE", 3000)
    monkeypatch.setattr(chain, "_BLOCK", 700)

    async def scene(log: AuditLog) -> None:
        await some(log, 40)
        whole = [line for file in chain.chain_files(tmp_path / "audit.log") for line in file.read_text().splitlines() if line]
        assert len(rotated(tmp_path / "audit.log")) >= 2
        for after in range(len(whole) + 2):
            assert log.read(after, 10) == whole[after : after + 10]

    run(tmp_path, scene)


def test_force_audit_refuses_until_somebody_has_read(tmp_path: Path) -> None:
    async def scene(log: AuditLog) -> None:
        log.limit = 5
        await some(log, 4)  # and the line of the start
        with pytest.raises(Rejected) as caught:
            log.permit()
        assert caught.value.code is Code.LOG_FULL
        log.acknowledged = 1
        log.permit()
        await log.write(Event("login", OFFICER))  # what the auditor needs is written in any case
        with pytest.raises(Rejected):
            log.permit()
        log.limit = None
        log.permit()

    run(tmp_path, scene)


# --- disks and crashes ---


class Disk:
    """Slow while ``gate`` is shut, full while ``full``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate, self.full = threading.Event(), False
        self.gate.set()
        write_at = chain.files.write_at

        def write(descriptor: int, data: bytes, place: int) -> None:
            self.gate.wait()
            if self.full:
                os.pwrite(descriptor, data[: len(data) // 2], place)
                raise OSError(errno.ENOSPC, "full")
            write_at(descriptor, data, place)

        monkeypatch.setattr(chain.files, "write_at", write)


def test_on_a_full_disk_nothing_is_done_and_nothing_that_was_done_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    monkeypatch.setattr(audit, "SOON", 0.01)

    async def scene(log: AuditLog) -> None:
        await some(log, 1)
        disk.full, signed = True, 0
        while (refusal := log.sum_up(OFFICER, "k", [b"x"])) is None:
            signed += 1
            await asyncio.sleep(0.001)
        assert refusal.code is Code.STORAGE
        log.write_soon(Event("login", OFFICER, result="pin_incorrect"))
        with pytest.raises(Rejected, match="nothing was done") as caught:
            await some(log, 1)
        assert caught.value.code is Code.STORAGE
        disk.full = False
        while log.sum_up(OFFICER, "k", [b"x"]) is not None:
            await asyncio.sleep(0.001)
        await some(log, 1)
        found = lines(tmp_path)
        assert sum(int(line["count"]) for line in found if line.get("purpose") == "ocsp") == signed + 1
        assert [line["op"] for line in found if line.get("purpose") != "ocsp"] == ["start", "sign", "login", "sign"]

    run(tmp_path, scene)
    assert verify(tmp_path).ok


def test_an_answer_waits_for_its_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)

    async def scene(log: AuditLog) -> None:
        await some(log, 1)
        disk.gate.clear()
        first = asyncio.ensure_future(log.write(Event("a", OFFICER)))
        await asyncio.sleep(0.01)
        rest = [asyncio.ensure_future(log.write(Event("b", OFFICER))) for _ in range(3)]
        await asyncio.sleep(0.01)
        rest[0].cancel()  # who gives up takes nobody with him
        assert not first.done()
        assert not rest[1].done()
        disk.gate.set()
        await asyncio.gather(first, *rest[1:])

    run(tmp_path, scene)
    assert [line["op"] for line in lines(tmp_path)] == ["start", "sign", "a", "b", "b", "b", "stop"]


def test_a_failed_sync_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "I/O error")

    async def life() -> None:
        failures: list[Exception] = []
        log = AuditLog(tmp_path, lambda: NOW, signer=MAKER.signer, on_failure=failures.append)
        await some(log, 1)
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", fail)
            with pytest.raises(Rejected, match="nothing was done"):
                await some(log, 1)
        with pytest.raises(Rejected):  # the disk's later word is not taken
            await some(log, 1)
        assert [type(failure) for failure in failures] == [SyncFailed] * 2
        assert log.head.seq == 2
        with pytest.raises(SyncFailed):
            await log.close()

    asyncio.run(life())


def test_after_a_crash_anywhere_it_goes_on_from_the_last_whole_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "GROW", 10)
    run(tmp_path, some, signer=None)
    path = tmp_path / "audit.log"
    whole = path.read_bytes()
    last = len(whole) - len(whole.splitlines(keepends=True)[-1])
    for cut in (*range(0, last, 17), *range(last - 5, len(whole) + 1)):
        path.write_bytes(whole[:cut])
        log = Chain(path, "sha256")
        assert log.head.seq == whole[:cut].count(b"\n")
        log.append(*log.lines([Body('"op":"start","version":1,"hash":"sha256","chain":[]')], "t", 2))
        log.close()
        assert len(lines(tmp_path)) == whole[:cut].count(b"\n") + 1
        assert verify(tmp_path).ok


def test_starts_are_counted_and_each_signs_what_was_before(tmp_path: Path) -> None:
    for _ in range(3):
        run(tmp_path, some)
    assert [line["boot"] for line in lines(tmp_path) if line["op"] == "start"] == [1, 2, 3]
    assert verify(tmp_path, [MAKER.certificate]).checkpoints == 6


def test_zeros_of_a_lost_batch_are_put_aside(tmp_path: Path) -> None:
    run(tmp_path, some, signer=None)
    path = tmp_path / "audit.log"
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(100_000) + b"\n" + bytes(10))
    Chain(path, "sha256").close()
    assert path.read_bytes() == whole
    assert (tmp_path / "audit.log.torn").read_bytes() == bytes(100_000) + b"\n" + bytes(10)


def test_a_log_that_is_no_log_is_not_cut_away(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.write_bytes(b"somebody else's file\n" * 300_000)
    with pytest.raises(Fatal, match="audit log"):
        Chain(path, "sha256")
    assert path.read_bytes() == b"somebody else's file\n" * 300_000


def test_a_full_file_is_put_aside_and_the_chain_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "ROTATE", 2000)
    for _ in range(4):
        run(tmp_path, lambda log: some(log, 12))
    files = [*rotated(tmp_path / "audit.log"), tmp_path / "audit.log"]
    assert len(files) >= 6
    assert len([line for line in lines(tmp_path) if line["op"] == "sign"]) == 48
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        first = json.loads(file.read_bytes().splitlines()[0])
        assert first["op"] in ("start", "continue")
        assert file.name in ("audit.log", f"audit.log.{first['seq']}")
    assert verify(tmp_path, [MAKER.certificate]).ok
    files[0].unlink()  # moved elsewhere: whole from there on
    verdict = verify(tmp_path, [MAKER.certificate])
    assert (verdict.flaw, verdict.first) == (None, int(files[1].suffix[1:]))
    files[2].unlink()
    assert (verify(tmp_path).flaw or verdict)[3] == "missing"


@pytest.mark.parametrize("left", [None, b"", b'{"seq":7,"time'])
def test_a_crash_after_it_was_put_aside_loses_no_head(tmp_path: Path, left: bytes | None) -> None:
    run(tmp_path, some)
    path = tmp_path / "audit.log"
    whole = path.read_bytes()
    path.rename(tmp_path / "audit.log.1")
    if left is not None:
        path.write_bytes(left)
    log = Chain(path, "sha256")
    assert log.head == (6, sha256(whole.splitlines()[-1]).hexdigest())
    log.close()
    run(tmp_path, some)
    assert verify(tmp_path, [MAKER.certificate]).last == len(lines(tmp_path)) == 12


def test_what_was_put_aside_is_never_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "ROTATE", 10)

    async def scene(log: AuditLog) -> None:
        await some(log, 1)
        (tmp_path / "audit.log.1").write_bytes(b"somebody else's\n")
        with pytest.raises(Rejected, match="nothing was done"):
            await some(log, 1)
        (tmp_path / "audit.log.1").unlink()
        await some(log, 1)

    run(tmp_path, scene)
    assert verify(tmp_path).ok


@pytest.mark.parametrize("damaged", ["audit.log", "audit.log.1"])
def test_a_log_whose_beginning_or_forerunner_is_damaged_is_named(tmp_path: Path, damaged: str) -> None:
    run(tmp_path, some, signer=None)
    whole = (tmp_path / "audit.log").read_bytes()
    (tmp_path / "audit.log").rename(tmp_path / damaged)
    (tmp_path / damaged).write_bytes(b"?" + whole[1:] if damaged == "audit.log" else whole[:-1])
    with pytest.raises(Fatal, match=f"{damaged} does not"):
        Chain(tmp_path / "audit.log", "sha256")


def test_a_log_that_was_cut_off_before_a_checkpoint_is_not_written_on(tmp_path: Path) -> None:
    run(tmp_path, some)
    path = tmp_path / "audit.log"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(Fatal, match="line 6 was written"):
        run(tmp_path, some)


# --- who tampers is found ---


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of two files, two starts and many checkpoints, the last line one of them."""
    home = tmp_path_factory.mktemp("sound")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(chain, "ROTATE", 6000)
        patched.setattr(audit, "CHECKPOINT_LINES", 5)
        for _ in range(2):
            run(home, lambda log: some(log, 8))
    assert len(chain.chain_files(home / "audit.log")) == 2
    return home


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_edit_of_any_octet_is_found(sound: Path, tmp_path: Path, data: st.DataObject) -> None:
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    path = data.draw(st.sampled_from(chain.chain_files(tmp_path / "audit.log")))
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    octet = data.draw(st.integers(0, 255).filter(lambda value: value != whole[place]))
    edit = data.draw(st.sampled_from(("replace", "insert", "delete")))
    path.write_bytes(whole[:place] + (b"" if edit == "delete" else bytes([octet])) + whole[place + (edit != "insert") :])
    flaw = verify(tmp_path).flaw
    assert flaw is not None
    assert flaw.file == path.name or edit != "replace" or octet == 10 or whole[place] == 10
    if edit == "replace" and octet != 10 and whole[place] != 10:
        assert flaw.line == whole[:place].count(b"\n") + 1 or flaw.what in ("truncated", "torn")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_lines_that_are_gone_moved_or_doubled_are_found(sound: Path, tmp_path: Path, data: st.DataObject) -> None:
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    path = data.draw(st.sampled_from(chain.chain_files(tmp_path / "audit.log")))
    whole = path.read_bytes().splitlines(keepends=True)
    one, other = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, len(whole) - 1).filter(lambda n: n > 0))
    match data.draw(st.sampled_from(("gone", "swapped", "doubled", "cut off"))):
        case "gone":
            changed = whole[:one] + whole[one + 1 :]
        case "swapped":
            changed = list(whole)
            changed[one], changed[other] = whole[other], whole[one]
        case "doubled":
            changed = [*whole[:one], whole[one], *whole[one:]]
        case _:
            changed = whole[:one]
    path.write_bytes(b"".join(changed))
    flaw = verify(tmp_path).flaw
    assert (flaw is None) == (changed == whole)


def forged(home: Path, edit: Callable[[list[dict[str, object]]], None], *, key: PrivateKey | None = None) -> None:
    """Somebody with the files changes lines and computes the chain afresh; with ``key`` he signs the checkpoints, too."""
    path, found = home / "audit.log", lines(home)
    edit(found)
    digest, previous, octets = digester("sha256"), "0" * 64, b""
    for number, line in enumerate(found, 1):
        line |= {"seq": number, "prev": previous}
        signature = line.pop("signature", None)
        text = chain.compact(line).encode()
        if signature is not None:
            text = chain._signed(text, key.sign) if key else text[:-1] + b',"signature":"' + str(signature).encode() + b'"}'
        previous = digest(text)
        octets += text + b"\n"
    path.write_bytes(octets)


def change(found: list[dict[str, object]]) -> None:
    found[2]["key"] = "another"


@pytest.mark.parametrize(("edit", "what"), [(change, "signature"), (lambda found: found.pop(2), "signature")])
def test_a_chain_that_was_computed_afresh_fails_at_the_next_checkpoint(tmp_path: Path, edit: Callable[..., None], what: str) -> None:
    run(tmp_path, some)
    forged(tmp_path, edit)
    flaw = verify(tmp_path).flaw
    assert flaw is not None
    assert flaw.what == what
    assert flaw.seq == len(lines(tmp_path))


def test_another_audit_key_is_not_the_manufacturers(tmp_path: Path) -> None:
    run(tmp_path, some)
    liar = Maker()

    def edit(found: list[dict[str, object]]) -> None:
        change(found)
        found[0]["chain"] = [octets.hex() for octets in liar.signer.chain]

    (tmp_path / "audit.checkpoint").unlink()
    forged(tmp_path, edit, key=liar.key)
    assert verify(tmp_path).ok  # with nothing to hold it against
    flaw = verify(tmp_path, [MAKER.certificate]).flaw
    assert flaw is not None
    assert (flaw.what, flaw.line) == ("untrusted", 1)


def test_lines_after_the_last_checkpoint_are_counted(tmp_path: Path) -> None:
    run(tmp_path, some)
    path = tmp_path / "audit.log"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    flaw = verify(tmp_path).flaw
    assert flaw is not None
    assert (flaw.what, flaw.file, flaw.line) == ("truncated", "audit.log", 5)
    (tmp_path / "audit.checkpoint").unlink()
    verdict = verify(tmp_path)
    assert (verdict.flaw, verdict.last, verdict.unsigned) == (None, 5, 4)


def test_where_there_is_no_log(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        verify(tmp_path)
