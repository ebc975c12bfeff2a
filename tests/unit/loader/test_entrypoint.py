"""The grammar of an entrypoint."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_node.loader import parse_entrypoint
from services.rpc.errors import SupervisorError


@pytest.mark.parametrize(
    ("text", "module", "attributes"),
    [
        ("shop:app", "shop", ("app",)),
        ("shop.web.main:create_app", "shop.web.main", ("create_app",)),
        ("shop:site.app", "shop", ("site", "app")),
        ("bücher:läden", "bücher", ("läden",)),
    ],
)
def test_a_well_formed_entrypoint_is_taken_apart(text: str, module: str, attributes: tuple[str, ...]) -> None:
    entrypoint = parse_entrypoint(text)
    assert (entrypoint.module, entrypoint.attributes, str(entrypoint)) == (module, attributes, text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "colon"),
        ("shop", "colon"),
        (":app", "no module"),
        ("shop:", "no attribute"),
        ("shop:app:other", "'app:other'"),
        (".shop:app", "empty"),
        ("shop..web:app", "empty"),
        ("shop:app.", "empty"),
        ("shop/web.py:app", "'shop/web'"),
        ("shop:create_app()", "'create_app()'"),
        ("shop: app", "' app'"),
        ("shop.class:app", "keyword"),
        ("../etc/passwd:x", "empty"),
        ("shop\n:app", "'shop\\n'"),
        ("a" * 300 + ":app", "longer than 256"),
    ],
)
def test_a_malformed_entrypoint_is_refused_with_the_part_that_is_wrong(text: str, why: str) -> None:
    with pytest.raises(SupervisorError) as caught:
        parse_entrypoint(text)
    assert caught.value.reason == "ENTRYPOINT_MALFORMED"
    assert why in caught.value.message
    assert "package.module:attribute" in caught.value.message


@given(st.text(max_size=300))
def test_any_text_is_either_parsed_or_refused_as_malformed(text: str) -> None:
    try:
        parsed = str(parse_entrypoint(text))
    except SupervisorError as error:
        parsed = error.reason
    assert parsed in {text, "ENTRYPOINT_MALFORMED"}
