"""What a user hands to `generate` is checked on the host: each fault is a ValueError that says what to do.

The type checker of the tests would be met first, so the calls are made in a process of their own, without it.
"""

import json
import subprocess
import sys

import numpy as np
import pytest

from gen_jax import checks

FAULTS = {  # a call, and what it says
    "sample(m, weights, KEY, 2, solver=samplers.DDIM())": r"solver must be a name, such as 'ddim'; got DDIM\(.*plan",
    "plan(m, samplers.DDIM())": "solver must be a name",
    "Sampling(samplers.DDIM())": "solver must be a name",
    "samplers.named.plan(m.process, 'ddim', 2.5)": r"nfe must be a whole number, at least 1, got 2\.5",
    "samplers.named.plan(m.process, 'heun', 0)": "nfe must be at least 1, got 0",
    "samplers.named.plan(m.process, 'langevin', 5)": "a step of langevin takes 11 evaluations, got nfe=5",
    "samplers.recommended(m.process, 2.5)": "nfe must be a whole number",
    "Sampling(nfe=True)": "nfe must be a whole number.*, got True",
    "Sampling(guidance='2')": "guidance must be a number, got '2'",
    "sample(m, weights, KEY, 2.5)": r"num must be a whole number, at least 1, got 2\.5",
    "sample(m, weights, KEY, True)": "num must be a whole number",
    "sample(m, weights, KEY, None)": "num must be a whole number, at least 1, got None",
    "sample(m, weights, KEY, 2, chunk=0)": "chunk must be at least 1, got 0",
    "sample(m, weights, KEY, 2, nfe=2.5)": r"nfe must be a whole number, at least 1 or None, got 2\.5",
    "sample(m, weights, KEY, 2, nfe=True)": "nfe must be a whole number",
    "plan(m, nfe=np.float32(2))": "nfe must be a whole number",
    "sample(m, weights, KEY, 2, guidance='3')": "guidance must be a number or None, got '3'",
    "sample(m, weights, KEY, 2, guidance=np.ones(2))": r"guidance must be a number or None, got an array float64 \(2,\)",
    "weight(m, weights, True)": "guidance must be a number or None, got True",
    "sample(m, {'ema': params}, KEY, 2)": r"weights must be a dict of trees.*as \"network\"; got a dict of 'ema'",
    "sample(m, params, KEY, 2)": r"got a dict of 'params'\. Of a tree of parameters alone make",
    "sample(m, None, KEY, 2)": "weights must be a dict of trees by name.*got None",
    "denoiser(m, params)": "weights must be a dict of trees",
    "draw(params, KEY, plan(m), np.arange(2), np.zeros(2, np.int32))": "weights must be a dict of trees",
    "sample(m, {'network': params['params']}, KEY, 2)": r"weights\[\"network\"\] are not those of the network",
    "sample(m, {'network': wider}, KEY, 2)": r"\['params'\].*: expected \(.*8.*\), got \(.*12.*\)\. Take",
    "sample(m, {'network': params, 'guide': wider}, KEY, 2)": r"weights\[\"guide\"\] are not those",
    "draw({'network': wider}, KEY, plan(m), np.arange(2), np.zeros(2, np.int32))": "are not those of the network",
    "sample(m, weights, 0, 2)": r"key of jax\.random\.key\(seed\), got 0: make it with jax\.random\.key\(0\)",
    "sample(m, weights, jax.random.PRNGKey(0), 2)": r"got an array uint32 \(2,\), .*wrap_key_data\(key\)",
    "sample(m, weights, jax.random.split(KEY), 2)": r"one key, got \(2,\) of them",
    "sample(m, weights, None, 2)": "key must be a key of .*, got None",
    "choose(m, 0, np.arange(2))": r"key must be a key of jax\.random\.key",
    "draw(weights, jax.random.PRNGKey(0), plan(m), np.arange(2), np.zeros(2, np.int32))": "wrap_key_data",
    "sample(m, weights, KEY, 2, label=[1, 2, 3])": r"label must be one of all samples, or one of each, \(2,\); got",
    "sample(m, weights, KEY, 2, label=[1, 9])": "from 0 to 3, got 1 to 9",
    "sample(m, weights, KEY, 2, label=2.5)": "labels must be integers, got float64",
    "sample(m, weights, KEY, 2, label=True)": "labels must be integers, got bool",
    "sample(m, weights, KEY, 2, label='three')": "a number from 0 to 3; its classes have no names. Got 'three'",
    "choose(m, KEY, np.arange(2), label=np.zeros((2, 1), int))": r"label must be one .* got an array int64 \(2, 1\)",
    "sample(m, weights, KEY, 2, x_T=[0.0])": r"x_T must have the shape \(2, 28, 28, 1\), got an array float64 \(1,\)",
    "Labels(2, names=('cat',))": "expected 2 different names",
    "Labels(2, names=('cat', 'cat'))": "expected 2 different names",
    "Labels(2, names=('cat', 'dog')).numbers('dgo')": r"cat, dog, or a number .* Got 'dgo'\. Did you mean dog\?",
    "Labels(2, names=('cat', 'dog')).numbers(2)": r"from 0 to 1 \(0 is cat, 1 is dog\), got 2",
}

