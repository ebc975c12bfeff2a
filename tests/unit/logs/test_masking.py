"""Secrets never reach a log, in whatever form an app shows them."""

import json
import re
from base64 import b64encode, urlsafe_b64encode
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_node.logs.entries import MAX_TEXT_BYTES, storable
from runtime_node.masking import BLANK, Masker

SECRET = 'pä"ss w/ord\\42'


@pytest.mark.parametrize("form", [str, repr, json.dumps, quote, quote_plus], ids=lambda form: form.__name__)
def test_a_secret_is_blanked_out_in_each_form_it_is_shown_in(form):
    text = Masker([SECRET])(f"before {form(SECRET)} after")
    assert form(SECRET).strip("'\"") not in text
    assert BLANK in text
    assert text.startswith("before ")
    assert text.endswith(" after")


def test_a_short_value_is_blanked_out_where_it_is_a_word_of_its_own():
    mask = Masker(["hunter2", "p4ss"])
    assert mask('key="hunter2" p4ss, user_p4ss_1 (hunter2)') == 'key="***" ***, user_***_1 (***)'
    assert mask("hunter25 was p4ssed") == "hunter25 was p4ssed"


def test_what_occurs_by_chance_is_no_secret():
    assert Masker(["abc", "1", ""])("abc 1") == "abc 1"


@pytest.mark.parametrize("secret", ["hunter2", "p4ss", SECRET, "canary-value-123", "ü" * 9])
@pytest.mark.parametrize("before", [b"", b"u", b"u:", b"user:"])
@pytest.mark.parametrize("after", [b"", b"!", b"\n"])
def test_an_encoded_secret_is_blanked_out_wherever_it_stands(secret, before, after):
    raw = secret.encode()
    mask = Masker([secret])
    for encode in (b64encode, urlsafe_b64encode):
        text = encode(before + raw + after).decode()
        masked = mask(f"Basic {text} end")
        if len(raw) * 8 // 6 < 7:  # too little of it stands by itself: see the proto's comment
            continue
        assert BLANK in masked
        assert masked.endswith(" end")
        left = masked.removeprefix("Basic ").removesuffix(" end").replace(BLANK, "")
        assert len(left) <= len(text) - len(raw) * 8 // 6 + 2
    for text in (raw.hex(), raw.hex().upper(), (before + raw).hex()):
        assert raw.hex() not in mask(f"x{text}x").lower()


@pytest.mark.parametrize("lower", [False, True])
def test_a_secret_in_a_url_is_blanked_out_however_it_is_quoted(lower):
    text = quote(SECRET, safe="")
    text = re.sub("%..", lambda code: code[0].lower(), text) if lower else text
    assert Masker([SECRET])(f"https://x/?p={text}&q") == f"https://x/?p={BLANK}&q"


def test_the_bytes_of_a_secret_as_python_shows_them_are_blanked_out():
    assert Masker([SECRET])(repr(SECRET.encode())) == f"b'{BLANK}'"


@given(st.lists(st.text(alphabet="ab", min_size=8, max_size=14), min_size=1, max_size=30))
def test_a_tree_of_many_secrets_finds_each_of_them(secrets):
    mask = Masker(secrets)
    for secret in secrets:
        assert mask(f"-{secret}-") == f"-{BLANK}-"


def test_many_secrets_that_continue_each_other_are_found():
    secrets = ["x" * length for length in range(8, 264)]
    assert Masker(secrets)(f"<{'x' * 263}>") == f"<{BLANK}>"
    assert Masker(["s" * 65536])(f"<{'s' * 65536}>") == f"<{BLANK}>"


def test_of_a_secret_of_several_lines_each_line_is_blanked_out():
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\n-----END KEY-----\n"
    assert Masker([key])("MIIEvQIBADANBgkq") == BLANK
    assert "MIIE" not in Masker([key])(f"key: {key}")


def test_the_longest_secret_wins():
    assert Masker(["abcdefgh", "abcdefgh-and-more"])("abcdefgh-and-more") == BLANK


@given(st.text(alphabet="abcxyz", max_size=30), st.integers(1, 15))
def test_of_a_secret_that_is_cut_no_long_piece_stays(around, cut):
    secret = "0123456789ABCDEF"
    mask = Masker([secret])
    head = mask(around + secret[:cut], ends_cut=True)
    tail = mask(secret[cut:] + around, begins_cut=True)
    assert len(set(head) & set(secret)) < 4
    assert len(set(tail) & set(secret)) < 4


@given(st.text())
def test_what_is_stored_is_valid_utf_8_of_bounded_size(text):
    assert len(storable(text * 2000).encode()) <= MAX_TEXT_BYTES
