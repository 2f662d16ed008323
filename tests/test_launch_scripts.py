"""experiments/launch: shell by shellcheck, YAML by a schema, the loop and the queue as they run."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests import documents, programs

LAUNCH = documents.ROOT / "experiments" / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
PAGE = documents.ROOT / "docs" / "tpu.md"
BLOCKS = documents.blocks(PAGE, "bash")
SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.skipif(SHELLCHECK is None, reason="needs shellcheck, of the extra test")
def test_shell_has_no_faults(tmp_path):
    """One call: it is faster."""
    blocks = [tmp_path / f"line_{block.line}.sh" for block in BLOCKS]
    for path, block in zip(blocks, BLOCKS, strict=True):
        path.write_text(f"#!/usr/bin/env bash\n{block.text}")
    command = [SHELLCHECK, "--external-sources", "--source-path=SCRIPTDIR", *SCRIPTS, *blocks]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == ""
    bad = tmp_path / "bad.sh"
    bad.write_text("#!/usr/bin/env bash\ncd $1\n")
    assert "SC2086" in subprocess.run([SHELLCHECK, bad], capture_output=True, text=True).stdout


def programs_of(line):
    """The commands of other programs in a line of a script, as lists of words, without variables."""
    if line.lstrip().startswith("#") or not re.search(r"\b(gcloud|kubectl|docker|xpk) ", line):
        return
    found = []
    for word in [*shlex.shlex(line, posix=True, punctuation_chars=";|&"), ";"]:
        if not set(word) <= set(";|&"):
            found.append(word)
            continue
        first = next(
            (i for i, word in enumerate(found) if word in ("gcloud", "kubectl", "docker", "xpk")), None
        )
        if first is not None:
            yield [word for word in found[first:] if not word.startswith("$")]
        found = []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_commands_of_a_script_are_known(script):
    text = script.read_text()
    for line in text.replace("\\\n", " ").splitlines():
        for words in programs_of(line):
            documents.check_command(words)
    shown = re.findall(r"^#  +(.*experiments/launch/.*)$", text, re.MULTILINE)
    assert shown or script.name in ("create.sh", "install.sh", "stop.sh")
    for command in shown:
        documents.check_command(shlex.split(command))


# --- YAML ---

OPTIONAL = "?"
NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
JOBSET = {
    "apiVersion": re.compile(r"jobset\.x-k8s\.io/v1alpha2"),
    "kind": re.compile("JobSet"),
    "metadata": {"name": NAME, "annotations?": {"alpha.jobset.sigs.k8s.io/exclusive-topology": str}},
    "spec": {
        "failurePolicy": {
            "maxRestarts": int,
            "rules": [
                {
                    "name": re.compile(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?"),
                    "action": re.compile("FailJobSet|RestartJobSet|RestartJobSetAndIgnoreMaxRestarts"),
                    "onJobFailureReasons": [
                        re.compile("PodFailurePolicy|BackoffLimitExceeded|DeadlineExceeded|FailedIndexes")
                    ],
                }
            ],
        },
        "replicatedJobs": [
            {
                "name": NAME,
                "replicas": int,
                "template": {
                    "spec": {
                        "parallelism": int,
                        "completions": int,
                        "backoffLimit": int,
                        "podFailurePolicy": {
                            "rules": [
                                {
                                    "action": re.compile("FailJob|FailIndex|Ignore|Count"),
                                    "onExitCodes": {
                                        "containerName": NAME,
                                        "operator": re.compile("In|NotIn"),
                                        "values": [int],
                                    },
                                }
                            ]
                        },
                        "template": {
                            "spec": {
                                "restartPolicy": re.compile("Never"),  # or there is no podFailurePolicy
                                "terminationGracePeriodSeconds": int,
                                "nodeSelector": {
                                    "cloud.google.com/gke-tpu-accelerator": str,
                                    "cloud.google.com/gke-tpu-topology": re.compile(r"\d+x\d+(x\d+)?"),
                                },
                                "containers": [
                                    {
                                        "name": NAME,
                                        "image": str,
                                        "command": [str],
                                        "resources": {"limits": {"google.com/tpu": int}},
                                    }
                                ],
                            }
                        },
                    }
                },
            }
        ],
    },
}
"""What is used of jobset.x-k8s.io_jobsets.yaml of JobSet 0.8, and of Kubernetes' batch/v1."""
SKYPILOT = {
    "name": NAME,
    "workdir": str,
    "resources": {
        "accelerators": re.compile(r"tpu-v[\w-]+"),
        "accelerator_args": {"runtime_version": str},
        "use_spot": bool,
        "job_recovery": {"recover_on_exit_codes": [int], "max_restarts_on_errors": int},
    },
    "envs": {"WORKDIR": str},
    "setup": str,
    "run": str,
}
"""What is used of SkyPilot's YAML, as its reference of version 0.10 says."""


