"""The comparison of solvers on a trained network, small: its figures, and that it draws what the library draws."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers_compare as compare
from PIL import Image

from gen_jax import generate, pretrained, samplers
from gen_jax.networks import unet
from tests import described


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A run of a small network with labels."""
    return described.run(tmp_path_factory.mktemp("run"), described.model(10))


def test_plans_have_the_evaluations_that_are_asked_for():
    """Of every solver of the table: as many, or the few less that whole steps leave; none begins in pure noise."""
    proc = described.model().process
    config = compare.Config(evaluations=(10, 5), reference=12)
    plans = compare.make_plans(proc, config)
    assert set(plans) == {*config.solvers, compare.REFERENCE}
    assert [plan.nfe for plan in plans[compare.REFERENCE]] == [12]
    for name in config.solvers:
        for nfe, plan in zip((5, 10), plans[name], strict=True):
            assert nfe - 3 < plan.nfe <= nfe, name
            assert proc.log_snr(np.float64(plan.t[0])) > config.least_log_snr - 1e-3, name
    with pytest.raises(ValueError, match="no_such_solver"):
        compare.make_plans(proc, compare.Config(solvers=("no_such_solver",)))


@pytest.mark.parametrize("name", ["ddpm", "unipc", "ipndm", "heun"])
def test_a_plan_in_a_larger_table_takes_the_same_steps(name):
    """With a closed form for a denoiser: of data that are N(0, 1), `x0_hat = alpha_t x_t`."""
    proc = described.model().process
    plan = samplers.named.plan(proc, name, 6)
    larger = compare.in_one_shape(plan, plan.num_steps + 3, plan.h.shape[1] + 2)
    assert larger.h.shape == (plan.num_steps + 3, plan.h.shape[1] + 2)
    denoise = lambda x, t: proc.alpha(t) * x
    x_T, key = proc.prior(jax.random.key(0), (4, 3)), jax.random.key(1)
    step = jax.jit(lambda state: samplers.step(key, denoise, larger, state)[0])
    state = samplers.init(larger, x_T)
    for _ in range(plan.num_steps):
        state = step(state)
    expected = samplers.sample(key, denoise, plan, x_T)
    rounding = 1e-3  # in float32, with coefficients up to 30
    np.testing.assert_allclose(samplers.finalize(state), expected, atol=rounding)


def test_parameters_are_arguments_of_the_program():
    """As constants the 2.2 M parameters of this network would be 18 MB of text."""
    model = described.model(network=unet.mnist)
    zeros = lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape)
    params = jax.tree.map(zeros, jax.eval_shape(model.init, jax.random.key(0)))
    run = pretrained.Run(model, {"network": params}, {}, 0)
    given = compare.arguments(run, compare.Config(), jnp.arange(3))
    plan = samplers.named.plan(model.process, "unipc", 5)
    assert len(compare.draw.lower(model, given, plan, 5).as_text()) < 2e6


@pytest.mark.slow
def test_it_measures_every_solver(checkpoint, tmp_path, capsys):
    small = {"num": 6, "chunk": 4, "num_exact": 2, "tolerance": 1e-2, "reference": 12, "num_images": 500}
    config = compare.Config(
        checkpoint, tmp_path, solvers=("ddpm", "unipc", "heun"), evaluations=(10, 5), label=3, **small
    )
    summary = compare.main(config)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert json.loads((tmp_path / "config.json").read_text())["options"]["num"] == 6
    pictures = sorted(tmp_path.glob("*.png"))
    names = [path.name for path in pictures]
    assert names == ["compare.png", "grid_ddpm.png", "grid_heun.png", "grid_unipc.png"]
    for path in pictures:
        with Image.open(path) as image:
            assert np.asarray(image.convert("L")).std() > 1
    found = summary["solvers"]
    assert [found[name]["nfe"] for name in config.solvers] == [[5, 10], [5, 10], [5, 9]]
    assert found["ddpm"]["error"] is None, "stochastic"
    for name in ("unipc", "heun"):
        few, many = found[name]["error"]
        assert many < few, name
    for each in found.values():
        assert np.isfinite(each["frechet_distance"]).all()
        assert min(each["standard_error"]) > 0
    assert found[compare.REFERENCE]["equal"]["times_faster"] == 1
    assert "unipc          Fréchet distance by NFE  5: " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_it_draws_what_the_library_draws(checkpoint, guidance):
    """One program for all plans, the same images as of `generate.sampler` with each plan alone, which are bytes."""
    run = pretrained.load_run(checkpoint)
    solvers = ("sde_dpmpp", "pndm")
    config = compare.Config(num=3, chunk=2, solvers=solvers, evaluations=(6,), reference=8, guidance=guidance)
    plans = compare.make_plans(run.model.process, config)
    drawn = compare.draw_all(run, config, plans)
    key, index = jax.random.key(config.seed), np.arange(3)
    cond, weight = generate.choose(run.model, key, index), generate.weight(run.model, run.weights, guidance)
    for name, (plan,) in plans.items():
        expected = generate.sampler(run.model)(run.weights, key, plan, index, cond, weight)
        images = run.model.codec.decode(jnp.asarray(drawn[name][0].x_0))
        assert np.abs(images.astype(int) - np.asarray(expected).astype(int)).max() <= 1, name


def test_without_a_checkpoint_it_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"does not exist: train first"):
        compare.main(compare.Config(tmp_path / "none", tmp_path))


def test_an_unknown_flag_is_an_error():
    with pytest.raises(SystemExit):
        compare.parse(["--nfe", "3"])
    assert compare.parse(["--evaluations", "5", "10", "--num", "3"]).evaluations == (5, 10)