CALLS = """
import dataclasses, json, sys
import jax, numpy as np
from gen_jax import generate, samplers
from gen_jax.conditioning import Labels
from gen_jax.generate import choose, denoiser, plan, sample, weight
from gen_jax.model import Sampling
from tests import described

def too_late(*args):
    raise RuntimeError("the program was called")

follow = generate.Sampler.__call__
KEY, m = jax.random.key(0), described.model(4)
wide = dataclasses.replace(m, network=dataclasses.replace(m.network, channels=(12,)))
params, wider = described.weights(m), described.weights(wide)
weights, draw, said = {"network": params}, generate.sampler(m, generate.local_mesh(1)), {}
for call in json.load(sys.stdin):
    generate.Sampler.__call__ = too_late if call.startswith("sample(") else follow
    try:
        said[call] = f"returned {eval(call)}"
    except Exception as error:
        said[call] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said():
    command = [sys.executable, "-c", CALLS]
    done = subprocess.run(command, input=json.dumps(list(FAULTS)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("call", FAULTS)
def test_a_fault_is_a_value_error_that_says_what_to_do(said, call):
    kind, _, message = said[call].partition(": ")
    assert kind == "ValueError", said[call]
    with pytest.raises(ValueError, match=FAULTS[call]):
        raise ValueError(message)


@pytest.mark.parametrize("value", [3, np.int32(3), np.array(3)])
def test_whole_numbers_of_any_kind_are_taken(value):
    assert checks.whole("num", value, "sample") == 3
    assert checks.finite("guidance", value) == 3.0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: checks.within("seed", 2**70, 0, 2**32 - 1),
            "at most 4,294,967,295, got 1,180,591,620,717,411,303,424",
        ),
        (lambda: checks.within("rate", 1e30, 0, 1e20), r"at most 1e\+20, got 1e\+30"),
        (lambda: checks.within("n", 2_500_000.0, 0, 1000), "at most 1000, got 2,500,000"),
        (lambda: checks.whole("num", -1, "sample", least=0), "at least 0 samples, got -1"),
        (lambda: checks.whole("num", 0, "sample"), "at least 1 sample, got 0"),
        (
            lambda: checks.whole("num", 41, "example of the data set", most=40),
            "at most 40 examples of the data set, got",
        ),
        (
            lambda: checks.whole("num", 2, "example of the data set", most=1),
            "at most 1 example of the data set, got",
        ),
        (
            lambda: checks.whole("num", 2.5, "example of the data set"),
            "a whole number of examples of the data set",
        ),
    ],
)
def test_numbers_are_said_in_full_and_in_the_plural(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_the_nearest_names_are_offered():
    assert checks.nearest("chanels", ["channels", "blocks"]) == " Did you mean channels?"
    assert checks.nearest("abd", ["abc", "abe", "abf"]) == " Did you mean abf, abe or abc?"
    assert checks.nearest("abd", ["abc", "xyz"]) == " Did you mean abc?"
    assert checks.nearest("xyz", ["channels", "blocks"]) == ""