def faults(value, schema, where=""):
    """Where a value is not as a schema says: keys, lists of one kind, patterns and types."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f"{where}: no mapping"]
        known = {name.rstrip(OPTIONAL): part for name, part in schema.items()}
        needed = {name for name in schema if not name.endswith(OPTIONAL)}
        found = [f"{where}.{name}" for name in (set(value) - set(known)) | (needed - set(value))]
        return found + [
            f for name in set(value) & set(known) for f in faults(value[name], known[name], f"{where}.{name}")
        ]
    if isinstance(schema, list):
        return (
            [f for each in value for f in faults(each, schema[0], f"{where}[]")]
            if value
            else [f"{where}: empty"]
        )
    if isinstance(schema, re.Pattern):
        return [] if isinstance(value, str) and schema.fullmatch(value) else [f"{where}: {value}"]
    return [] if type(value) is schema else [f"{where}: {value}"]


def read(name):
    return yaml.safe_load((LAUNCH / name).read_text())


@pytest.mark.parametrize(("name", "schema"), [("jobset.yaml", JOBSET), ("skypilot.yaml", SKYPILOT)])
def test_yaml_is_as_its_schema_says(name, schema):
    said = read(name)
    assert faults(said, schema) == []
    first = next(iter(said))
    assert faults({**said, first: 3}, schema) == [f".{first}: 3"]
    assert faults({**said, "spek": 1}, schema) == [".spek"]


def test_jobset_agrees_with_itself_and_with_the_exit_codes():
    from gen_jax import ending

    said = read("jobset.yaml")
    (slice_,) = said["spec"]["replicatedJobs"]
    job = slice_["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert job["parallelism"] == job["completions"]
    rows, columns = map(
        int, job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    )
    assert rows * columns == job["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert rule["onExitCodes"]["values"] == [ending.INPUT]
    documents.check_command(container["command"])
    recovery = read("skypilot.yaml")["resources"]["job_recovery"]
    assert recovery["recover_on_exit_codes"] == [ending.PREEMPTED]
    (run,) = read("skypilot.yaml")["run"].strip().splitlines()
    documents.check_command(shlex.split(run))


# --- as they run ---

STAND_IN = 'echo run >> runs; code=$(sed -n "$(wc -l < runs)p" codes); exit "$code"'
"""A command that ends with the codes in a file, one after the other."""


def loop(*command, **variables):
    return subprocess.Popen(
        ["bash", LAUNCH / "loop.sh", *command],
        env=programs.environment(**{"PAUSE": "0", **variables}),
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("codes", "ends", "runs"),
    [
        ([0], 0, 1),
        ([75, 75, 0], 0, 3),
        ([2, 0], 2, 1),
        ([130, 0], 130, 1),
        ([1, 134, 0], 0, 3),
        ([1, 1, 1, 0], 1, 3),
        ([1, 75, 1, 75, 1, 0], 0, 6),
    ],
)
def test_loop_begins_again_what_may_succeed(tmp_path, monkeypatch, codes, ends, runs):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
    process = loop("bash", "-c", STAND_IN, RETRIES="2")
    _, said = process.communicate(timeout=30)
    assert process.returncode == ends
    assert len((tmp_path / "runs").read_text().split()) == runs
    assert said.count("begins again") == runs - 1


@pytest.mark.parametrize(("sent", "ends"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_loop_hands_a_signal_on_and_ends_with_what_came_of_it(tmp_path, monkeypatch, sent, ends):
    """The command takes its time to save, and is told again meanwhile."""
    monkeypatch.chdir(tmp_path)
    code = (
        "import signal, sys, time\n"
        f"signal.signal({int(sent)}, lambda *_: (time.sleep(0.5), open('saved', 'a').write('x'), sys.exit({ends})))\n"
        "open('ready', 'w').close()\ntime.sleep(60)"
    )
    process = loop(sys.executable, "-c", code)
    while not (tmp_path / "ready").exists():
        time.sleep(0.02)
    process.send_signal(sent)
    process.communicate(timeout=30)
    assert process.returncode == ends
    assert (tmp_path / "saved").read_text() == "x"


FAKES = {
    "gcloud": """#!/usr/bin/env bash
