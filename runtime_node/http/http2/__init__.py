"""HTTP/2 by prior knowledge (RFC 9113): a connection whose streams go through the front as requests do.

What a request means, who may enter and how it is refused is said where HTTP/1.1 says it; here are frames.
"""

from runtime_node.http.http2.connection import Http2Connection

__all__ = ["Http2Connection"]
