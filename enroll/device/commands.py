"""What each command does. Each returns its report for stdout and its exit code, or raises an error of ``pkix.errors``."""

from __future__ import annotations

import signal
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from enroll.device import status as device_status
from enroll.device.agent import Agent
from enroll.device.clock import Clock
from enroll.device.credential import Credential, load_certificates, load_credential, to_pem
from enroll.device.folder import REENROLL, Folder
from enroll.device.log import Log
from enroll.device.schedule import LONGEST_WAIT, Backoff, persist
from enroll.device.settings import Settings, algorithm, default_algorithm
from enroll.device.trust import token_pin
from pkix.errors import (
    Conflict,
    IronrootError,
    Malformed,
    NotFound,
    NotValid,
    Refused,
    Unauthenticated,
    Unavailable,
)

Outcome = tuple[dict[str, Any], int]
DEFAULT_WAIT = 30.0
_STDIN = "-"
_SHORTEST_TURN = 60.0
_STOPPING = frozenset((signal.SIGTERM, signal.SIGINT))
# What ends ``run`` while there is no certificate to look after. With one, every error may pass, and the certificate still serves.
_FINAL = (Unauthenticated, Refused, Malformed, Conflict, NotFound)


def up(args: Namespace, log: Log) -> Outcome:
    """Enrol, or carry on enrolling, or find that it is done already."""
    folder = Folder(args.state)
    with folder.lock():
        if _enrolled(folder, args, log):
            return _report(folder, "none")
        settings, token = _wanted(folder, args)
        folder.save_settings(settings)
        if token:
            folder.save_token(token)
        agent = Agent(folder, log)
        _persist(agent.enroll, args, log)
        return _report(folder, "enrolled")


def renew(args: Namespace, log: Log) -> Outcome:
    """Replace the certificate and its key, or finish a renewal that was cut off."""
    folder = Folder(args.state)
    _must_exist(folder)
    with folder.lock():
        agent = Agent(folder, log)
        finished = agent.tidy()
        if folder.current and agent.enrolling:
            raise Conflict(f"an enrolment is unfinished; carry on with `ironroot-device up --state {folder.path}`")
        if finished == REENROLL:
            return _report(folder, "renewed")
        if args.if_needed and not agent.renewing:
            return _report(folder, "none")
        _persist(agent.renew, args, log)
        return _report(folder, "renewed")


def status(args: Namespace, _log: Log) -> Outcome:
    """What there is, without asking anybody."""
    return device_status.report(Folder(args.state))


class _Stop(BaseException):
    """SIGTERM or SIGINT came. Raised where the program stands: everything on disk is safe against a kill anyway."""


def run(args: Namespace, log: Log) -> Outcome:
    """Stay up: carry on an enrolment, renew in the window, try again after failures. Ends by SIGTERM, or if it cannot ever succeed."""
    folder = Folder(args.state)
    _must_exist(folder)
    stopping = False

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        nonlocal stopping
        stopping = True  # should the exception be lost, in a destructor say
        raise _Stop

    kept = {number: signal.signal(number, stop) for number in _STOPPING}
    try:
        log.event("started", f"looking after {folder.path}")
        backoff, told, clock = Backoff(), "", Clock()
        while not stopping:
            try:
                wait, renew_at = _turn(folder, log, clock)
                backoff = Backoff()
                if renew_at != told:
                    told = renew_at
                    log.event("waiting", f"next renewal at {renew_at}", renew_at=renew_at)
            except IronrootError as reason:
                if folder.current is None and isinstance(reason, _FINAL) and reason.retry_after is None:
                    raise
                wait = backoff.next(reason.retry_after)
                _tell(log, reason, wait)
            if _signalled(wait):
                break
    except _Stop:
        pass
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    log.event("stopped", "asked to stop")
    return {}, 0


COMMANDS: dict[str, Callable[[Namespace, Log], Outcome]] = {"up": up, "renew": renew, "run": run, "status": status}