# A cloud of one host, whose home is $CLOUD: the first TPU is taken away when its run has begun, the second one stays.
echo "$*" >> "$CLOUD/asked"
command=
for word in "$@"; do case $word in --command=*) command=${word#--command=} ;; esac; done
case "$3 $4" in
  "queued-resources create") echo 1 >> "$CLOUD/tpus" ;;
  "queued-resources describe")
    if [ "$(wc -l < "$CLOUD/tpus")" = 1 ] && [ -e "$CLOUD/gen_jax/begun" ]; then echo SUSPENDED; else echo ACTIVE; fi ;;
  "queued-resources delete") kill -- "-$(cat "$CLOUD/gen_jax/run.pid")" 2>/dev/null || true ;;
  "tpu-vm scp") cp "$5" "$CLOUD/gen_jax.tar.gz" ;;
  "tpu-vm ssh") cd "$CLOUD" && HOME=$CLOUD bash -c "$command" ;;
esac
""",
    "uv": """#!/usr/bin/env bash
case $1 in venv) mkdir -p .venv/bin && ln -sf "$PYTHON" .venv/bin/python ;; esac
""",
}
EXPERIMENT = """
import pathlib, sys, time
pathlib.Path("begun").touch()
tpus = len(pathlib.Path("../tpus").read_text().split())
if tpus == 1:
    time.sleep(60)
pathlib.Path("../done").write_text(" ".join(sys.argv[1:]))
"""


@pytest.mark.skipif(not (documents.ROOT / ".git").exists(), reason="the tree is copied by git")
def test_queue_runs_an_experiment_to_its_end_on_the_second_tpu(tmp_path):
    """With a stand-in for the cloud, which runs what it is told on this machine."""
    cloud, tools = tmp_path / "cloud", tmp_path / "tools"
    (cloud / "gen_jax" / "experiments").mkdir(parents=True)
    (cloud / "gen_jax" / "experiments" / "step99.py").write_text(EXPERIMENT)
    tools.mkdir()
    for name, text in FAKES.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    variables = {"CLOUD": str(cloud), "PYTHON": sys.executable, "PATH": path, "PAUSE": "0.2", "SPOT": "yes"}
    flags = ["--workdir", "gs://my-bucket/it's here"]
    command = ["bash", LAUNCH / "queued.sh", "step99", *flags]
    done = subprocess.run(
        command, env=programs.environment(**variables), timeout=60, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (cloud / "done").read_text() == " ".join(flags)
    asked = (cloud / "asked").read_text()
    assert asked.count("queued-resources create gen-jax --node-id=gen-jax --zone=us-west4-a") == 2
    assert asked.count("--spot") == 2
    assert asked.count("queued-resources delete gen-jax --zone=us-west4-a --force --quiet") == 2
