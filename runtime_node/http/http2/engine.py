"""The protocol state of one connection, as `h2` keeps it, of the front's side and of its client's."""

from __future__ import annotations

from collections.abc import Iterable

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes, Settings
from hpack import Decoder, HeaderTuple, HPACKDecodingError

from runtime_node.http.limits import FrontLimits
from runtime_node.http.reader import PREFACE

WINDOW = 1024 * 1024
"""Of the connection, opened again at once: a stream whose app does not read holds up no other."""
TABLE_BYTES = 4096
"""Of the headers that both sides remember, whatever a client offers to remember more."""
_FIRST_WINDOW = 65_535
_UNLIMITED = 2**31 - 1
_LIST_ALLOWANCE = 16 * 1024
"""What HPACK counts beside a header's bytes (RFC 7541 §4.1); the node's own bound is told by 431."""


_MOST_UPDATES = 2
"""Changes of the table's size that a head may begin with (RFC 7541 §4.2): the least, and the last."""


class _HeadDecoder(Decoder):
    """Refuses a head that does nothing but change the size of the table, a byte each time."""

    _updates = 0

    def decode(self, data: bytes, raw: bool = False) -> Iterable[HeaderTuple]:
        self._updates = 0
        return super().decode(data, raw)

    def _update_encoding_context(self, data: bytes | memoryview) -> int:
        self._updates += 1
        if self._updates > _MOST_UPDATES:
            raise HPACKDecodingError("too many changes of the table's size")
        return super()._update_encoding_context(data)


class Engine(H2Connection):
    """The state of a connection; it remembers fewer of the streams that have ended than is usual."""

    MAX_CLOSED_STREAMS = 1_000

    def __init__(self, *, client_side: bool, max_list_bytes: int) -> None:
        # Requests are checked by stream, where one can be refused; responses when the app gives them.
        config = H2Configuration(
            client_side=client_side,
            header_encoding=None,
            validate_inbound_headers=client_side,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        super().__init__(config)
        self.decoder = _HeadDecoder(max_list_bytes)


def new_engine(limits: FrontLimits) -> H2Connection:
    """Return the state of a connection whose preface has come; its first words are to be sent."""
    most = limits.max_header_bytes + _LIST_ALLOWANCE
    engine = Engine(client_side=False, max_list_bytes=most)
    told = {SettingCodes.MAX_CONCURRENT_STREAMS: limits.max_streams, SettingCodes.MAX_HEADER_LIST_SIZE: most}
    engine.local_settings = Settings(client=False, initial_values=told)
    engine.initiate_connection()
    # A client may begin more before it has read the settings: that is no reason to end all the others.
    engine.local_settings = Settings(
        client=False, initial_values={**told, SettingCodes.MAX_CONCURRENT_STREAMS: _UNLIMITED}
    )
    engine.increment_flow_control_window(WINDOW - _FIRST_WINDOW)
    engine.receive_data(PREFACE)
    return engine


def new_client_engine(max_head_bytes: int) -> H2Connection:
    """Return the state of a connection to a node that nothing was said on; its first words are to be sent."""
    engine = Engine(client_side=True, max_list_bytes=max_head_bytes)
    told = {SettingCodes.ENABLE_PUSH: 0, SettingCodes.MAX_HEADER_LIST_SIZE: max_head_bytes}
    engine.local_settings = Settings(client=True, initial_values=told)
    engine.initiate_connection()
    return engine


def keep_table_small(engine: H2Connection) -> None:
    """Remember no more headers than TABLE_BYTES for a peer that offers to remember more."""
    encoder = engine.encoder
    encoder.header_table_size = min(encoder.header_table_size, TABLE_BYTES)
