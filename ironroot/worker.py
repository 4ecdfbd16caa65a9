"""A web worker: the plain door (status) and the TLS door (enrolment and status), no CA keys.

Several workers share the two ports (SO_REUSEPORT). SIGTERM: no new connections, requests in flight finish, then the process ends.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
import ssl
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
import uvloop
from aiohttp import web

from enroll.http import EstDoor
from enroll.http import routes as est_routes
from enroll.trust import TrustFiles
from ironroot.in_flight import InFlight
from ironroot.log import configure
from ironroot.responders import Responders
from ironroot.settings import Listener, Settings
from ironroot.setup import tls_certificate
from ironroot.validator.own import mount as mount_validation
from ironroot.wire import Installation, installation
from ocsp.http import StatusDoor
from ocsp.http import routes as status_routes
from pkix.errors import Fatal, IronrootError, Unavailable

log = structlog.get_logger("worker")

_STOPPED = web.AppKey("stopped", asyncio.Event)

_SWITCH_INTERVAL = 0.0005  # the store's thread commits while the loop is busy; the default of 5 ms shows in the tail
_GARBAGE = (50_000, 20, 50)  # requests make few cycles: the default looks for them every few requests
_REFRESH = 2.0  # seconds between looks at what another process may have renewed
_STOP = 6.0  # seconds that requests in flight may take when we are told to stop
_CUT = 0.5  # seconds that the rest has to notice that it is cut off


class Tls:
    """The server's TLS context, kept current: new handshakes see a renewed certificate and newly trusted manufacturers."""

    def __init__(self, here: Installation) -> None:
        self._here = here
        self._trust = TrustFiles(here.settings.home)
        self._file = here.settings.tls / "service.pem"
        self._seen: tuple[object, ...] = ()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        # A client may show a certificate: a device's own, or the one its manufacturer put in. Whose it is and what it may is
        # decided by the EST door; TLS only checks that it chains to somebody we know, without asking for that somebody's root.
        self.context.verify_mode = ssl.CERT_OPTIONAL
        self.context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        # A resumed session carries the client's own certificate and not the rest of its chain, which an IDevID may need.
        self.context.num_tickets = 0
        self.context.options |= ssl.OP_NO_TICKET
        self.refresh()

    def refresh(self) -> None:
        """Loads what changed. Raises Unavailable where the service has no certificate yet."""
        fleets = self._here.policies.fleets.values()
        own = [a.certificate for a in self._here.authorities.values()]
        trusted = tuple(dict.fromkeys(c.der for c in (*own, *(c for fleet in fleets for c in self._trust(fleet)))))
        try:
            stamp = self._file.stat().st_mtime_ns
        except FileNotFoundError:
            raise Unavailable("The service has no TLS certificate yet; ironroot serve makes one.", retry_after=2) from None
        seen = (stamp, *trusted)
        if seen == self._seen:
            return
        self.context.load_cert_chain(self._file)
        for der in trusted:
            try:
                self.context.load_verify_locations(cadata=der)
            except ssl.SSLError as error:
                log.warning("client_ca_not_loaded", error=error.reason)
        self._seen = seen


def run(home: Path) -> None:
    """The process: until SIGTERM."""
    configure()
    sys.setswitchinterval(_SWITCH_INTERVAL)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    gc.set_threshold(*_GARBAGE)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(Settings.load(home)))
    except IronrootError as error:
        log.error("stopped", code=error.code, error=str(error))
        sys.exit(error.exit_code)


