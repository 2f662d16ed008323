"""The comparison of samplers on a trained network, small."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers_compare as compare
import step09_diffusion as step09

from gen_jax import samplers
from tests import described
from tests.test_experiments import figures


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of step 9 with a small network: its directory."""
    from configs import step09 as configs

    small = dataclasses.replace(configs.PRESETS["mnist_small"], network=described.SMALL)
    workdir = tmp_path_factory.mktemp("step09")
    flags = "--steps 4 --batch-size 16 --num 3 --nfe 3 --steps-per-call 2 --checkpoint-every 2 --log-every 2"
    step09.main(step09.parse([*flags.split(), "--workdir", str(workdir)], {"mnist_small": small}))
    return workdir


@pytest.mark.slow
def test_samplers_compare_measures_every_solver(run, tmp_path):
    small = {"num": 6, "chunk": 4, "num_exact": 2, "tolerance": 1e-2, "reference": 12, "num_images": 500}
    config = compare.Config(run, tmp_path, solvers=("ddpm", "unipc", "heun"), evaluations=(10, 5), **small)
    summary = compare.main(config)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert json.loads((tmp_path / "config.json").read_text())["num"] == 6
    assert figures(tmp_path) == {"compare.png", "grid_ddpm.png", "grid_unipc.png", "grid_heun.png"}
    found = summary["solvers"]
    assert [found[name]["nfe"] for name in config.solvers] == [[5, 10], [5, 10], [5, 9]]
    assert found["ddpm"]["error"] is None, "stochastic"
    for name in ("unipc", "heun"):
        few, many = found[name]["error"]
        assert many < few, name
    for each in found.values():
        assert np.isfinite(each["frechet_distance"]).all()
        assert min(each["standard_error"]) > 0


@pytest.mark.slow
def test_samplers_compare_draws_what_sample_draws(run):
    """One program for all plans: the first samples of a padded plan are those of `samplers.sample` by its own."""
    model = compare.load(compare.Config(run))
    config = compare.Config(num=3, chunk=2, solvers=("sde_dpmpp", "pndm"), evaluations=(6,), reference=8)
    plans = compare.make_plans(model.proc, config)
    drawn = compare.draw_all(model, config, plans)
    x_T, denoise, key = model.start(model.params, jax.random.key(config.seed), jnp.arange(3))
    for name, (plan,) in plans.items():
        expected = jax.jit(lambda plan: samplers.sample(key, denoise, plan, x_T))(plan)
        np.testing.assert_allclose(drawn[name][0].x_0, expected, atol=1e-4, err_msg=name)


def test_samplers_compare_without_a_checkpoint_says_what_to_run(tmp_path):
    with pytest.raises(ValueError, match=r"run python experiments/step09_diffusion.py first"):
        compare.main(compare.Config(tmp_path / "none", tmp_path))
