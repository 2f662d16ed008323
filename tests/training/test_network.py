"""Two processes that hear each other over a bad line."""

import contextlib
import os
import random
import socket
import threading
import time

import network
import numpy as np
import pytest
from processes import end_all, final, finish, log, start

PORT = 1234


@pytest.fixture(autouse=True)
def ended():
    yield
    end_all()


def test_a_line_loses_packets_and_takes_its_time():
    """As many as are asked for, in their order, and none before its time."""
    (sender, source), (to, receiver) = (
        socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in "ab"
    )
    ended, num, sent, got = threading.Event(), 2000, [], []

    def send():
        for i in range(num):
            sent.append(time.monotonic())
            sender.send(b"%d" % i)
            if i % 20 == 19:
                time.sleep(0.005)

    way = source.fileno(), to.fileno(), random.Random(0), 0.2, 0.05, ended
    threads = [threading.Thread(target=network.carry, args=way), threading.Thread(target=send)]
    with sender, source, to, receiver:
        for thread in threads:
            thread.start()
        receiver.settimeout(2)
        early = 0
        with contextlib.suppress(TimeoutError):
            while True:
                got.append(int(receiver.recv(10)))
                early += time.monotonic() < sent[got[-1]] + 0.05
        ended.set()
        for thread in threads:
            thread.join()
    assert not early
    assert got == sorted(got)
    assert abs(len(got) / num - 0.8) < 4 * np.sqrt(0.2 * 0.8 / num)


def two(workdir, inside, address, *options):
    of = lambda i: {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(i)}
    return [start(workdir, *options, inside=inside[i], **of(i)) for i in range(2)]


@pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/net/tun"), reason="namespaces are made by root, with TUN"
)
@pytest.mark.parametrize("steps", [10, pytest.param(60, marks=pytest.mark.slow)])
def test_two_processes_on_a_bad_line_train_to_the_bits_of_one(steps, tmp_path):
    """One in twenty packets is lost, and each takes 50 ms: the bits are those of one process with two devices."""
    options = ("--num-steps", str(steps), "--checkpoint-every", str(steps // 2))
    one = start(tmp_path / "one", *options, JAX_NUM_CPU_DEVICES="2")
    with network.line(loss=0.05, delay=0.05) as names:
        inside = [("ip", "netns", "exec", name) for name in names]
        both = two(tmp_path / "two", inside, f"{network.ADDRESSES[0]}:{PORT}", *options)
        assert finish(*both, timeout=300) == [0, 0], log(tmp_path / "two")
    assert finish(one) == 0, log(tmp_path / "one")
    for x, y in zip(final(tmp_path / "two"), final(tmp_path / "one"), strict=True):
        np.testing.assert_array_equal(x, y)
