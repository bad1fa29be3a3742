"""Notes are signed and opened as the format's own examples say, and no flipped bit passes."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from darktree_kit import notes

# From Go's own tests (golang.org/x/mod/sumdb/note), BSD-3-Clause.
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
PETER_SIGNER = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETER_SAYS = (
    "— PeterNeumann "
    "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
ENOCH = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
ENOCH_SAYS = (
    "— EnochRoot "
    "rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n"
)
BOTH = f"{TEXT}\n{PETER_SAYS}{ENOCH_SAYS}"


def verifier(key: str) -> notes.Verifier:
    return notes.parse_verifier(key)


def test_gos_own_key_signs_gos_own_note() -> None:
    signer = notes.parse_signer(PETER_SIGNER)
    assert notes.sign(TEXT, [signer]) == f"{TEXT}\n{PETER_SAYS}"
    assert str(signer.verifier) == PETER
    assert signer.text() == PETER_SIGNER
    assert PETER_SIGNER.rpartition("+")[2] not in repr(signer)


def test_one_trusted_signature_is_enough_and_strangers_are_passed_over() -> None:
    for trusted in ([PETER], [ENOCH], [PETER, ENOCH]):
        assert notes.open_note(BOTH, map(verifier, trusted)) == TEXT


def test_nobody_trusted_means_not_opened() -> None:
    stranger = notes.make_signer("PeterNeumann").verifier  # the same name, another key
    for trusted in ([], [stranger]):
        with pytest.raises(notes.UnverifiedNote, match="none of the trusted keys"):
            notes.open_note(BOTH, trusted)


def test_a_trusted_keys_wrong_signature_is_an_error_although_another_is_right() -> None:
    wrong = BOTH.replace("ZJkuBS9UG", "ZJkuBS9UH")
    with pytest.raises(notes.UnverifiedNote, match="signature of PeterNeumann"):
        notes.open_note(wrong, [verifier(PETER), verifier(ENOCH)])
    assert notes.open_note(wrong, [verifier(ENOCH)]) == TEXT


def test_several_keys_of_one_name_sign_one_note() -> None:
    signers = [notes.make_signer("darktree.dev/ledger/test") for _ in range(3)]
    note = notes.sign("a\n\nb\n", signers)
    for signer in signers:
        assert notes.open_note(note, [signer.verifier]) == "a\n\nb\n"
        assert notes.parse_signer(f"{signer.text()}\n") == signer


@given(st.data())
def test_no_flipped_bit_is_taken_for_the_same_note(data: st.DataObject) -> None:
    content = bytearray(f"{TEXT}\n{PETER_SAYS}".encode())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    try:
        flipped = content.decode()
    except UnicodeDecodeError:
        return
    with pytest.raises(notes.NoteError):
        notes.open_note(flipped, [verifier(PETER)])


@given(st.data())
def test_no_flipped_bit_is_taken_for_the_same_key(data: st.DataObject) -> None:
    for key, parse in ((PETER, notes.parse_verifier), (PETER_SIGNER, notes.parse_signer)):
        content = bytearray(key.encode())
        bit = data.draw(st.integers(0, 8 * len(content) - 1))
        content[bit // 8] ^= 1 << bit % 8
        with pytest.raises(notes.NoteError):
            parse(content.decode(errors="replace"))


@given(st.text())
def test_any_text_is_signed_or_refused(text: str) -> None:
    signer = notes.parse_signer(PETER_SIGNER)
    try:
        note = notes.sign(text, [signer])
    except (notes.MalformedNote, UnicodeEncodeError):
        return
    assert notes.open_note(note, [signer.verifier]) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        TEXT,
        f"{TEXT}\n",
        f"{TEXT}{PETER_SAYS}",
        f"{TEXT}\n{PETER_SAYS}"[:-1],
        f"{TEXT}\n\n{PETER_SAYS}\n",
        f"{TEXT}\r\n{PETER_SAYS}",
        f"{TEXT}\n— PeterNeumann x08g\n",
        f"{TEXT}\n— Peter+Neumann {base64.b64encode(bytes(68)).decode()}\n",
        f"{TEXT}\n- PeterNeumann {base64.b64encode(bytes(68)).decode()}\n",
        f"{TEXT}\n" + PETER_SAYS * (notes.MAX_SIGNATURES + 1),
        "x" * notes.MAX_NOTE_BYTES + f"\n\n{PETER_SAYS}",
    ],
)
def test_what_is_no_note_is_refused_as_such(text: str) -> None:
    with pytest.raises(notes.MalformedNote):
        notes.open_note(text, [verifier(PETER)])


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\u2003b", "a\nb"])
def test_no_key_has_a_name_that_a_line_cannot_hold(name: str) -> None:
    with pytest.raises(notes.MalformedKey):
        notes.make_signer(name)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "name",
        "name+00000000",
        "name+00000000+!",
        PETER.replace("c74f20a3", "C74F20A3"),
        "name+00000000+" + base64.b64encode(b"\x01" + bytes(31)).decode(),
        "name+00000000+" + base64.b64encode(b"\x02" + bytes(32)).decode(),
    ],
)
def test_what_is_no_key_is_refused_as_such(key: str) -> None:
    with pytest.raises(notes.MalformedKey):
        notes.parse_verifier(key)


def test_a_key_that_openssl_or_helm_made_signs_like_gos() -> None:
    go = notes.parse_signer(PETER_SIGNER)
    key = Ed25519PrivateKey.from_private_bytes(go.seed)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    assert notes.parse_signer(f"PeterNeumann\n{pem}") == go
    assert notes.parse_signer(f"PeterNeumann\r\n{pem}\n") == go


def test_a_key_in_pem_without_a_name_or_of_another_kind_is_refused_without_being_repeated() -> None:
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    torn = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQ"
    for text in (pem.decode(), f"name\n{pem.decode()}", f"a name\n{pem.decode()}", f"name\n{torn}"):
        with pytest.raises(notes.MalformedKey) as refusal:
            notes.parse_signer(text)
        assert "MC4CAQ" not in str(refusal.value)
