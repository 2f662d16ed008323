"""Two network namespaces joined by a line that loses packets and takes its time, as the kernel's netem makes one."""

import contextlib
import fcntl
import os
import random
import select
import socket
import struct
import subprocess
import threading
import time
from collections import deque
from pathlib import Path

ADDRESSES = ("10.83.0.1", "10.83.0.2")
TUN, NO_INFO, SET_INTERFACE = 1, 0x1000, 0x400454CA


@contextlib.contextmanager
def line(*, loss: float, delay: float, seed: int = 0):
    """The names of the two namespaces, in which a process is started by `ip netns exec`; for root alone."""
    names = [f"line{os.getpid()}{side}" for side in "ab"]
    ended = threading.Event()
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(_end(name, *pair)) for name, pair in zip(names, _pairs(), strict=True)]
        lost = [random.Random(f"{seed}{side}") for side in "ab"]
        ways = [(ends[0], ends[1], lost[0]), (ends[1], ends[0], lost[1])]
        threads = [threading.Thread(target=carry, args=(*way, loss, delay, ended)) for way in ways]
        for thread in threads:
            thread.start()
        stack.callback(lambda: [thread.join() for thread in threads])
        stack.callback(ended.set)
        yield names


def _pairs():
    return (ADDRESSES, ADDRESSES[::-1])


@contextlib.contextmanager
def _end(name: str, here: str, there: str):
    """One end: the file whose packets are those of the namespace's only device."""
    run = lambda *words: subprocess.run(["ip", *words], check=True)
    hosts = Path("/etc/netns", name, "hosts")  # which `ip netns exec` puts in the place of /etc/hosts
    hosts.parent.mkdir(parents=True)
    hosts.write_text(f"127.0.0.1 localhost\n{here} {socket.gethostname()}\n")
    run("netns", "add", name)
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(end, SET_INTERFACE, struct.pack("16sH22x", name.encode(), TUN | NO_INFO))
        run("link", "set", name, "netns", name)
        run("-n", name, "address", "add", here, "peer", there, "dev", name)
        for device in ("lo", name):
            run("-n", name, "link", "set", device, "up")
        yield end
    finally:
        os.close(end)
        run("netns", "delete", name)
        hosts.unlink()
        hosts.parent.rmdir()


def carry(source: int, to: int, lost: random.Random, loss: float, delay: float, ended: threading.Event):
    """Packets from one end to the other, in their order; some are dropped."""
    under_way: deque[tuple[float, bytes]] = deque()
    while not ended.is_set():
        wait = max(under_way[0][0] - time.monotonic(), 0) if under_way else 0.05
        if select.select([source], [], [], wait)[0]:
            packet = os.read(source, 65536)
            if lost.random() >= loss:
                under_way.append((time.monotonic() + delay, packet))
        while under_way and under_way[0][0] <= time.monotonic():
            with contextlib.suppress(OSError):  # the other end is full: one more that is lost
                os.write(to, under_way.popleft()[1])
