"""The shape of API keys: constant, unguessable, and proof against one mistyped character."""

import hashlib
import string
import zlib

from hypothesis import given
from hypothesis import strategies as st

from darktree_billing.client import key_digest, key_id_of
from darktree_billing.key_format import ALPHABET, ID_LENGTH, KEY_LENGTH, SECRET_LENGTH, NewKey, make_key

KEYS = st.builds(make_key)


@given(KEYS)
def test_every_key_has_the_one_shape(key: NewKey) -> None:
    assert len(key.text) == KEY_LENGTH == 57
    assert key.text.startswith(f"dt_live_{key.id}_")
    assert len(key.id) == ID_LENGTH
    assert set(key.text) <= set(string.ascii_letters + string.digits + "_")
    assert key_id_of(key.text) == key.id
    assert key.last4 == key.text[-4:]


@given(KEYS, st.integers(0, KEY_LENGTH - 1), st.characters(codec="utf-8"))
def test_any_one_character_changed_is_refused(key: NewKey, place: int, character: str) -> None:
    text = key.text
    changed = text[:place] + character + text[place + 1 :]
    assert (key_id_of(changed) is None) == (changed != text)


@given(KEYS, st.integers(0, KEY_LENGTH - 2))
def test_two_neighbours_swapped_are_refused(key: NewKey, place: int) -> None:
    text = key.text
    swapped = text[:place] + text[place + 1] + text[place] + text[place + 2 :]
    assert (key_id_of(swapped) is None) == (swapped != text)


@given(st.text())
def test_no_other_text_is_a_key(text: str) -> None:
    assert key_id_of(text) is None
    assert key_id_of(make_key().text + text) is None or text == ""


def test_a_key_with_line_break_or_space_around_it_is_refused() -> None:
    text = make_key().text
    assert [key_id_of(near) for near in (text + "\n", " " + text, text + " ", "")] == [None] * 4


def test_the_checksum_is_the_crc_of_everything_before_it() -> None:
    text = make_key().text
    value = 0
    for character in text[-6:]:
        value = value * 62 + ALPHABET.index(character)
    assert value == zlib.crc32(text[:-6].encode())


def test_a_secret_has_at_least_160_bits() -> None:
    assert len(set(ALPHABET)) == 62
    assert 62**SECRET_LENGTH > 2**160
    assert len({make_key().text for _ in range(1000)}) == 1000


def test_the_digest_is_the_sha256_of_the_whole_key() -> None:
    text = make_key().text
    assert key_digest(text) == hashlib.sha256(text.encode()).hexdigest()


def test_a_new_key_does_not_print_its_secret() -> None:
    made = make_key()
    assert made.text not in repr(made)
    assert made.id in repr(made)
