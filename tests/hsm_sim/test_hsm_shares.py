"""Shares of a key: any M give it back, fewer tell nothing, and what is wrong with a share is said by its name."""

from __future__ import annotations

import secrets
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsm_sim.shares import MAX_SHARES, Share, combine, set_name, split
from pkix.errors import Malformed

KEY = bytes(range(32))
SHARES = split(KEY, 2, 3)
sizes = st.integers(2, MAX_SHARES).flatmap(lambda total: st.tuples(st.integers(2, total), st.just(total)))


def multiply(a: int, b: int) -> int:
    """Carry-less multiplication and a long division by x^8 + x^4 + x^3 + x + 1: GF(256) without tables (FIPS 197 4.2)."""
    product = 0
    for bit in range(8):
        if b >> bit & 1:
            product ^= a << bit
    for bit in range(14, 7, -1):
        if product >> bit & 1:
            product ^= 0x11B << bit - 8
    return product


def power(a: int, exponent: int) -> int:
    result = 1
    for _ in range(exponent):
        result = multiply(result, a)
    return result


def solve(points: list[tuple[int, int]]) -> int:
    """The constant term of the polynomial through ``points``, by Gaussian elimination of the Vandermonde system."""
    rows = [[power(x, column) for column in range(len(points))] + [y] for x, y in points]
    for column in range(len(rows)):
        pivot = next(row for row in range(column, len(rows)) if rows[row][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        inverse = power(rows[column][column], 254)
        rows[column] = [multiply(cell, inverse) for cell in rows[column]]
        for row in range(len(rows)):
            if row != column and (factor := rows[row][column]):
                rows[row] = [cell ^ multiply(factor, other) for cell, other in zip(rows[row], rows[column], strict=True)]
    return rows[0][-1]


@given(st.binary(min_size=32, max_size=32), sizes, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_any_m_shares_give_the_key_back_through_their_text(key: bytes, size: tuple[int, int], random: object) -> None:
    needed, total = size
    shares = split(key, needed, total)
    chosen = random.sample(shares, random.randint(needed, total))  # type: ignore[attr-defined]
    typed = [Share.parse(share.text) for share in chosen]
    assert typed == chosen
    assert combine(typed) == combine(typed, [share.digest for share in shares]) == key
    with pytest.raises(Malformed, match=rf"{needed} shares of set {set_name(shares[0].set)} are needed"):
        combine(chosen[: needed - 1])


@pytest.mark.parametrize(("needed", "total"), [(2, 3), (3, 5), (5, 5)])
def test_another_computation_finds_the_same_key(needed: int, total: int) -> None:
    shares = split(KEY, needed, total)
    for chosen in combinations(shares, needed):
        assert bytes(solve([(share.index, share.value[at]) for share in chosen]) for at in range(32)) == KEY


def test_one_share_too_few_fits_every_key() -> None:
    """With M-1 shares each octet of the key can still be anything: for every guess there is a polynomial through it and the shares."""
    share = split(KEY, 2, 3)[0]
    values = {solve([(share.index, share.value[0]), (9, guess)]) for guess in range(256)}
    assert values == set(range(256))


def test_shares_are_fresh_and_say_nothing_alike() -> None:
    once, again = split(KEY, 2, 2), split(KEY, 2, 2)
    assert once[0].set != again[0].set
    assert once[0].value != again[0].value
    assert KEY not in {share.value[:32] for share in once}
    assert once[0].value.hex() not in repr(once[0])


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_slip_in_the_text_is_found_with_its_line_or_never_gives_another_key(data: st.DataObject) -> None:
    text = list(SHARES[0].text)
    at = data.draw(st.integers(0, len(text) - 1).filter(lambda index: text[index] not in " \n"))
    text[at] = data.draw(st.sampled_from("0123456789ABCDEFGHJKMNPQRSTVWXYZ").filter(lambda character: character != text[at]))
    with pytest.raises(Malformed) as caught:
        combine([Share.parse("".join(text)), SHARES[1]])
    # One slip in a thousand passes its own line; the check of the next line covers it too, and then the checksum of the key.
    line = "".join(text)[:at].count("\n") + 1
    named = [f"line {number} of the share is mistyped" for number in range(line, 5)]
    assert any(reason in str(caught.value) for reason in (*named, "version", "make no sense", "does not belong", "was altered"))


def test_how_people_write_does_not_matter() -> None:
    share = next(share for _ in range(500) for share in split(KEY, 2, 3) if "0" in share.text and "1" in share.text)
    typed = "# share 1, in the safe of the plant\n" + share.text.replace("0", "o").replace("1", "l").lower().replace(" ", "-")
    assert Share.parse(typed) == share
    assert Share.parse(share.text.replace("\n", "  ")) == share
    with pytest.raises(Malformed, match="no U"):
        Share.parse(share.text[:-1] + "U")
    with pytest.raises(Malformed, match="80 in all; here are 75"):
        Share.parse(share.text[:-6])


def test_lines_of_two_shares_do_not_pass_for_one() -> None:
    found = 0
    for _ in range(20):
        first, second, _third = split(KEY, 2, 3)
        mixed = "\n".join(first.text.splitlines()[:2] + second.text.splitlines()[2:])
        try:
            Share.parse(mixed)
        except Malformed as error:
            found += "line 3 of the share" in str(error)
    assert found >= 18


def test_a_share_of_another_set_is_named() -> None:
    ours, theirs = split(KEY, 2, 3), split(secrets.token_bytes(32), 2, 3)
    with pytest.raises(Malformed, match=rf"share 3 \(of 3\) of set {set_name(theirs[0].set)} does not belong with share 1"):
        combine([ours[0], ours[1], theirs[2]])


def test_an_altered_share_is_named() -> None:
    shares = split(KEY, 3, 5)
    digests = [share.digest for share in shares]
    bad = Share(shares[1].set, 3, 5, 2, bytes((shares[1].value[0] ^ 1,)) + shares[1].value[1:])
    with pytest.raises(Malformed, match=r"share 2 \(of 5\) .* was altered"):
        combine([shares[0], bad, shares[2]], digests)
    with pytest.raises(Malformed, match="one of the shares 1, 2, 3 of set"):
        combine([shares[0], bad, shares[2]])
    with pytest.raises(Malformed, match=r"share 2 .* given twice with different values"):
        combine([shares[0], bad, shares[1], shares[2]])
    late = Share(shares[4].set, 3, 5, 5, bytes((shares[4].value[0] ^ 1,)) + shares[4].value[1:])
    with pytest.raises(Malformed, match=r"share 5 of set .* the others fit together without it"):
        combine([*shares[:3], late])


def test_what_cannot_be_shared() -> None:
    for key, needed, total in ((KEY[:31], 2, 3), (KEY, 1, 3), (KEY, 4, 3), (KEY, 2, MAX_SHARES + 1)):
        with pytest.raises(Malformed):
            split(key, needed, total)
    with pytest.raises(Malformed, match="no share"):
        combine([])
    share = split(KEY, 2, 3)[0]
    for odd in (Share(share.set, 1, 3, 1, share.value), Share(share.set, 2, 3, 4, share.value), Share(share.set, 2, 3, 0, share.value)):
        with pytest.raises(Malformed, match="make no sense"):
            Share.parse(odd.text)


@given(st.text(max_size=200))
def test_any_text_is_refused_in_words(text: str) -> None:
    with pytest.raises(Malformed):
        Share.parse(text)
