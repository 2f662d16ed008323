"""`gen-jax doctor` on one machine and on two, one of which does not see the directory of the other."""

import os
import socket
import subprocess
import sys

import jax
import pytest

from gen_jax import cli
from gen_jax.launch.doctor import examine
from tests import gcs


def by_name(findings):
    return {finding.name: finding for finding in findings}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GEN_JAX_CACHE", str(tmp_path / "cache"))


def test_a_sound_machine(tmp_path):
    found = by_name(examine(tmp_path / "run"))
    assert not any(finding.wrong for finding in found.values())
    assert f"jax {jax.__version__}" in found["packages"].says
    assert found["processes"].says == "one, alone"
    assert found["devices"].says == "8 of cpu here, 8 in all"
    assert found["workdir"].says == f"{tmp_path / 'run'} can be written"


def test_a_bucket_is_looked_at_as_a_directory_is(capsys):
    with gcs.reached() as bucket:
        cli.main(["doctor", "--workdir", f"{bucket.url}/runs"])
        assert f"{bucket.url}/runs can be written" in capsys.readouterr().out
        bucket.refused = True
        with pytest.raises(SystemExit, match="2"):
            cli.main(["doctor", "--workdir", f"{bucket.url}/runs"])
    assert "must have credentials" in capsys.readouterr().out


def test_what_is_wrong_is_found_and_the_rest_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("TPU_ML_PLATFORM", "JAX")
    (tmp_path / "file").touch()
    lines = list(examine(tmp_path / "file" / "run"))
    wrong = {finding.name: finding.says for finding in lines if finding.wrong}
    assert set(wrong) == {"processes", "devices", "workdir"}
    assert "missing: JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID" in wrong["processes"]
    assert "JAX uses the CPU" in wrong["devices"]
    assert "cannot write to workdir" in wrong["workdir"]
    assert str(lines[-1]).startswith("WRONG")


def test_an_old_python(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 12))
    assert by_name(examine())["python"].wrong


@pytest.mark.parametrize(
    "places",
    [pytest.param(("run", "run"), marks=pytest.mark.slow), ("one", "two")],  # in CI: two that train in one
    ids=["shared", "not shared"],
)
def test_two_hosts_look_together(places, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    joined = {"JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    hosts = [
        subprocess.Popen(
            [sys.executable, "-m", "gen_jax.cli", "doctor", "--workdir", str(tmp_path / place)],
            env=os.environ | joined | {"JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for i, place in enumerate(places)
    ]
    said = [host.communicate(timeout=120)[0] for host in hosts]
    shared = places[0] == places[1]
    assert [host.returncode for host in hosts] == [0 if shared else 2] * 2, said
    for i, text in enumerate(said):
        assert f"number {i} of 2, as JAX_COORDINATOR_ADDRESS says" in text
        assert ("and seen by all processes" if shared else "is not seen by process 1") in text
