"""The grids of diffusers: times by hand and from the fixtures, and the algorithms of DDIM and PLMS written out in numpy.

`test_schedule_parity` has the loops of diffusers themselves.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import samplers
from gen_jax.diffusion import prediction
from gen_jax.diffusion.process import DDPM, VP
from gen_jax.samplers import Schedule, multistep, named, schedule
from tests import tiny_sd

LATENT = DDPM(1000, "scaled_linear", 0.00085, 0.012)
STABLE = Schedule(steps_offset=1, to_data=False)
KARRAS = Schedule("leading", steps_offset=1, karras=True)


def asked(solver, n, of=STABLE, **options):
    """The times of a plan as diffusers counts them."""
    return (np.asarray(of.plan(LATENT, solver, n, **options).t) - 1).tolist()


def every(step, first, n):
    return [float(first - step * i) for i in range(n)]


@pytest.mark.parametrize(
    ("solver", "of", "expected"),
    [
        ("ddim", STABLE, every(100, 901, 10)),
        ("ddim", Schedule("trailing"), every(100, 999, 10)),
        ("ddim", Schedule("linspace"), every(111, 999, 10)),
        ("ddpm", STABLE, every(100, 901, 10)),
        ("pndm", STABLE, [901, 801, 801, 701, 601, 501, 401, 301, 201, 101, 1]),
        ("euler", STABLE, every(111, 999, 10)),
        ("euler", Schedule("leading", 1), every(100, 901, 10)),
        ("euler_ancestral", Schedule("trailing"), every(100, 999, 10)),
        ("heun", Schedule("leading", 1), np.repeat(every(100, 901, 10), 2)[1:].tolist()),
        ("dpmpp", STABLE, [999, 899, 799, 699, 599, 500, 400, 300, 200, 100]),
        ("dpmpp", Schedule("leading", 1), every(90, 901, 10)),
        ("unipc", Schedule("trailing", 1), every(100, 999, 10)),
        ("deis", Schedule("leading", 0), every(90, 900, 10)),
        ("lcm", Schedule("linspace", 1), every(100, 999, 10)),
        ("lcm", Schedule(original_steps=25), [999, 919, 799, 719, 599, 519, 399, 319, 199, 119]),
    ],
)
def test_plan_asks_at_the_times_of_diffusers(solver, of, expected):
    if solver == "heun":  # the second evaluation of a step is at its end
        expected = [901.0, *np.repeat(every(100, 801, 9), 2)]
    np.testing.assert_allclose(asked(solver, 10, of), expected, atol=1e-4)


@tiny_sd.needs_fixtures
@pytest.mark.parametrize("model", ["tiny-sd15", "tiny-sd21", "tiny-sdxl"])
@pytest.mark.parametrize(
    ("solver", "of"),
    [("ddim", STABLE), ("euler", Schedule("leading", 1)), ("dpmpp", STABLE), ("pndm", STABLE)],
)
def test_times_of_the_fixtures_are_those_of_the_plan(model, solver, of):
    with np.load(tiny_sd.ROOT / model / "expected.npz") as expected:
        np.testing.assert_array_equal(asked(solver, 10, of), expected[f"{solver}_timesteps"])


# --- the algorithms, as their papers and diffusers have them ---

MATRIX = np.random.default_rng(0).normal(size=(4, 4)) / 4 + np.eye(4) / 2
START = np.random.default_rng(1).normal(size=(3, 4))


def network(x, t, xp=np):
    """`t` as diffusers counts it."""
    return xp.cos(t / 300) * (x @ MATRIX) + xp.sin(t / 70)


def move(x, said, t, s, predicts):
    """DDIM from `t` to `s`, times of gen_jax."""
    (alpha, sigma), (to_alpha, to_sigma) = (
        (LATENT.alpha(np.float64(u)), LATENT.sigma(np.float64(u))) for u in (t, s)
    )
    x_0, eps = {
        "eps": lambda: ((x - sigma * said) / alpha, said),
        "v": lambda: (alpha * x - sigma * said, alpha * said + sigma * x),
        "x0": lambda: (said, (x - alpha * said) / sigma),
    }[predicts]()
    return to_alpha * x_0 + to_sigma * eps


def ddim(timesteps, last, predicts):
    x = START
    for t in timesteps:
        s = t - 1000 // len(timesteps)
        x = move(x, network(x, t), t + 1, s + 1 if s >= 0 else last, predicts)
    return x


def plms(timesteps, last, predicts):
    """Adams and Bashforth on what the network says, with the first step taken twice."""
    x, past = START, []
    for i, t in enumerate(timesteps):
        s = t - 1000 // len(timesteps)
        past = [network(x, t), *past[:3]]
        weights = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
        to = s + 1 if s >= 0 else last
        following = move(x, np.tensordot(weights[min(i, 3)], past, 1), t + 1, to, predicts)
        if i == 0:
            again = network(following, timesteps[1])
            stride = 1000 // len(timesteps)
            following = move(x, (past[0] + again) / 2, timesteps[1] + stride + 1, timesteps[1] + 1, predicts)
        x = following
    return x


def follow(plan, predicts):
    denoise = prediction.as_denoiser(
        lambda x, t: network(x, t[0], jnp), LATENT, predicts=predicts, time=lambda t: t - 1
    )
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda column: jnp.asarray(column, jnp.float64), plan)
        return samplers.sample(jax.random.key(0), denoise, wide, jnp.asarray(START))


@pytest.mark.parametrize("predicts", ["eps", "v", "x0"])
@pytest.mark.parametrize("spacing", schedule.SPACINGS)
@pytest.mark.parametrize(("n", "to_data"), [(10, True), (25, False), (30, True)])
@pytest.mark.parametrize(("solver", "algorithm"), [("ddim", ddim), ("pndm", plms)])
def test_samples_are_those_of_the_algorithm(solver, algorithm, n, to_data, spacing, predicts):
    """Also where diffusers' steps, `1000 // n` long, do not join."""
    if (solver, predicts) == ("pndm", "x0"):
        pytest.skip("the algorithm combines eps of a network that predicts x_0")
    timesteps = {
        "leading": 1000 // n * np.arange(n)[::-1] + 1,
        "linspace": np.linspace(0, 999, n).round()[::-1],
        "trailing": np.arange(1000, 0, -1000 / n).round() - 1,
    }[spacing]
    with jax.enable_x64(True):
        plan = Schedule(spacing, 1, to_data).plan(LATENT, solver, n, predicts=predicts)
        got = follow(plan, predicts)
    np.testing.assert_allclose(got, algorithm(timesteps, 0 if to_data else 1, predicts), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("predicts", ["eps", "v", "x0"])
def test_samples_of_lcm_are_those_of_its_algorithm(predicts):
    """`f` of the boundary conditions, then the noise of the next time; the last answer is the sample."""
    key, x, times = jax.random.key(0), START, [999, 759, 499, 259]
    with jax.enable_x64(True):
        plan = STABLE.plan(LATENT, "lcm", 4, predicts=predicts)
        for i, (t, s) in enumerate(zip(times, [*times[1:], -1], strict=True)):
            x_0 = move(x, network(x, t), t + 1, 0.0, predicts)
            skip, out = 0.25 / ((10 * t) ** 2 + 0.25), 10 * t / np.sqrt((10 * t) ** 2 + 0.25)
            z = multistep.noise(key, jnp.int32(i), jnp.asarray(START), None)
            alpha, sigma = LATENT.alpha(np.float64(s + 1)), LATENT.sigma(np.float64(s + 1))
            x = alpha * (skip * x + out * x_0) + sigma * np.asarray(z)
        np.testing.assert_allclose(follow(plan, predicts), x, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("n", [1, 2, 8])
def test_lcm_draws_the_data_where_the_network_says_the_end_of_the_flow(n):
    """Which on normal data is linear in `x_t`; of any number of steps."""
    mean, deviation, num = 0.7, 0.3, 20_000

    def flow(x, t):
        alpha, sigma = VP().alpha(t), VP().sigma(t)
        return mean + deviation * (x - alpha * mean) / jnp.sqrt((alpha * deviation) ** 2 + sigma**2)

    plan = samplers.LCM().plan(VP(), np.append(np.linspace(1, 0.2, n), 0.0))
    x_T = VP().prior(jax.random.key(1), (num, 1))
    x = np.asarray(jax.jit(lambda x: samplers.sample(jax.random.key(2), flow, plan, x))(x_T), np.float64)
    assert abs(x.mean() - mean) < 5 * deviation / np.sqrt(num)
    assert abs(x.std() / deviation - 1) < 5 / np.sqrt(2 * num)


@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("solver", ["euler", "dpmpp"])
def test_the_last_time_without_signal_is_asked_at_itself(solver, karras):
    """Of `v`, which says `x_0` there; the plan follows diffusers' `sigma / alpha` of 4096."""
    zero = DDPM(1000, "scaled_linear", 0.00085, 0.012, zero_terminal_snr=True)
    plan = Schedule("trailing", karras=karras).plan(zero, solver, 20, predicts="v")
    v = lambda x, t: jnp.sin(t / 3) + 0.1 * x
    t, alpha, sigma = float(plan.t[0]), 4096.0**-1, 1.0
    assert t == pytest.approx(1000, abs=1e-3)
    denoise = prediction.as_denoiser(lambda x, t: v(x, t[0]), zero, predicts="v")
    x = jnp.asarray(START, jnp.float32)
    h = plan.h_x[0] * x + plan.h_x0[0] * denoise(x, plan.t[0])
    np.testing.assert_allclose(h, alpha * x - sigma * v(x, t), atol=1e-3)


@pytest.mark.parametrize(("combined", "order"), [("eps", 2), ("v", 1)])
def test_order_of_pndm_is_less_where_it_combines_v(combined, order):
    """On Gaussian data, whose deviation the flow carries along."""
    denoise = lambda x, t: 0.3 * VP().alpha(t) * x / (0.3 * VP().alpha(t) ** 2 + VP().sigma(t) ** 2)
    deviation = lambda t: np.sqrt(0.3 * VP().alpha(t) ** 2 + VP().sigma(t) ** 2)
    errors = []
    with jax.enable_x64(True):
        for n in (100, 200):
            grid = np.linspace(1.0, 0.05, n + 1)
            plan = samplers.PNDM(combined=combined).plan(VP(), grid)
            x_0 = samplers.sample(jax.random.key(0), denoise, plan, jnp.ones((1, 1)))
            errors.append(abs(float(x_0[0, 0]) - deviation(grid[-1]) / deviation(grid[0])))
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.1


def test_grid_of_karras_is_that_of_the_paper_between_the_same_ends():
    """Euler's runs from the first to the last time of its spacing, DPM-Solver's over all times."""
    ratio = lambda t: np.asarray(LATENT.sigma(t) / LATENT.alpha(t))
    for solver, ends in (("euler", (902.0, 2.0)), ("dpmpp", (1000.0, 1.0))):
        t = np.asarray(KARRAS.plan(LATENT, solver, 10).t, np.float64)
        high, low = ratio(np.array(ends)) ** (1 / 7)
        np.testing.assert_allclose(ratio(t), np.linspace(high, low, 10) ** 7, rtol=1e-4)


@pytest.mark.parametrize(
    ("of", "solver", "expected"),
    [
        (KARRAS, "dpmpp", True),
        (KARRAS, "unipc", True),
        (KARRAS, "euler", False),
        (KARRAS, "ddim", True),
        (STABLE, "heun", False),  # "linspace" divides the times evenly
        (Schedule("leading"), "heun", True),
    ],
)
def test_rounds_where_diffusers_counts_in_whole_numbers(of, solver, expected):
    assert of.rounds(solver) is expected
    t = np.asarray(of.plan(LATENT, solver, 12).t)
    assert expected or not np.allclose(t, t.round(), atol=1e-3)


def test_deviation_is_that_of_the_first_time_unless_leading():
    for of, solver, time in ((STABLE, "euler", 1000.0), (Schedule("trailing"), "heun", 1000.0)):
        assert of.deviation(LATENT, solver, 10) == pytest.approx(LATENT.sigma(np.float64(time)), rel=1e-6)
    assert KARRAS.deviation(LATENT, "euler", 10) == STABLE.deviation(LATENT, "dpmpp", 10) == 1


@pytest.mark.parametrize("of", [STABLE, KARRAS, Schedule("trailing"), Schedule("linspace", 0, True)], ids=str)
@pytest.mark.parametrize("name", named.names())
def test_every_solver_has_a_plan_inside_the_times(name, of):
    row = named.SOLVERS[name]
    plan = of.plan(LATENT, name, 12)
    if name != "pndm_runge_kutta":
        assert plan.nfe == 12 * row.stages + row.extra
    t = np.asarray(plan.t)
    assert t.min() >= 1 - 1e-5
    assert t.max() <= 1000
    assert all(np.isfinite(column).all() for column in plan if column is not None)


@pytest.mark.parametrize(("strength", "expected"), [(1.0, 0), (0.75, 5), (0.33, 14), (0.05, 19)])
def test_first_step_leaves_the_part_of_the_strength(strength, expected):
    first = schedule.first_step(20, strength)
    assert first == expected
    whole = asked("dpmpp", 20)
    assert asked("dpmpp", 20, start=first) == whole[first:]


@pytest.mark.parametrize("solver", ["euler", "dpmpp"])
def test_hand_over_divides_the_steps_between_two_models(solver):
    of = Schedule("leading", 1)
    k = of.hand_over(LATENT, solver, 20, 0.8)
    base, refiner = (asked(solver, 20, of, **{end: k}) for end in ("stop", "start"))
    assert base + refiner == asked(solver, 20, of)
    assert min(base) >= 200 > max(refiner)
    end = of.plan(LATENT, solver, 20, stop=k)
    grid = np.append(1 + np.array(base), 1 + refiner[0])
    jax.tree.map(np.testing.assert_array_equal, end, named.find(solver).solver.plan(LATENT, grid))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule("middle"), "spacing must be one of 'leading', 'linspace', 'trailing', or None"),
        (lambda: Schedule(steps_offset=-1), "steps_offset must be at least 0"),
        (lambda: STABLE.plan(LATENT, "eulr", 10), "Did you mean euler"),
        (lambda: STABLE.plan(LATENT, "ddim", 0), "n must be at least 1, got 0"),
        (lambda: STABLE.plan(LATENT, "ddim", 1001), "do not fit into the 1000 times"),
        (lambda: STABLE.plan(LATENT, "ddim", 1000), "do not fit into the 1000 times"),  # with the offset
        (lambda: STABLE.plan(VP(), "ddim", 10), "needs a discrete process"),
        (lambda: STABLE.plan(LATENT, "ddim", 10, start=10), "at least one of the 10 steps"),
        (lambda: STABLE.hand_over(LATENT, "ddim", 10, 1.5), "part must lie in"),
        (lambda: schedule.first_step(10, 0.05), "leave a step, at least 0.1 of 10"),
        (lambda: schedule.first_step(10, 1.1), "strength must lie in"),
        (lambda: samplers.PNDM(combined="x0"), '"eps" or "v", got .x0'),
        (lambda: Schedule(original_steps=0), "original_steps must be at least 1"),
        (lambda: STABLE.plan(LATENT, "lcm", 51), "do not fit into the 50 times"),
        (lambda: samplers.LCM(0.0), "scale must be positive"),
    ],
)
def test_what_can_not_be_is_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_is_karras_where_the_solver_can_be():
    karras = samplers.Schedule(karras=True)
    assert [karras.is_karras(name) for name in ("euler", "dpmpp", "ddim", "pndm")] == [
        True,
        True,
        False,
        False,
    ]
    assert not samplers.Schedule().is_karras("euler")
