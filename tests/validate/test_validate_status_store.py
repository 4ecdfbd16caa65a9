"""What is remembered between validations, for how long, and what a push does to it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from pkix.algorithms import KeyKind
from pkix.crl import CrlEntry
from pkix.errors import Malformed, Unavailable
from pkix.ocsp import error_response, parse_request
from validate import Policy, anchors, validate, validate_sync
from validate.fetch import LOOPBACK, HttpFetcher
from validate.model import Basis
from validate.status import Revocation
from validate.status_store import Bounded, Kept, StatusStore, issuer_key

KINDS = [KeyKind.P_256, KeyKind.SM2]
FINAL = ["keyCompromise", "superseded", "unspecified"]
HOUR = timedelta(hours=1)


class Bench:
    """A plant with a server that counts, and one ``Revocation`` that lives through several validations."""

    def __init__(self, pki, web_, kind, clock, **options):
        self.pki, self.web, self.clock = pki, web_, clock
        self.plant = pki.at(web_.url, kind)
        self.said = {"status": "good"}
        self.headers = {}
        web_.answers |= {"/ocsp": self._answer, "/root.crl": self.plant.root.crl(next_update=pki.NOW + 9 * pki.DAY)}
        fetcher = HttpFetcher(networks=LOOPBACK, rest=0, monotonic=self.monotonic)
        self.status = Revocation(fetcher, **options)
        self.policy = Policy(anchors=anchors(self.plant.root.der))

    def monotonic(self):
        return self.clock[0]

    async def _answer(self, request):
        (asked,) = parse_request(await request.read()).cert_ids
        if asked.serial != self.plant.device.certificate.serial:
            return error_response(6)
        said = self.said | {"hash": asked.hash, "signer": self.plant.signer}
        return web.Response(body=self.plant.issuing.ocsp(self.plant.device, **said), headers=self.headers)

    async def judge(self, later=timedelta(0), **more):
        return await validate(
            (self.plant.device.der, self.plant.issuing.der),
            policy=more.pop("policy", self.policy),
            now=self.pki.NOW + later,
            status=self.status,
            monotonic=self.monotonic,
            **more,
        )

    @property
    def asked(self):
        """How often OCSP was asked about the device; about its issuer it is asked, too, and knows nothing."""
        return self.web.seen.count("POST /ocsp")

    def push(self, at, reason):
        return self.status.store.push(issuer_key(self.plant.issuing.certificate), self.plant.device.certificate.serial, at, reason, at)


def on_bench(pki, use, kind=KeyKind.P_256, **options):
    async def run():
        async with pki.serving() as server:
            bench = Bench(pki, server, kind, [1000.0], **options)
            try:
                return await use(bench)
            finally:
                await bench.status.close()

    return asyncio.run(run())


# --- answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_used_until_its_next_update(pki, kind):
    async def use(bench):
        bench.said |= {"next_update": pki.NOW + HOUR}
        for later in (0, 10, 59, 60):
            assert (await bench.judge(timedelta(minutes=later))).good
            seen = len(bench.web.seen)
        first = len(bench.web.seen)
        bench.said |= {"this_update": pki.NOW + 2 * HOUR, "next_update": pki.NOW + 3 * HOUR}
        assert (await bench.judge(2 * HOUR)).good
        assert len(bench.web.seen) > first == seen

    on_bench(pki, use, kind)


def test_and_never_beyond_the_bound_on_staleness(pki):
    async def use(bench):
        bench.policy = Policy(anchors=anchors(bench.plant.root.der), max_age=HOUR)
        bench.web.answers["/root.crl"] = bench.plant.root.crl(next_update=pki.NOW + 9 * pki.DAY)
        assert (await bench.judge()).good
        assert (await bench.judge(timedelta(minutes=59))).good
        assert (await bench.judge(2 * HOUR)).code == "no_status"
        lax = Policy(anchors=anchors(bench.plant.root.der), max_age=3 * HOUR)
        assert (await bench.judge(2 * HOUR, policy=lax)).good

    on_bench(pki, use)


@pytest.mark.parametrize("headers", [{"Cache-Control": "max-age=600"}, {"Cache-Control": "no-store"}])
def test_http_may_ask_for_less_but_not_for_more(pki, headers):
    async def use(bench):
        bench.headers = headers
        await bench.judge()
        before = bench.asked
        await bench.judge(timedelta(minutes=11))
        assert bench.asked == before + 1
        bench.headers = {"Cache-Control": "max-age=99999999"}
        bench.said |= {"this_update": pki.NOW + HOUR, "next_update": pki.NOW + 2 * HOUR}
        await bench.judge(HOUR)
        before = bench.asked
        assert (await bench.judge(3 * HOUR)).code == "no_status"
        assert bench.asked > before

    on_bench(pki, use)


@pytest.mark.parametrize("mode", ["hard-fail", "soft-fail", "offline"])
def test_what_is_kept_stands_in_while_nobody_answers(pki, mode):
    """HTTP wanted it renewed after ten minutes; by its own word it holds for a day."""

    async def use(bench):
        bench.headers = {"Cache-Control": "max-age=600"}
        assert (await bench.judge()).good
        del bench.web.answers["/ocsp"]
        policy = Policy(anchors=anchors(bench.plant.root.der), status=mode)
        result = await bench.judge(HOUR, policy=policy)
        assert result.good
        assert [basis.standing for basis in result.basis] == ["good", "good"]
        late = await bench.judge(2 * pki.DAY, policy=policy)
        assert late.good is (mode == "soft-fail")

    on_bench(pki, use)


def test_a_nonce_asks_anew(pki):
    async def use(bench):
        await bench.judge()
        bench.said |= {"nonce": bytes(range(32))}
        before = bench.asked
        result = await bench.judge(nonce=bytes(range(32)))
        assert result.good
        assert bench.asked > before
        assert (await bench.judge(nonce=bytes(32))).code == "no_status"

    on_bench(pki, use)


def test_a_responder_that_is_no_use_rests(pki):
    async def use(bench):
        bench.web.answers["/ocsp"] = error_response(3)  # tryLater
        bench.web.answers["/issuing.crl"] = bench.plant.issuing.crl()
        result = await bench.judge()
        assert (result.good, result.basis[0].source) == (True, "crl")
        before = bench.asked
        bench.clock[0] += 9
        result = await bench.judge(2 * pki.DAY)  # the list is over by then
        assert "tryLater" in result.sentence()
        assert bench.asked == before
        bench.clock[0] += 2
        bench.web.answers["/ocsp"] = bench._answer
        bench.said |= {"this_update": pki.NOW + 2 * pki.DAY, "next_update": pki.NOW + 3 * pki.DAY}
        assert (await bench.judge(2 * pki.DAY)).basis[0].source == "ocsp"

    on_bench(pki, use)


def test_a_revocation_once_seen_is_final(pki):
    async def use(bench):
        bench.said = {"status": "revoked", "revoked_at": pki.NOW, "reason": 1}
        assert (await bench.judge()).code == "revoked"
        bench.said = {"status": "good", "this_update": pki.NOW + 2 * pki.DAY, "next_update": pki.NOW + 3 * pki.DAY}
        staple = bench.plant.issuing.ocsp(bench.plant.device, signer=bench.plant.signer, this_update=pki.NOW + 2 * pki.DAY)
        assert (await bench.judge(2 * pki.DAY)).code == "revoked"
        assert (await bench.judge(2 * pki.DAY, staples=[staple])).code == "revoked"

    on_bench(pki, use)


def test_a_revocation_that_was_handed_in_is_remembered(pki):
    async def use(bench):
        staple = bench.plant.issuing.ocsp(bench.plant.device, "revoked", revoked_at=pki.NOW, reason=1, signer=bench.plant.signer)
        assert (await bench.judge(staples=[staple])).code == "revoked"
        assert (await bench.judge()).code == "revoked"

    on_bench(pki, use)


# --- lists ---------------------------------------------------------------------------------------------------------


def by_lists(bench):
    bench.web.answers["/ocsp"] = error_response(6)
    bench.web.answers["/issuing.crl"] = bench.plant.issuing.crl()


def test_one_list_serves_all_certificates_until_it_is_over(pki):
    async def use(bench):
        by_lists(bench)
        devices = [pki.issue(bench.plant.issuing, f"d{n}", crl=(f"{bench.web.url}/issuing.crl",)) for n in range(5)]
        for device in devices:
            result = await validate((device.der, bench.plant.issuing.der), policy=bench.policy, now=pki.NOW, status=bench.status)
            assert result.good
        assert bench.web.seen.count("GET /issuing.crl") == 1
        bench.web.answers["/issuing.crl"] = bench.plant.issuing.crl(
            CrlEntry(devices[0].certificate.serial, pki.NOW, 1), this_update=pki.NOW + 2 * pki.DAY, next_update=pki.NOW + 3 * pki.DAY
        )
        later = pki.NOW + 2 * pki.DAY
        results = [
            (await validate((device.der, bench.plant.issuing.der), policy=bench.policy, now=later, status=bench.status)).code
            for device in devices
        ]
        assert results == ["revoked"] + ["good"] * 4
        assert bench.web.seen.count("GET /issuing.crl") == 2

    on_bench(pki, use)


def test_a_new_list_counts_for_certificates_judged_by_the_old_one(pki):
    async def use(bench):
        by_lists(bench)
        assert (await bench.judge()).basis[0].source == "crl"
        listed = bench.plant.issuing.crl(CrlEntry(bench.plant.device.certificate.serial, pki.NOW, 1), number=2)
        bench.status.learn(f"{bench.web.url}/issuing.crl", listed, bench.plant.issuing.certificate, pki.NOW)
        assert (await bench.judge()).code == "revoked"
        with pytest.raises(Malformed, match=r"issuing\.crl"):
            bench.status.learn(f"{bench.web.url}/issuing.crl", b"rubbish", bench.plant.issuing.certificate, pki.NOW)

    on_bench(pki, use)


@pytest.mark.parametrize("sent", ["older", "another signer's", "another partition's", "rubbish", "nothing"])
def test_what_somebody_on_the_line_sends_does_not_replace_a_better_list(pki, sent):
    async def use(bench):
        by_lists(bench)
        serial, plant = bench.plant.device.certificate.serial, bench.plant
        held = plant.issuing.crl(CrlEntry(serial, pki.NOW, 6), number=5, next_update=pki.NOW + 2 * pki.DAY)
        bench.status.learn(f"{bench.web.url}/issuing.crl", held, plant.issuing.certificate, pki.NOW)
        partition = plant.issuing.crl(number=9, extra=(only_cas(),), next_update=pki.NOW + 9 * pki.DAY)
        bench.web.answers["/issuing.crl"] = {
            "older": plant.issuing.crl(number=4, this_update=pki.NOW - HOUR, next_update=pki.NOW + 9 * pki.DAY),
            "another signer's": plant.issuing.crl(signer=plant.root, number=9, next_update=pki.NOW + 9 * pki.DAY),
            "another partition's": partition,
            "rubbish": b"rubbish",
            "nothing": None,
        }[sent]
        # An hour later the list that is kept would still do; even when HTTP had it renewed, it stays.
        bench.status.store.keep_list(
            f"{bench.web.url}/issuing.crl", bench.status.store.crls.get(f"{bench.web.url}/issuing.crl").crl, pki.NOW
        )
        assert (await bench.judge(HOUR)).code == "on_hold"
        assert "GET /issuing.crl" in bench.web.seen

    on_bench(pki, use)


def only_cas():
    from pkix import der
    from pkix.extensions import Extension

    return Extension("2.5.29.28", True, der.sequence(der.context(2, b"\xff", constructed=False)))


def test_validations_side_by_side_fetch_a_list_once(pki):
    async def use(bench):
        gate = asyncio.Event()

        async def slow(request):
            await gate.wait()
            return bench.plant.issuing.crl()

        by_lists(bench)
        bench.web.answers["/issuing.crl"] = slow
        devices = [pki.issue(bench.plant.issuing, f"p{n}", crl=(f"{bench.web.url}/issuing.crl",)) for n in range(20)]
        policy = Policy(anchors=anchors(bench.plant.root.der), budget=timedelta(seconds=30))
        work = [
            asyncio.create_task(validate((device.der, bench.plant.issuing.der), policy=policy, now=pki.NOW, status=bench.status))
            for device in devices
        ]
        while "GET /issuing.crl" not in bench.web.seen:
            await asyncio.sleep(0)
        gate.set()
        assert all(result.good for result in await asyncio.gather(*work))
        assert bench.web.seen.count("GET /issuing.crl") == 1

    on_bench(pki, use)


def test_order_of_sources(pki):
    async def use(bench):
        bench.web.answers["/issuing.crl"] = bench.plant.issuing.crl()
        result = await bench.judge()
        assert result.basis[0].source == "crl"
        assert bench.asked == 0

    on_bench(pki, use, order=("crl", "ocsp"))

    async def alone(bench):
        bench.web.answers["/ocsp"] = None
        bench.web.answers["/issuing.crl"] = bench.plant.issuing.crl()
        assert (await bench.judge()).code == "no_status"
        assert "GET /issuing.crl" not in bench.web.seen

    on_bench(pki, alone, order=("ocsp",))


# --- pushes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reason", FINAL)
def test_a_pushed_revocation_counts_at_once_against_everything(pki, kind, reason):
    async def use(bench):
        assert (await bench.judge()).good
        before = bench.asked
        assert bench.push(pki.NOW, reason)
        result = await bench.judge()
        assert result.code == "revoked"
        assert (result.basis[0].source, result.basis[0].reason, result.basis[0].revoked_at) == ("push", reason, pki.NOW)
        fresh = bench.plant.issuing.ocsp(bench.plant.device, signer=bench.plant.signer, this_update=pki.NOW + HOUR)
        assert (await bench.judge(HOUR, staples=[fresh])).code == "revoked"
        assert not bench.push(pki.NOW + HOUR, "removeFromCRL")
        assert (await bench.judge(HOUR)).code == "revoked"
        assert bench.asked == before

    on_bench(pki, use, kind)


def test_a_push_is_of_one_issuer_and_one_number(pki):
    plant = pki.plant()
    store, serial = StatusStore(), plant.device.certificate.serial
    store.push(issuer_key(plant.root.certificate), serial, pki.NOW, "keyCompromise", pki.NOW)
    store.push(issuer_key(plant.issuing.certificate), serial + 1000, pki.NOW, "keyCompromise", pki.NOW)
    staple = plant.issuing.ocsp(plant.device, signer=plant.signer)
    more = {"status": Revocation(store=store), "staples": [staple], "crls": [plant.root.crl()]}
    assert plant.validate(status="offline", more=more).good
    store.push(issuer_key(plant.root.certificate), plant.issuing.certificate.serial, pki.NOW, "cACompromise", pki.NOW)
    result = plant.validate(status="offline", more=more)
    assert result.code == "revoked"
    assert "p-256 issuing" in result.sentence()


def test_a_pushed_signer_signs_nothing_any_more(pki):
    """Also one that nobody need check (nocheck)."""
    plant = pki.plant()
    store = StatusStore()
    staple = plant.issuing.ocsp(plant.device, signer=plant.signer)
    more = {"status": Revocation(store=store), "staples": [staple], "crls": [plant.root.crl()]}
    assert plant.validate(status="offline", more=more).good
    assert plant.validate(plant.signer, status="offline", more=more).good  # exempt
    store.push(issuer_key(plant.issuing.certificate), plant.signer.certificate.serial, pki.NOW, "keyCompromise", pki.NOW)
    assert plant.validate(status="offline", more=more).code == "no_status"
    assert plant.validate(plant.signer, status="offline", more=more).code == "revoked"

    async def use(bench):
        assert (await bench.judge()).good
        signer = bench.plant.signer.certificate.serial
        bench.status.store.push(issuer_key(bench.plant.issuing.certificate), signer, pki.NOW, "keyCompromise", pki.NOW)
        assert (await bench.judge()).code == "no_status"  # nor what it had signed before

    on_bench(pki, use)


def test_holds_and_releases_go_by_their_time(pki):
    async def use(bench):
        bench.said |= {"this_update": pki.NOW - HOUR, "next_update": pki.NOW + 9 * HOUR}
        assert (await bench.judge()).good
        assert bench.push(pki.NOW, "certificateHold")
        assert (await bench.judge(HOUR / 2)).code == "on_hold"
        assert bench.push(pki.NOW + HOUR, "removeFromCRL")
        assert (await bench.judge(HOUR)).good
        assert not bench.push(pki.NOW + HOUR / 2, "certificateHold")  # came late
        assert (await bench.judge(HOUR)).good
        assert bench.push(pki.NOW + 2 * HOUR, "certificateHold")
        assert (await bench.judge(2 * HOUR)).code == "on_hold"
        # A responder that speaks later than the hold knows better.
        fresh = bench.plant.issuing.ocsp(bench.plant.device, signer=bench.plant.signer, this_update=pki.NOW + 3 * HOUR)
        assert (await bench.judge(3 * HOUR, staples=[fresh])).good

    on_bench(pki, use)


def test_a_release_takes_an_older_hold_off_whatever_it_stands_on(pki):
    plant = pki.plant()
    serial, store = plant.device.certificate.serial, StatusStore()
    more = {"status": Revocation(store=store), "crls": [plant.root.crl(), plant.issuing.crl(CrlEntry(serial, pki.NOW, 6))]}
    assert plant.validate(status="offline", more=more).code == "on_hold"
    store.push(issuer_key(plant.issuing.certificate), serial, pki.NOW - HOUR, "removeFromCRL", pki.NOW)
    assert plant.validate(status="offline", more=more).code == "on_hold"  # held again after that
    store.push(issuer_key(plant.issuing.certificate), serial, pki.NOW + HOUR, "removeFromCRL", pki.NOW)
    assert plant.validate(status="offline", more=more).good
    # But a release is no status by itself, and takes no revocation off.
    assert plant.validate(status="offline", more=more | {"crls": [plant.root.crl()]}).code == "no_status"
    revoked = [plant.root.crl(), plant.issuing.crl(CrlEntry(serial, pki.NOW, 1))]
    assert plant.validate(status="offline", more=more | {"crls": revoked}).code == "revoked"


EVENTS = [("certificateHold", 1), ("removeFromCRL", 2), ("certificateHold", 3), ("removeFromCRL", 4)]


def test_in_whatever_order_they_arrive_the_last_one_holds():
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for order in permutations(EVENTS):
        store = StatusStore()
        for reason, hours in order:
            store.push(b"k", 1, start + hours * HOUR, reason, start)
        assert store._pushed.get((b"k", 1)).reason == "removeFromCRL"
        store.push(b"k", 1, start, "keyCompromise", start)
        for reason, hours in order:
            assert not store.push(b"k", 1, start + 9 * hours * HOUR, reason, start)
        assert store._pushed.get((b"k", 1)).reason == "keyCompromise"


def test_pushes_that_no_longer_fit_take_older_statements_with_them(pki):
    """The store never says good for want of memory: what may not know of a forgotten push counts no more."""
    plant = pki.plant()
    store = StatusStore(max_pushed=2)
    key = issuer_key(plant.issuing.certificate)
    crls = [plant.root.crl()]
    old = plant.issuing.ocsp(plant.device, signer=plant.signer)
    new = plant.issuing.ocsp(plant.device, signer=plant.signer, this_update=pki.NOW + timedelta(seconds=30))
    status = Revocation(store=store)
    for number in range(2):
        store.push(key, number, pki.NOW, "keyCompromise", pki.NOW)
    assert plant.validate(status="offline", more={"status": status, "staples": [old], "crls": crls}).good
    store.push(key, 2, pki.NOW, "keyCompromise", pki.NOW)
    assert plant.validate(status="offline", more={"status": status, "staples": [old], "crls": crls}).code == "no_status"
    assert plant.validate(status="offline", more={"status": status, "staples": [new], "crls": crls}).good


def test_pulling_from_a_feed():
    class Feed:
        def __init__(self):
            self.batches = [[(b"k", 1, NOW, "keyCompromise"), (b"k", 2, NOW, "certificateHold")], [(b"k", 2, NOW, "certificateHold")]]

        async def changes(self):
            if not self.batches:
                raise Unavailable("away")
            return self.batches.pop(0)

    store, feed = StatusStore(), Feed()
    assert asyncio.run(store.pull(feed, NOW)) == 2
    assert asyncio.run(store.pull(feed, NOW)) == 0
    assert store.changes == 2
    with pytest.raises(Unavailable):
        asyncio.run(store.pull(feed, NOW))


NOW = datetime(2026, 11, 23, tzinfo=UTC)


# --- bounds --------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30)), max_size=60))
def test_a_bounded_mapping_never_weighs_more_than_it_may(puts):
    kept: Bounded[int, int] = Bounded(50)
    weights: dict[int, int] = {}
    for key, weight in puts:
        gone = kept.put(key, weight, weight)
        weights[key] = weight
        for lost, _ in gone:
            del weights[lost]
        assert sum(weights.values()) <= 50
        assert len(kept) == len(weights)
        assert kept.get(key) == weights.get(key)


def test_what_is_heavier_than_everything_may_be_is_not_kept():
    kept: Bounded[str, str] = Bounded(10)
    kept.put("a", "x", 5)
    assert kept.put("a", "y", 11) == [("a", "y")]
    assert kept.get("a") is None


def test_many_answers_take_bounded_memory():
    store = StatusStore(max_answers=100)
    for number in range(1000):
        store.keep_answer((number.to_bytes(32), b"k"), Kept(Basis("good"), NOW))
    assert len(store.answers) == 100


def test_the_hot_path_gives_the_same_value_again(pki):
    """Whoever keeps verdicts can compare by identity."""
    plant = pki.plant()
    status = Revocation()
    device, issuing = plant.device.certificate, plant.issuing.certificate
    kept = Kept(Basis("good", "ocsp", this_update=pki.NOW, until=pki.NOW + HOUR), pki.NOW + HOUR)
    status.store.keep_answer((device.sha256, issuer_key(issuing)), kept)
    result = validate_sync(
        (plant.device.der, plant.issuing.der),
        policy=Policy(anchors=anchors(plant.root.der), status="offline"),
        now=pki.NOW,
        status=status,
        crls=(),
    )
    assert result.basis[0] is kept.basis


def test_an_answer_that_comes_late_is_there_for_the_next_who_asks(pki):
    async def use(bench):
        reached, gate = asyncio.Event(), asyncio.Event()

        async def slow(request):
            answer = await bench._answer(request)
            if isinstance(answer, web.Response):  # it is about the device
                reached.set()
                await gate.wait()
            return answer

        bench.web.answers["/ocsp"] = slow
        short = Policy(anchors=anchors(bench.plant.root.der), budget=timedelta(seconds=0.1))
        assert (await bench.judge(policy=short)).code == "no_status"
        await reached.wait()
        bench.web.answers["/ocsp"] = b"rubbish"
        gate.set()
        link = bench.plant.device.certificate.sha256, issuer_key(bench.plant.issuing.certificate)
        while bench.status.store.answers.get(link) is None:
            await asyncio.sleep(0)
        result = await bench.judge()
        assert (result.good, result.basis[0].source) == (True, "ocsp")

    on_bench(pki, use)


def test_what_one_policy_accepts_another_still_judges_for_itself(pki):
    """Side by side, by the same request: only the one without a bound on age takes the old answer."""

    async def use(bench):
        bench.said |= {"this_update": pki.NOW - 3 * HOUR}
        lax, strict = bench.policy, Policy(anchors=anchors(bench.plant.root.der), max_age=HOUR)
        results = await asyncio.gather(*(bench.judge(policy=policy) for policy in (lax, strict, lax, strict)))
        assert [result.good for result in results] == [True, False, True, False]

    on_bench(pki, use)