def _signalled(seconds: float) -> bool:
    """Sleep. Whether a signal to stop ended it; without a handler, which could run at a moment when it must not take a lock."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        return signal.sigtimedwait(_STOPPING, seconds) is not None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _turn(folder: Folder, log: Log, clock: Clock) -> tuple[float, str]:
    """Do what is due. Returns the seconds until the next look and the time of the renewal.

    An hour at most, since clocks are set; a minute at least, since a server may issue what is due at once.
    """
    with folder.lock():
        agent = Agent(folder, log, clock)
        agent.tidy()
        if agent.enrolling:
            agent.enroll()
            log.event("enrolled", f"{agent.settings.serial} is enrolled in {agent.settings.fleet}")
        elif agent.renewing:
            agent.renew()
            log.event("renewed", f"{agent.settings.serial} has a new key and certificate")
        agent.keep_time()
        due = agent.renewal_due()
        wait = (due - agent.clock.now()).total_seconds()
        return min(max(wait, _SHORTEST_TURN), LONGEST_WAIT), due.isoformat()


def _enrolled(folder: Folder, args: Namespace, log: Log) -> bool:
    """Whether ``up`` has nothing to do: this identity has a certificate, not expired, and no other was asked for. Raises Conflict."""
    if folder.current is None or _known(folder, args) is None:
        return False
    agent = Agent(folder, log)
    agent.tidy()
    credential = agent.credential()
    fleet, serial = args.fleet or agent.settings.fleet, args.serial or agent.settings.serial
    if (fleet, serial) != agent.settings.identity:
        held = " in ".join(reversed(agent.settings.identity))
        raise Conflict(f"{folder.path} belongs to {held}; give another device or fleet its own --state")
    expired = credential is None or credential.expired(agent.clock.now())
    return not (expired or args.replace or agent.enrolling)


def _wanted(folder: Folder, args: Namespace) -> tuple[Settings, str | None]:
    """Settings and token from the options, else from an earlier run. Pins what --trust names.

    Raises:
        Malformed: an option is missing or wrong. NotFound: a file is. NotValid: --trust and the pin contradict each other.
    """
    known = _known(folder, args)
    token = _token(args)
    idevid = load_credential(*args.idevid) if args.idevid else None
    url, fleet = args.url or (known and known.url), args.fleet or (known and known.fleet)
    serial = args.serial or (known and known.serial) or _serial_number(idevid)
    if not (url and fleet and serial):
        raise Malformed("the first time, `up` needs --url, --fleet, --serial and one of --token-file, --token, --idevid")
    pin = _pin(args, token)
    same_fleet = known is not None and known.fleet == fleet
    settings = Settings(
        url=url,
        fleet=fleet,
        serial=serial,
        algorithm=algorithm(args.algorithm) if args.algorithm else known.algorithm if known and same_fleet else default_algorithm(fleet),
        idevid=(str(args.idevid[0].absolute()), str(args.idevid[1].absolute())) if args.idevid else known.idevid if known else None,
        ca_sha256=None if token or args.trust else pin or (known and known.ca_sha256) or None,
        time=known.time if known else None,
    )
    if args.trust:
        roots = load_certificates(args.trust)
        if not roots or (pin and pin not in {root.sha256.hex() for root in roots}):
            raise NotValid(f"{args.trust} does not hold the root certificate that the token or --ca-sha256 names")
        folder.save_tls_trust(to_pem(roots))
    if idevid:
        folder.forget_token()
    return settings, token


def _known(folder: Folder, args: Namespace) -> Settings | None:
    try:
        return folder.settings
    except Malformed:
        if args.url and args.fleet and args.serial:
            return None  # damaged, and everything is said anew
        raise


def _token(args: Namespace) -> str | None:
    """The token from the option, a file or stdin (``-``), checked for its form; never in an error text."""
    if args.token_file or args.token == _STDIN:
        source: Path | None = args.token_file
        if source is None or str(source) == _STDIN:
            text = sys.stdin.read(4096)
        else:
            try:
                text = source.read_text("ascii", errors="replace")[:4096]
            except FileNotFoundError:
                raise NotFound(f"there is no file {source}") from None
            except OSError as error:
                raise Unavailable(f"{source} cannot be read: {error.strerror}") from None
    else:
        text = args.token or ""
    token = text.strip()
    if token:
        token_pin(token)
    elif args.token is not None or args.token_file:
        raise Malformed("the token is empty")
    return token or None


def _pin(args: Namespace, token: str | None) -> str | None:
    named = args.ca_sha256.lower().replace(":", "") if args.ca_sha256 else None
    pin = token_pin(token) if token else named
    if named is not None and named != pin:
        raise Malformed("--ca-sha256 and the token name different CAs; one of them is not for this server")
    return pin


def _serial_number(idevid: Credential | None) -> str | None:
    """The subject's serialNumber (IEEE 802.1AR 8.6), where an IDevID names its device."""
    return next(iter(idevid.certificate.subject.get("serialNumber")), None) if idevid else None


def _must_exist(folder: Folder) -> None:
    if folder.settings is None:
        raise NotFound(f"nothing is set up in {folder.path}; begin with `ironroot-device up`")


def _persist(action: Callable[[], None], args: Namespace, log: Log) -> None:
    seconds = DEFAULT_WAIT if args.wait is None else args.wait
    persist(action, seconds=seconds, approval=args.wait is not None, tell=lambda reason, wait: _tell(log, reason, wait))


def _tell(log: Log, reason: IronrootError, wait: float) -> None:
    log.event("retry", f"{str(reason).rstrip('.')}; trying again in {wait:.0f} s", code=reason.code, seconds=round(wait, 1))


def _report(folder: Folder, action: str) -> Outcome:
    """The status after the deed, with ``action``: ``none``, ``enrolled`` or ``renewed``. The deed succeeded, so exit 0."""
    found, _ = device_status.report(folder)
    return {"action": action, **found}, 0
