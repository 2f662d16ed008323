import numpy as np
import pytest

from gen_jax import samplers
from gen_jax.diffusion.process import DDPM, VP, Process
from gen_jax.samplers import times

PROCESSES = [DDPM(), DDPM(schedule="cosine"), DDPM(num_steps=37), VP(), VP(beta_max=8.0, t_min=0.01)]
GRIDS = [
    (grid, final)
    for grid, finals in [
        (times.uniform, ("zero", "denoise", "stop")),
        (times.log_snr, ("denoise", "stop")),
        (times.karras, ("denoise", "stop")),
    ]
    for final in finals
]


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize(("grid", "final"), GRIDS, ids=[f"{g.__name__}-{f}" for g, f in GRIDS])
@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_grid_is_n_plus_one_decreasing_times_that_a_solver_accepts(process, grid, final, n):
    t = grid(process, n, final=final)
    assert t.shape == (n + 1,)
    assert t.dtype == np.float64
    assert t[0] == process.t_max
    assert (np.diff(t) < 0).all()
    assert t[-1] == 0 if final != "stop" else abs(t[-1] - process.t_min) < 1e-9
    assert samplers.DDIM().plan(process, t).nfe == n


def test_uniform_of_all_steps_is_every_step():
    np.testing.assert_array_equal(times.uniform(DDPM(), 1000), np.arange(1000, -1, -1))
    np.testing.assert_array_equal(times.uniform(DDPM(), 1000, final="denoise"), np.arange(1000, -1, -1))


@pytest.mark.parametrize("n", [3, 10, 50, 333, 999])
def test_uniform_of_a_discrete_process_is_integer_and_even(n):
    for final in ("zero", "denoise"):
        t = times.uniform(DDPM(), n, final=final)
        np.testing.assert_array_equal(t, np.round(t))
        steps = -np.diff(t if final == "zero" else t[:-1])
        assert steps.max() - steps.min() <= 1


def test_uniform_grids_of_the_literature():
    np.testing.assert_array_equal(times.uniform(DDPM(), 4), [1000, 750, 500, 250, 0])
    np.testing.assert_array_equal(times.uniform(DDPM(), 4, final="denoise"), [1000, 667, 334, 1, 0])


@pytest.mark.parametrize("process", [DDPM(), DDPM(schedule="cosine"), VP()], ids=str)
def test_log_snr_and_karras_are_even_in_their_own_variable(process):
    steps = np.diff(process.log_snr(times.log_snr(process, 20, final="stop")))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    t = times.karras(process, 20, final="stop", rho=7.0)
    steps = np.diff((process.sigma(t) / process.alpha(t)) ** (1 / 7))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)


def test_denoise_is_stop_and_one_step_more():
    for grid in (times.log_snr, times.karras):
        np.testing.assert_array_equal(grid(VP(), 8)[:-1], grid(VP(), 7, final="stop"))


class Flow(Process):
    t_min, t_max = 1e-3, 1.0

    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return t


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: times.uniform(VP(), 0), "at least 1 step, got 0"),
        (lambda: times.uniform(DDPM(num_steps=10), 11), "11 steps are too many.*10 discrete"),
        (lambda: times.uniform(VP(), 2000), 't_min = 0.001.*"denoise"'),
        (lambda: times.uniform(VP(), 10, final="data"), "'zero', 'denoise', 'stop'.*'data'"),
        (lambda: times.log_snr(VP(), 10, final="zero"), "'denoise', 'stop'.*'zero'"),
        (lambda: times.log_snr(Flow(), 10), "finite at t_max.*uniform"),
        (lambda: times.karras(VP(), 10, rho=0.0), "rho must be positive.*7"),
    ],
)
def test_grid_rejects_bad_input(make, words):
    with pytest.raises(ValueError, match=words):
        make()
