"""Enrol and renew, in two phases, from whatever an earlier run that was cut off left behind.

    stage ── ask ── check ── store ── try ── commit ── tidy

Every step begins by looking at what is on disk and is safe to repeat: a key is made once and asked for until it is answered, under one
idempotency key; an answer that is stored is not asked for again; the old pair stays current until the one rename in ``Folder.commit``.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from enroll.device.clock import Clock
from enroll.device.credential import (
    Credential,
    check_answer,
    find_path,
    grown_trust,
    load_certificates,
    load_credential,
    self_signed,
    to_pem,
)
from enroll.device.est import EstClient, Proof
from enroll.device.failpoint import reached
from enroll.device.folder import ENROLL, REENROLL, Folder, Request, Version
from enroll.device.log import Log
from enroll.device.schedule import Renewal, renew_at
from enroll.device.trust import establish, token_pin
from pkix.algorithms import PublicKey
from pkix.certificate import Certificate
from pkix.csr import build_csr
from pkix.errors import IronrootError, NotFound, NotValid, Refused, Unauthenticated
from pkix.name import Name, name
from pkix.privatekey import generate, load_private_key

_DAY = timedelta(days=1)


class Agent:
    """One device identity in one state folder. Whoever calls a method that writes holds ``folder.lock()``.

    Args:
        clock: one that has been running, for a process that stays up.

    Raises:
        NotFound: nothing was ever set up in the folder.
    """

    def __init__(self, folder: Folder, log: Log, clock: Clock | None = None) -> None:
        settings = folder.settings
        if settings is None:
            raise NotFound(f"nothing is set up in {folder.path}; begin with `ironroot-device up`")
        self.folder, self.settings, self._log = folder, settings, log
        self.clock = clock or Clock()
        self.clock.learn(settings.time)
        current = self.credential()
        if current is not None:
            self.clock.learn(current.certificate.not_before)

    # -- what there is

    def credential(self) -> Credential | None:
        """The pair in use, None before the first enrolment."""
        version = self.folder.current
        return None if version is None else _credential(version)

    @property
    def enrolling(self) -> bool:
        """Whether an enrolment was begun (or nothing was ever enrolled) and is to be carried on."""
        request = self.folder.next.request if self.folder.next else None
        return self.folder.current is None or self.folder.token is not None or (request is not None and request.operation == ENROLL)

    def renewal_due(self) -> datetime:
        """When the renewal of the current certificate begins. Raises NotFound if there is none."""
        current = self.credential()
        if current is None:
            raise NotFound(f"no certificate in {self.folder.path} yet; begin with `ironroot-device up`")
        return self.renewal_of(current)

    def renewal_of(self, current: Credential) -> datetime:
        """When the renewal of this pair, one of the folder's, begins: as the server said when it issued it."""
        return renew_at(current.certificate, self.settings.serial, Version(current.certificate_file.parent).renewal)

    @property
    def renewing(self) -> bool:
        """Whether it is time to renew, or a renewal was begun. Raises NotFound as ``renewal_due``."""
        return self.folder.next is not None or self.clock.now() >= self.renewal_due()

    # -- what is done

    def enroll(self) -> None:
        """Get a certificate with the token or IDevID that is at hand, or carry on where an earlier run was cut off.

        Raises:
            NotFound: there is neither token nor IDevID.
            Unauthenticated, Refused: the server's final no; a token is then forgotten.
            Everything that ``EstClient.enroll`` raises.
        """
        self.tidy()
        try:
            self._carry_out(ENROLL, self._proof_of_origin)
        except (Unauthenticated, Refused):
            self.folder.forget_token()
            raise

    def renew(self) -> None:
        """Replace the current certificate by one for a new key, two-phase. If it expired and is refused: with the IDevID.

        Raises:
            NotFound: there is nothing to renew.
            Everything that ``EstClient.enroll`` raises.
        """
        self.tidy()
        current = self.credential()
        if current is None:
            raise NotFound(f"no certificate in {self.folder.path} to renew; begin with `ironroot-device up`")
        try:
            self._carry_out(REENROLL, lambda: self._shown(current))
        except (Unauthenticated, Refused) as refusal:
            if self.settings.idevid is None or not current.expired(self.clock.now()):
                raise
            self._log.event("renewal-refused", f"the expired certificate is not taken, using the IDevID: {refusal}")
            self.enroll()

    def tidy(self) -> str | None:
        """Finish what follows a swap, if a run was cut off there. Returns the operation that is finished by this, if any."""
        current = self.folder.current
        request = current.request if current else None
        if current is None or request is None:
            return None
        if request.operation == ENROLL:
            self.folder.forget_token()
        if _credential(current).tls_kind:  # the server took it in TLS before the swap; an SM2 pair has only been checked here
            self.folder.discard_previous()
        self.folder.sweep()
        current.settle()
        return request.operation

    # -- how

    def _carry_out(self, operation: str, proof: Callable[[], Proof]) -> None:
        settings = self.settings
        pin = token_pin(self.folder.token) if self.folder.token else settings.ca_sha256
        client = EstClient(settings.url, settings.fleet, establish(self.folder, settings.url, pin, self._log), self.clock)
        version, request = self._staged(operation)
        if not version.answered:
            self._ask(client, version, request, proof())
        with self._expendable(operation, NotValid):
            fresh = _checked(version, self.clock.now())
        if fresh.tls_kind:
            with self._expendable(operation, Unauthenticated, Refused):
                client.try_out(fresh)
        reached("tried")
        self.folder.commit()
        self._remember_time()
        self.tidy()

    def _staged(self, operation: str) -> tuple[Version, Request]:
        """``next`` for this operation and identity: the one that is there if it fits, else a new one."""
        settings, version = self.settings, self.folder.next
        request = version.request if version else None
        wanted = (operation, settings.fleet, settings.serial, str(settings.algorithm))
        if version and request and (request.operation, request.fleet, request.serial, request.algorithm) == wanted:
            return version, request
        if version:
            self.folder.discard_next()
        key, current = generate(settings.algorithm), self.credential()
        if operation == REENROLL and current is not None:
            csr = build_csr(key, current.certificate.subject, current.certificate.names)
        else:
            csr = build_csr(key, _subject(settings.serial))
        request = Request(*wanted, idempotency_key=secrets.token_hex(32))
        return self.folder.stage(key.to_pem(), csr, request), request

    def _ask(self, client: EstClient, version: Version, request: Request, proof: Proof) -> None:
        offered = client.cacerts()
        csr = version.file("device.csr").read_bytes()
        key = load_private_key(version.file("device.key").read_bytes()).public_key
        answer, renewal = client.enroll(request.operation, csr, request.idempotency_key, proof)
        with self._expendable(request.operation, NotValid):
            self._accept(version, request, key, answer, offered, renewal)

    def _accept(
        self,
        version: Version,
        request: Request,
        key: PublicKey,
        answer: Sequence[Certificate],
        offered: Sequence[Certificate],
        renewal: Renewal,
    ) -> None:
        """Believe an answer, or not: for our key and name, and leading to the roots we know (at enrolment: those of cacerts)."""
        current = self.credential() if request.operation == REENROLL else None
        leaf = check_answer(answer, key, request.serial, current.certificate if current else None)
        if current is None:
            roots = [certificate for certificate in offered if self_signed(certificate)]
        else:
            roots = grown_trust(load_certificates(current.certificate_file.with_name("trust.pem")), offered, self.clock.now())
        chain = find_path(leaf, [*answer, *offered], roots, self.clock.now())
        version.store_answer(leaf.pem, to_pem(chain), to_pem(roots), renewal)
        self._log.event("issued", f"certificate {leaf.serial:x} received", serial=f"{leaf.serial:x}", not_after=leaf.not_after.isoformat())

    @contextlib.contextmanager
    def _expendable(self, operation: str, *causes: type[IronrootError]) -> Iterator[None]:
        """A new pair that turns out useless is dropped on renewal, which can begin again; of an enrolment we must not lose the key."""
        try:
            yield
        except causes:
            if operation == REENROLL:
                self.folder.discard_next()
            raise

    def _proof_of_origin(self) -> Proof:
        token = self.folder.token
        if token:
            return Proof(basic=(self.settings.serial, token))
        if self.settings.idevid:
            certificate, key = self.settings.idevid
            return self._shown(load_credential(Path(certificate), Path(key)))
        raise NotFound("nothing to enrol with; give --token-file or --idevid to `ironroot-device up`")

    def _shown(self, credential: Credential) -> Proof:
        if credential.tls_kind and not credential.expired(self.clock.now()):
            return Proof(tls=credential)
        return Proof(cms=credential)

    def keep_time(self) -> None:
        """Where the system clock is known to be wrong, note the time once a day, or frequent reboots would put off renewal for ever."""
        known = self.settings.time
        if self.clock.behind and (known is None or self.clock.floor - known > _DAY):
            self._remember_time()

    def _remember_time(self) -> None:
        self.settings = replace(self.settings, time=self.clock.floor.replace(microsecond=0))
        self.folder.save_settings(self.settings)


def _subject(serial: str) -> Name:
    return name(("CN", serial), ("serialNumber", serial))


def _credential(version: Version) -> Credential:
    """The pair of one version, its chain from chain.pem."""
    found = load_credential(version.file("device.pem"), version.file("device.key"))
    return replace(found, chain=tuple(load_certificates(version.file("chain.pem"))))


def _checked(version: Version, now: datetime) -> Credential:
    """The new pair, after what can be tried without the server: its path to its trust.pem, a signature. Raises NotValid, Malformed."""
    fresh = _credential(version)
    find_path(fresh.certificate, fresh.chain, load_certificates(version.file("trust.pem")), now)
    fresh.key.public_key.verify(fresh.key.sign(b"ironroot-device"), b"ironroot-device")
    return fresh