async def _run(settings: Settings) -> None:
    stopped, broken = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with installation(settings) as here:
        responders = Responders()
        await responders.refresh(here.store, here.authorities)
        tls, in_flight = Tls(here), InFlight()
        runners = [
            await _listen(settings.http, _application(here, responders, broken, in_flight, enrolment=False), None),
            await _listen(settings.https, _application(here, responders, broken, in_flight, enrolment=True), tls.context),
        ]
        refreshing = asyncio.create_task(_refresh(here, responders, tls))
        ends = [asyncio.create_task(event.wait()) for event in (stopped, broken)]
        await asyncio.wait([*ends, refreshing], return_when=asyncio.FIRST_COMPLETED)
        for site in [site for runner in runners for site in runner.sites]:
            await site.stop()
        await in_flight.over(_STOP)
        await asyncio.gather(*(runner.cleanup() for runner in runners))
        if refreshing.done():
            refreshing.result()
        if broken.is_set():
            raise Fatal("An invariant does not hold; it is in the log above. This process ends; its supervisor starts a new one.")
        for task in (*ends, refreshing):
            task.cancel()


def _application(
    here: Installation, responders: Responders, broken: asyncio.Event, in_flight: InFlight, *, enrolment: bool
) -> web.Application:
    application = web.Application(middlewares=[in_flight.middleware, _errors], client_max_size=64 * 1024)
    application[_STOPPED] = broken
    status = StatusDoor(
        store=here.store,
        signer=here.signer,
        authorities=here.authorities,
        responders=responders,
        clock=here.clock,
        lifetime=here.settings.ocsp_lifetime,
    )
    application.add_routes(status_routes(status))
    if enrolment:
        door = EstDoor(
            policies=here.policies,
            store=here.store,
            issuer=here.issuer,
            authorities=here.authorities,
            clock=here.clock,
            home=here.settings.home,
        )
        application.add_routes(est_routes(door))
    mount_validation(application, here, api=enrolment)
    application.add_routes([web.get("/livez", _alive), web.get("/readyz", _readiness(here))])
    return application


async def _listen(listener: Listener, application: web.Application, context: ssl.SSLContext | None) -> web.AppRunner:
    runner = web.AppRunner(
        application,
        access_log=None,
        handle_signals=False,
        auto_decompress=False,  # doors refuse compressed bodies; they must not cost us more than their refusal
        shutdown_timeout=_CUT,
        keepalive_timeout=75,
        max_line_size=16 * 1024,
        max_field_size=16 * 1024,
    )
    await runner.setup()
    await web.TCPSite(runner, listener.host, listener.port, ssl_context=context, reuse_port=True, backlog=1024).start()
    return runner


async def _refresh(here: Installation, responders: Responders, tls: Tls) -> None:
    while True:
        await asyncio.sleep(_REFRESH)
        try:
            await here.reload_authorities()
            await responders.refresh(here.store, here.authorities)
            tls.refresh()
        except Fatal:
            raise
        except (IronrootError, ssl.SSLError, OSError) as error:
            log.error("refresh_failed", error=str(error))


@web.middleware
async def _errors(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
    """What a door did not turn into its own protocol's words: our errors as text, anything else as a bare 500 and a log line."""
    try:
        return await handler(request)
    except Fatal:
        log.exception("fatal", path=request.path)
        request.app[_STOPPED].set()
        return web.Response(status=500, text="An error of ours; it is in the log.\n")
    except IronrootError as error:
        headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
        return web.Response(status=error.status, text=f"{error}\n", headers=headers)
    except (web.HTTPException, asyncio.CancelledError, ConnectionError):
        raise
    except Exception:
        log.exception("bug", path=request.path)
        return web.Response(status=500, text="An error of ours; it is in the log.\n")


async def _alive(_request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


def _readiness(here: Installation) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def ready(_request: web.Request) -> web.Response:
        problems = {}
        for part, check in (("hsm", here.signer.ready), ("database", here.store.ready)):
            try:
                await check()
            except IronrootError as error:
                problems[part] = str(error)
        if tls_certificate(here.settings.tls / "service.pem") is None:
            problems["tls"] = "no certificate yet"
        if problems:
            return web.json_response({"status": "unavailable", "problems": problems}, status=503, headers={"Retry-After": "2"})
        return web.json_response({"status": "ok"})

    return ready
