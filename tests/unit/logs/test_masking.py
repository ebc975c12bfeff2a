"""Secrets never reach a log, in whatever form an app shows them."""

import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_node.logs.entries import MAX_TEXT_BYTES, storable
from runtime_node.logs.masking import BLANK, Masker

SECRET = 'pä"ss w/ord\\42'


@pytest.mark.parametrize("form", [str, repr, json.dumps, quote, quote_plus], ids=lambda form: form.__name__)
def test_a_secret_is_blanked_out_in_each_form_it_is_shown_in(form):
    text = Masker([SECRET])(f"before {form(SECRET)} after")
    assert form(SECRET).strip("'\"") not in text
    assert BLANK in text
    assert text.startswith("before ")
    assert text.endswith(" after")


def test_a_short_value_is_no_secret():
    assert Masker(["secret7"])("my secret7 word") == "my secret7 word"


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
