"""The laboratory: scenarios are read strictly, and their faults come when, how often and to whom they say, the same way each time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from hsm_sim import personality
from hsm_sim.errors import Rejected
from hsm_sim.lab.lab import Call, Lab, SessionLost
from hsm_sim.lab.scenario import KINDS, parse
from pkix.errors import Malformed, NotFound

SIGN = Call("sign", "ecc-issuing", "native", "ironroot")


class Bench:
    """A lab whose device is this object: what was logged, and whether it was zeroised."""

    def __init__(self) -> None:
        self.logged: list[str] = []
        self.zeroised = False
        self.lab = Lab(zeroise=self._zeroise, log=self._log)

    async def _zeroise(self) -> None:
        self.zeroised = True

    async def _log(self, kind: str, call: Call) -> None:
        self.logged.append(f"{kind} {call.op} {call.key}")


def staged(text: str, work: Callable[[Bench], Awaitable[object]]) -> Bench:
    async def run() -> Bench:
        bench = Bench()
        bench.lab.load(parse(text))
        await work(bench)
        await bench.lab.close()
        return bench

    return asyncio.run(run())


async def outcomes(bench: Bench, call: Call, times: int) -> list[str]:
    found = []
    for _ in range(times):
        try:
            await bench.lab.before(call)
            found.append("ok")
        except Rejected as error:
            found.append(str(error.code))
    return found


def test_an_error_comes_after_so_many_calls_each_third_time_and_no_more_than_twice() -> None:
    async def work(bench: Bench) -> None:
        assert await outcomes(bench, SIGN, 12) == [*["ok"] * 4, "device_error", "ok", "ok", "device_error", *["ok"] * 4]

    bench = staged('[[fault]]\nkind = "error"\ncode = "device_error"\nafter = 2\nevery = 3\ncount = 2\n', work)
    assert bench.logged == ["error sign ecc-issuing"] * 2


@pytest.mark.parametrize("where", ['op = "login"', 'key = "sm2-*"', 'door = "pkcs11"', 'partition = "kmc"'])
def test_other_calls_are_left_alone(where: str) -> None:
    async def work(bench: Bench) -> None:
        assert await outcomes(bench, SIGN, 3) == ["ok"] * 3

    staged(f'[[fault]]\nkind = "error"\ncode = "device_error"\n{where}\n', work)


def test_the_same_seed_gives_the_same_faults_and_another_gives_others() -> None:
    def pattern(seed: int) -> list[str]:
        found: list[str] = []

        async def work(bench: Bench) -> None:
            found.extend(await outcomes(bench, SIGN, 60))

        staged(f'seed = {seed}\n[[fault]]\nkind = "error"\ncode = "device_error"\nprobability = 0.5\n', work)
        return found

    assert pattern(7) == pattern(7) != pattern(8)
    assert {"ok", "device_error"} == set(pattern(7))


def test_a_flipped_bit_is_one_bit() -> None:
    async def work(bench: Bench) -> None:
        signature = bytes(range(64))
        changed = bench.lab.after(SIGN, signature)
        difference = int.from_bytes(signature) ^ int.from_bytes(changed)
        assert difference.bit_count() == 1
        assert bench.lab.after(SIGN, signature) == signature

    staged('[[fault]]\nkind = "bit-flip"\ncount = 1\n', work)


def test_a_removed_device_fails_every_call_and_is_back_when_it_is_cleared() -> None:
    async def work(bench: Bench) -> None:
        assert await outcomes(bench, SIGN, 2) == ["device_removed"] * 2
        assert not bench.lab.present
        assert await outcomes(bench, Call("find", "", "pkcs11", "ironroot"), 1) == ["device_removed"]
        bench.lab.clear()
        assert bench.lab.present
        assert await outcomes(bench, SIGN, 1) == ["ok"]

    staged('[[fault]]\nkind = "device-removed"\nseconds = 3600\nop = "sign"\n', work)


def test_a_hang_ends_when_the_scenario_is_cleared() -> None:
    async def work(bench: Bench) -> None:
        hanging = asyncio.create_task(bench.lab.before(SIGN))
        while not bench.logged:
            await asyncio.sleep(0)
        assert not hanging.done()
        bench.lab.clear()
        await hanging

    staged('[[fault]]\nkind = "hang"\n', work)


def test_a_lost_session_a_full_memory_a_locked_pin_and_a_tamper() -> None:
    async def work(bench: Bench) -> None:
        with pytest.raises(SessionLost):
            await bench.lab.before(Call("find", "", "pkcs11", "ironroot"))
        assert await outcomes(bench, Call("generate", "new", "native", "ironroot"), 1) == ["device_memory"]
        assert await outcomes(bench, Call("login", "", "native", "ironroot"), 1) == ["pin_locked"]
        assert not bench.zeroised
        assert await outcomes(bench, SIGN, 1) == ["tampered"]
        assert bench.zeroised

    text = "".join(f'[[fault]]\nkind = "{kind}"\n{more}' for kind, more in (("memory-full", ""), ("pin-locked", "")))
    staged('[[fault]]\nkind = "session-lost"\nop = "find"\n' + text + '[[fault]]\nkind = "tamper"\nop = "sign"\n', work)


def test_a_rate_limit_lets_the_first_call_through_and_refuses_the_rest_of_a_burst() -> None:
    async def work(bench: Bench) -> None:
        assert await outcomes(bench, SIGN, 4) == ["ok", *["rate_limited"] * 3]

    staged('[[fault]]\nkind = "rate-limit"\nper_second = 0.001\n', work)


def test_the_clock_jumps_and_the_key_is_swapped() -> None:
    async def work(bench: Bench) -> None:
        now = datetime(2026, 1, 1, tzinfo=UTC)
        await bench.lab.before(Call("login", "", "native", "ironroot"))
        assert bench.lab.now(now) == now - timedelta(days=1)
        assert bench.lab.substitute(SIGN) == "impostor"
        assert bench.lab.substitute(Call("sign", "other", "native", "ironroot")) is None

    staged(
        '[[fault]]\nkind = "clock-jump"\nseconds = -86400\n[[fault]]\nkind = "wrong-key"\nother = "impostor"\nkey = "ecc-issuing"\n', work
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[fault]]\n", "kind"),
        ('[[fault]]\nkind = "earthquake"\n', "kind"),
        ('[[fault]]\nkind = "error"\n', "needs code"),
        ('[[fault]]\nkind = "error"\ncode = "no_such"\n', "code"),
        ('[[fault]]\nkind = "hang"\nms = 3\n', "has no ms"),
        ('[[fault]]\nkind = "latency"\nms = -1\n', "ms"),
        ('[[fault]]\nkind = "hang"\nprobability = 0\n', "probability"),
        ('[[fault]]\nkind = "hang"\nunknown = 1\n', "unknown"),
        ("seed = \n", "TOML"),
        ("[[fault]]\nkind = 'hang'\n" * 101, "fault"),
    ],
)
def test_a_scenario_that_is_wrong_is_refused_by_name(text: str, says: str) -> None:
    with pytest.raises(Malformed, match=says):
        parse(text)


def test_every_kind_is_documented() -> None:
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "hsm-lab.md").read_text("utf-8")
    assert [kind for kind in KINDS if f"`{kind}`" not in page] == []
    assert [name for name in personality.NAMES if f"`{name}`" not in page] == []


def test_personalities_differ_where_vendors_do() -> None:
    loaded = {name: personality.load(name) for name in personality.NAMES}
    assert {"ironroot", "softhsm", "yubihsm", "luna", "sansec", "tass"} <= set(loaded)
    assert loaded["yubihsm"].sessions == 16
    assert "sm2" not in loaded["softhsm"].curves
    assert loaded["tass"].signatures == "der" != loaded["sansec"].signatures
    assert not loaded["yubihsm"].allows("CKM_AES_KEY_WRAP")
    with pytest.raises(NotFound, match="softhsm"):
        personality.load("no-such")
