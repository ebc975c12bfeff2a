"""A bad wire between two interfaces: each frame arrives late, some twice or never, and so in another order.

Run as `python -m tests.chaos.wire ONE OTHER [--late S] [--jitter S] [--lost P] [--twice P] [--seed N]`, by
root, in the namespace of both. It takes the place of `netem`, which a kernel may lack.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import itertools
import random
import select
import socket
import time

_ETH_P_ALL = 0x0003
_PACKET_OUTGOING = 4
_SOL_PACKET, _PACKET_VNET_HDR = 263, 15
"""Each frame comes and goes with a head that says whether its checksum is still to be made: the interfaces of
namespaces leave that, and the cutting of large segments, to whoever takes the frame."""
_LARGEST = 1 << 17
_WAITING = 20_000
"""Frames under way; what comes beyond them is lost, as by a full router."""


def opened(interface: str) -> socket.socket:
    """Return a socket for all frames of an interface."""
    frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    frames.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    frames.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    frames.bind((interface, _ETH_P_ALL))
    frames.setblocking(False)
    return frames


def main() -> None:
    """Hand frames on for ever."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("one")
    parser.add_argument("other")
    parser.add_argument("--late", type=float, default=0.0, help="seconds that each frame takes at least")
    parser.add_argument("--jitter", type=float, default=0.0, help="seconds that it may take beyond that")
    parser.add_argument("--lost", type=float, default=0.0, help="share of frames that never arrive")
    parser.add_argument("--twice", type=float, default=0.0, help="share of frames that arrive twice")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    moments = random.Random(options.seed)
    ends = [opened(options.one), opened(options.other)]
    onward = {ends[0]: ends[1], ends[1]: ends[0]}
    numbers = itertools.count()
    waiting: list[tuple[float, int, socket.socket, bytes]] = []
    print("ready", flush=True)
    while True:
        patience = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for end in select.select(ends, [], [], patience)[0]:
            while True:
                try:
                    frame, told = end.recvfrom(_LARGEST)
                except BlockingIOError:
                    break
                if told[2] == _PACKET_OUTGOING or moments.random() < options.lost:
                    continue
                for _ in range(1 + (moments.random() < options.twice)):
                    if len(waiting) < _WAITING:
                        at = time.monotonic() + options.late + moments.uniform(0, options.jitter)
                        heapq.heappush(waiting, (at, next(numbers), onward[end], frame))
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            *_, end, frame = heapq.heappop(waiting)
            with contextlib.suppress(OSError):  # the interface has no room, or is going: lost
                end.send(frame)


if __name__ == "__main__":
    main()
