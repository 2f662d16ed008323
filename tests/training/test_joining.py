"""How processes find each other: what says that there are several, made-up machines, a slice of two hosts."""

import http.server
import os
import socket
import subprocess
import sys
import threading

import processes
import pytest

import gen_jax
from gen_jax.training import distributed
from tests.marks import slow

CHIPS = {"v3": "0x0027", "v4": "0x005e", "v5p": "0x0062", "v5e": "0x0063", "v6e": "0x006f", "tpu7x": "0x0076"}
"""PCI numbers of TPUs, v2 with v3's."""
CPU = {"0x1ae0": "0x001f", "0x8086": "0x1237"}
"""Of a virtual machine of Google's without TPUs: its disk is Google's too."""
MACHINE = """
import glob, os, sys, types
found, libtpu = glob.glob, types.ModuleType("libtpu")
glob.glob = lambda pattern, **how: found(pattern.replace("/sys/bus/pci/devices", os.environ["DEVICES"]), **how)
libtpu.get_library_path = lambda: "/none/libtpu.so"
if os.environ["DEVICES"].endswith("tpu"):
    sys.modules["libtpu"] = libtpu
import jax
jax.config.update("jax_platforms", "cpu")
from gen_jax import training
from gen_jax.training import distributed
"""
ENVIRONMENTS = {
    "alone": ({}, None),
    "three variables": (dict.fromkeys(distributed.VARIABLES, "1"), distributed.VARIABLES[0]),
    "SLURM": ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, "SLURM"),
    "a shell of SLURM": ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
    "Open MPI": ({"OMPI_COMM_WORLD_SIZE": "4"}, "Open MPI"),
    "mpirun of one": ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
    "GKE": ({"TPU_WORKER_HOSTNAMES": "t-0.t,t-1.t", "TPU_SKIP_MDS_QUERY": "true"}, "a slice of TPUs"),
    "GKE, one host": ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_SKIP_MDS_QUERY": "true"}, None),
    "slices of one host": (
        {"MEGASCALE_NUM_SLICES": "2", "TPU_WORKER_HOSTNAMES": "localhost"},
        "slices of TPUs",
    ),
    "one slice": ({"MEGASCALE_NUM_SLICES": "1"}, None),
    "a TPU VM": ({"TPU_ML_PLATFORM": "JAX"}, "a TPU VM"),
    "a TPU VM that is alone": ({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, None),
}


def machine(place, devices, tpu):
    """The PCI bus of a machine, and what names it."""
    root = place / ("tpu" if tpu else "cpu")
    for i, (vendor, device) in enumerate(devices):
        path = root / f"0000:00:0{i}.0"
        path.mkdir(parents=True)
        (path / "vendor").write_text(f"{vendor}\n")
        (path / "device").write_text(f"{device}\n")
    return {"DEVICES": str(root)}


def environment(**more):
    """That of a process on another machine."""
    names = ("TPU_ML_PLATFORM", "TPU_SKIP_MDS_QUERY", "JAX_PLATFORMS", "XLA_FLAGS")
    clean = {name: x for name, x in os.environ.items() if name not in names}
    return clean | {"PYTHONPATH": os.path.dirname(os.path.dirname(gen_jax.__file__))} | more


def child(code, **more):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", MACHINE + code],
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_cluster_is_what_the_environment_says(name, monkeypatch):
    said, expected = ENVIRONMENTS[name]
    for variable in {variable for told, _ in ENVIRONMENTS.values() for variable in told}:
        monkeypatch.delenv(variable, raising=False)
    for variable, value in said.items():
        monkeypatch.setenv(variable, value)
    assert distributed.cluster() == expected


@pytest.mark.parametrize("kind", slow(["cpu", *CHIPS], CHIPS))  # in CI TPUs are seen below
def test_a_tpu_is_seen_by_its_number_on_the_bus(kind, tmp_path):
    """None of them is at /dev/accel0, where TPUs v2 to v4 alone are."""
    devices = [("0x1ae0", CHIPS[kind])] * 4 if kind in CHIPS else CPU.items()
    done = child("print(distributed.cluster())", **machine(tmp_path, devices, kind in CHIPS))
    out, error = done.communicate(timeout=120)
    assert out.split("\n")[0] == ("a TPU VM" if kind in CHIPS else "None"), error


class Metadata(http.server.BaseHTTPRequestHandler):
    """What the metadata server says to the hosts of a slice, to each at an address of its own."""

    def do_GET(self):
        says = {
            "agent-worker-number": self.server.worker,
            "worker-network-endpoints": "a:1:127.0.0.1,b:2:127.0.0.2",
            "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-8'\n",
        }
        self.send_response(200)
        self.end_headers()
        self.wfile.write(says[self.path.rsplit("/", 1)[1]].encode())

    def log_message(self, *args):
        pass


def test_hosts_of_a_slice_join_without_a_variable(tmp_path):
    bus = machine(tmp_path, [("0x1ae0", CHIPS["v5e"])] * 4, tpu=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    hosts, servers = [], []
    for worker in "01":
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
        server.worker = worker
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        code = "training.initialize_distributed(); print(jax.process_index(), 'of', jax.process_count())"
        hosts.append(
            child(
                code,
                **bus,
                GCE_METADATA_IP=f"127.0.0.1:{server.server_address[1]}",
                JAX_COORDINATOR_PORT=port,
                no_proxy="127.0.0.1",
            )
        )
    said = [host.communicate(timeout=120) for host in hosts]
    for server in servers:
        server.shutdown()
    assert [out.strip() for out, _ in said] == ["0 of 2", "1 of 2"], said


def test_a_tpu_vm_without_its_metadata_server_says_what_to_do(tmp_path):
    bus = machine(tmp_path, [("0x1ae0", CHIPS["v6e"])], tpu=True)
    host = child(
        "training.initialize_distributed()", **bus, GCE_METADATA_IP="127.0.0.1:9", no_proxy="127.0.0.1"
    )
    _, error = host.communicate(timeout=120)
    assert host.returncode == 1
    assert "this is a TPU VM, but its processes did not find each other" in error
    assert "TPU_SKIP_MDS_QUERY=1 on a TPU VM that is alone" in error


def test_processes_without_a_shared_disk_end_and_say_so(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    places = [tmp_path / "one", tmp_path / "two"]
    started = [
        processes.start(
            place, JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(index)
        )
        for index, place in enumerate(places)
    ]
    try:
        assert processes.finish(*started, timeout=60) == [2, 2]
    finally:
        processes.end_all()
    for place in places:
        said = processes.log(place)
        assert "workdir must be one directory for all 2 processes" in said
        assert "in its " in said
        assert "is not seen by process 1: give a directory on a disk that they share" in said
        assert not list(place.glob(".shared_*"))


def test_preparations_at_the_same_time_do_not_meet(tmp_path):
    """In containers every process is number 1."""
    code = (
        "import os; from gen_jax.training import workdir; os.getpid = lambda: 1\n"
        f"for _ in range(200): workdir.prepare({str(tmp_path)!r})"
    )
    command = [sys.executable, "-c", code]
    started = [subprocess.Popen(command, env=environment(JAX_PLATFORMS="cpu")) for _ in range(2)]
    assert [each.wait(120) for each in started] == [0, 0]
    assert list(tmp_path.iterdir()) == []
