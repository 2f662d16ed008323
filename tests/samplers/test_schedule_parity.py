"""Plans of `samplers.Schedule` against the loops of diffusers' own schedulers, with a network written in numpy.

Both sides get the same noise and the same network, which knows its time: a wrong time, a wrong last step and a wrong
rounding are all seen. diffusers computes in float32.
"""

import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import samplers
from gen_jax.diffusion import prediction
from gen_jax.pretrained import schedulers
from gen_jax.samplers import multistep
from gen_jax.samplers import schedule as grids

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
scheduling_lcm = pytest.importorskip("diffusers.schedulers.scheduling_lcm")

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
MATRIX = (0.6 * np.eye(6) + 0.15 * RNG.normal(size=(6, 6))).astype(np.float32)
SHIFT, START = (RNG.normal(size=(size, 6)).astype(np.float32) for size in (1, 3))

STABLE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}
SCHEDULERS = {
    "ddim": (diffusers.DDIMScheduler, {}),
    "pndm": (diffusers.PNDMScheduler, {"skip_prk_steps": True}),
    "pndm_runge_kutta": (diffusers.PNDMScheduler, {"skip_prk_steps": False}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "lms": (diffusers.LMSDiscreteScheduler, {}),
    "dpmpp": (diffusers.DPMSolverMultistepScheduler, {}),
    "dpmpp_exact": (diffusers.DPMSolverMultistepScheduler, {"solver_type": "heun"}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
    "lcm": (diffusers.LCMScheduler, {}),
}
KINDS = ("epsilon", "v_prediction", "sample")
EVALUATIONS = {"heun": lambda n: 2 * n - 1, "pndm": lambda n: n + 1, "pndm_runge_kutta": lambda n: n + 9}


def network(x, t, xp=np):
    """The same in numpy and jax; `t` as diffusers counts it."""
    return xp.cos(t / 300) * (x @ MATRIX) + xp.sin(t / 70) * SHIFT


def config_of(solver, options):
    """What the file says when diffusers makes the scheduler of `options`, with defaults not stated."""
    kind, own = SCHEDULERS[solver]
    return {"_class_name": kind.__name__} | STABLE | own | options


def noise_of_ours():
    """The noise of each step of `samplers.sample`, for that which draws it."""
    steps = itertools.count()
    draw = jax.jit(lambda k: multistep.noise(jax.random.key(0), k, jnp.asarray(START), None))
    return lambda *_, **options: torch.from_numpy(np.array(draw(jnp.int32(next(steps)))))


def theirs(solver, options, n, start=0):
    """The latents after diffusers' loop, and the times it asked at."""
    kind, own = SCHEDULERS[solver]
    scheduler = kind.from_config(STABLE | own | options)
    scheduler.set_timesteps(n)
    timesteps = scheduler.timesteps[start * scheduler.order :]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start * scheduler.order)
    x = torch.from_numpy(START)
    scheduling_lcm.randn_tensor = noise_of_ours()
    if start:
        x = scheduler.add_noise(torch.zeros_like(x), x, timesteps[:1].repeat(len(x)))
    else:
        x = x * scheduler.init_noise_sigma
    for t in timesteps:
        given = scheduler.scale_model_input(x, t)
        said = network(given.numpy(), np.float32(t))
        x = scheduler.step(torch.from_numpy(said), t, x).prev_sample
    return x.numpy(), timesteps.numpy()


@functools.cache
def follow(process, predicts, rounded):
    apply = lambda x, t: network(x, t[0], jnp)
    time = (lambda t: process.snap(t) - 1) if rounded else (lambda t: t - 1)
    denoise = prediction.as_denoiser(apply, process, predicts=predicts, time=time)
    return jax.jit(lambda plan, x: samplers.sample(jax.random.key(0), denoise, plan, x))


def ours(solver, options, n, start=0):
    process, predicts, schedule, _ = schedulers.read(config_of(solver, options))
    plan = schedule.plan(process, solver, n, predicts=predicts, start=start)
    first = schedule.deviation(process, solver, n) if not start else process.sigma(np.float64(plan.t[0]))
    x_T = jnp.asarray(START * np.float32(first))
    return follow(process, predicts, schedule.rounds(solver))(plan, x_T), plan, schedule


def check(solver, options, n, start=0, tolerance=1e-4, apart=0.05):
    """`apart`: by how much the times may differ at which the network is asked."""
    got, plan, schedule = ours(solver, options, n, start)
    want, asked = theirs(solver, options, n, start)
    t = np.asarray(plan.t)
    t = t.round() if schedule.rounds(solver) else t
    assert len(t) == len(asked)
    np.testing.assert_allclose(t - 1, asked, atol=apart)
    error = np.abs(got - want).max() / np.abs(want).max()
    assert error < tolerance
    return error


@pytest.mark.parametrize("n", [10, 20, 25])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("solver", SCHEDULERS)
def test_samples_are_those_of_diffusers(solver, spacing, kind, n):
    if solver.startswith("pndm") and kind == "sample":
        pytest.skip("diffusers refuses it")
    if (solver, spacing) == ("pndm_runge_kutta", "linspace"):
        pytest.skip("the halves of steps that do not join are not those of ours")
    check(solver, {"prediction_type": kind, "timestep_spacing": spacing}, n)


@pytest.mark.parametrize("solver", SCHEDULERS)
def test_samples_where_no_spacing_is_stated_are_those_of_diffusers(solver):
    check(solver, {}, 10)


@pytest.mark.parametrize("n", [7, 30, 50])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("solver", ["ddim", "pndm", "euler", "dpmpp", "unipc"])
def test_samples_are_those_of_diffusers_where_steps_do_not_divide_the_times(solver, spacing, n):
    check(solver, {"timestep_spacing": spacing}, n)
    check(solver, {"timestep_spacing": spacing, "set_alpha_to_one": True, "steps_offset": 0}, n)


@pytest.mark.parametrize("n", [10, 20, 25])
@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("solver", ["euler", "heun", "lms", "dpmpp", "unipc"])
def test_samples_on_the_grid_of_karras_are_those_of_diffusers(solver, spacing, kind, n):
    options = {"timestep_spacing": spacing, "use_karras_sigmas": True, "prediction_type": kind}
    check(solver, options, n)


@pytest.mark.parametrize("n", [10, 20, 25])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("solver", ["ddim", "euler", "dpmpp", "unipc"])
def test_samples_of_zero_terminal_snr_are_those_of_diffusers(solver, spacing, n):
    """They put a little signal where there is none, and so does the plan."""
    options = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": spacing}
    check(solver, options, n)


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("solver", SCHEDULERS)
def test_samples_with_other_betas_are_those_of_diffusers(solver, schedule):
    """Those that carry `x / alpha` begin with 20,000 times the noise for the cosine, where their float32 is coarse."""
    coarse = schedule != "linear" and solver in ("euler", "heun", "lms")
    options = {"beta_schedule": schedule, "prediction_type": "v_prediction"}
    check(solver, options, 10, tolerance=5e-3 if coarse else 1e-4)


@pytest.mark.parametrize("strength", [0.3, 0.75, 1.0])
@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("solver", ["ddim", "euler", "heun", "dpmpp", "dpmpp_exact", "unipc", "lcm"])
def test_images_from_images_begin_where_those_of_diffusers_do(solver, karras, strength):
    start = grids.first_step(20, strength)
    assert start == 20 - min(int(20 * strength), 20)
    check(solver, {"use_karras_sigmas": karras}, 20, start=start)


@pytest.mark.parametrize("solver", ["euler", "dpmpp", "unipc"])
def test_samples_of_zero_terminal_snr_on_the_grid_of_karras_are_those_of_diffusers(solver):
    options = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "use_karras_sigmas": True}
    for n in (10, 25):
        check(solver, options, n, apart=0.1)


@pytest.mark.parametrize("n", [10, 25])
@pytest.mark.parametrize("solver", SCHEDULERS)
def test_evaluations_are_as_many_as_diffusers_takes(solver, n):
    _, plan, _ = ours(solver, {}, n)
    assert plan.nfe == EVALUATIONS.get(solver, lambda n: n)(n)


@pytest.mark.parametrize("solver", SCHEDULERS)
def test_fields_of_the_schedulers_are_known(solver):
    fields = set(inspect.signature(SCHEDULERS[solver][0].__init__).parameters) - {"self"}
    assert fields <= {*schedulers.ALLOWED, *schedulers.READ, *schedulers.IDLE}
