"""Order of convergence of every solver, measured, and its error at few evaluations: makes gen_jax/samplers/README.md.

    python benchmarks/samplers_table.py            # about ten minutes on two cores

The data are a mixture whose denoiser is exact, so all error is the solver's. Deterministic solvers are measured against
scipy's solution of the same ordinary differential equation, in float64; stochastic ones against exact samples.
"""

import argparse
import datetime
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp
from scipy.special import ndtr, ndtri

from gen_jax import samplers
from gen_jax.diffusion import prediction, process
from gen_jax.diffusion.process import Process
from gen_jax.samplers import Plan, times
from gen_jax.samplers.named import SOLVERS

WEIGHTS, MEANS, STDS = (0.3, 0.7), (-1.0, 1.0), (0.3, 0.5)
"""Data: a mixture of two normals."""


PROCESSES = {
    "DDPM": process.DDPM(),
    "DDPM scaled": process.DDPM(schedule="scaled_linear", beta_min=0.00085, beta_max=0.012),
    "DDPM cosine": process.DDPM(schedule="cosine"),
    "DDPM zero SNR": process.DDPM(zero_terminal_snr=True),
    "VP": process.VP(),
    "VP cosine": process.VP(schedule="cosine"),
    "LogSNR": process.LogSNR(lambda t: 10 - 20 * t),
    "SubVP": process.SubVP(),
    "VE": process.VE(),
    "EDM": process.EDM(),
    "FlowMatching": process.FlowMatching(),
}
EVALUATIONS = (5, 6, 8, 10, 15, 20, 50)
GRIDS = {
    "VP": ("times.log_snr", times.log_snr),
    "EDM": ("times.karras", times.karras),
    "FlowMatching": ("times.uniform", times.uniform),
}
"""The processes and grids of the second table."""

LOW, HIGH = -5.0, 7.0
"""Values of `log_snr` that every process has, between which orders are measured."""


def x0_hat(y, r):
    """`E[x_0 | y]` of the mixture at `y = x_0 + r eps`, for numpy and jax."""
    xp = y.__array_namespace__()
    variance = [s**2 + r**2 for s in STDS]
    logits = [
        np.log(w) - 0.5 * xp.log(v) - 0.5 * (y - m) ** 2 / v
        for w, m, v in zip(WEIGHTS, MEANS, variance, strict=True)
    ]
    each = [m + s**2 / v * (y - m) for m, s, v in zip(MEANS, STDS, variance, strict=True)]
    second = 1 / (1 + xp.exp(logits[0] - logits[1]))
    return (1 - second) * each[0] + second * each[1]


def denoiser(proc: Process, predicts: str = "x0"):
    """The exact denoiser, by way of a network that `predicts`."""

    def apply(x, t):
        alpha, sigma = jnp.asarray(proc.alpha(t[0])), jnp.asarray(proc.sigma(t[0]))
        safe = jnp.where(alpha > 0, alpha, 1.0)
        mean = sum(w * m for w, m in zip(WEIGHTS, MEANS, strict=True))
        exact = jnp.where(alpha > 0, x0_hat(x / safe, sigma / safe), mean)
        return prediction.from_x0(exact, x, alpha, sigma, predicts=predicts)

    return prediction.as_denoiser(apply, proc, predicts=predicts)


@functools.cache
def compiled(name: str, predicts: str) -> Callable:
    """`(key, plan, x_T) -> x` for a process by its name, compiled once for all plans of a shape."""
    denoise = denoiser(PROCESSES[name], predicts)
    return jax.jit(lambda key, plan, x_T: samplers.sample(key, denoise, plan, x_T))


# --- order of convergence ---


def flow(y: np.ndarray, r: float, s: float) -> np.ndarray:
    """Solution of the probability-flow ODE `dy / d log r = y - x0_hat(y, r)` from `r` to `s`, by scipy."""
    slope = lambda u, y: y - x0_hat(y, np.exp(u))
    return solve_ivp(slope, np.log([r, s]), y, rtol=1e-12, atol=1e-13, method="DOP853").y[:, -1]


def graded(proc: Process, n: int, rho: float = 0.0) -> np.ndarray:
    """Even steps of `log_snr`, or of `(sigma / alpha)^(1 / rho)`, the first of them divided geometrically.

    A multistep solver begins with steps of low order. Their error is small where little can be known yet, as at the
    start of sampling, but here it would hide what the others do.
    """
    values = np.linspace(LOW, HIGH, n + 1)
    if rho:
        values = -2 * rho * np.log(np.linspace(*np.exp([-0.5 * LOW / rho, -0.5 * HIGH / rho]), n + 1))
    first = LOW + (values[1] - LOW) * 2.0 ** -np.arange(12, 0, -1)
    return np.asarray(process.at_log_snr(proc, np.concatenate([values[:1], first, values[1:]])))


def even(proc: Process, n: int) -> np.ndarray:
    """Even steps of `sigma / alpha`, from 4 to 0.4."""
    return np.asarray(process.at_log_snr(proc, -2 * np.log(np.linspace(4.0, 0.4, n + 1))))


def padded(plan: Plan, width: int = 4) -> Plan:
    """The same plan with a ring of `width` slots at least, so that many share a compilation."""
    n, slots = plan.h.shape
    h = np.zeros((n, max(width, slots)))
    for age in range(slots):
        steps = np.arange(age, n)
        h[steps, (steps - age) % h.shape[1]] = np.asarray(plan.h)[steps, (steps - age) % slots]
    return plan._replace(h=jnp.asarray(h))


def order(
    solver: str,
    name: str,
    predicts: str = "x0",
    *,
    steps: tuple[int, int] = (320, 640),
    grid: Callable[[Process, int], np.ndarray] = graded,
) -> float:
    """Observed order: slope of the logarithm of the error between two numbers of steps, in float64."""
    proc, row, errors = PROCESSES[name], SOLVERS[solver], []
    if grid is even:  # of high order, and not graded: asymptotic later
        steps = 2 * steps[0], 2 * steps[1]
    with jax.enable_x64(True):
        for n in steps:
            t = grid(proc, n)
            alpha, r = proc.alpha(t[[0, -1]]), np.exp(-0.5 * proc.log_snr(t[[0, -1]]))
            y = np.linspace(-2.0, 2.0, 9) * np.hypot(1, r[0])
            plan = padded(row.solver.plan(proc, t))
            x = compiled(name, predicts)(jax.random.key(0), plan, jnp.asarray(alpha[0] * y)[:, None])
            errors.append(np.sqrt(np.mean((np.asarray(x)[:, 0] / alpha[1] - _flow(r[0], r[1], *y)) ** 2)))
    return float(np.log(errors[0] / errors[1]) / np.log(steps[1] / steps[0]))


@functools.cache
def _flow(r: float, s: float, *y: float) -> np.ndarray:
    return flow(np.array(y), r, s)


# --- error at few evaluations ---


@functools.cache
def quantiles(n: int) -> np.ndarray:
    """`n` evenly likely points of the mixture: its inverse distribution function, by bisection."""
    u, low, high = (np.arange(n) + 0.5) / n, np.full(n, -9.0), np.full(n, 9.0)
    for _ in range(60):
        middle = 0.5 * (low + high)
        cdf = sum(w * ndtr((middle - m) / s) for w, m, s in zip(WEIGHTS, MEANS, STDS, strict=True))
        low, high = np.where(cdf < u, middle, low), np.where(cdf < u, high, middle)
    return 0.5 * (low + high)


def plan_of(solver: str, name: str, nfe: int) -> Plan | None:
    """The plan of most steps that asks at most `nfe` times."""
    proc, (_, grid) = PROCESSES[name], GRIDS[name]
    for n in range(nfe, 0, -1):
        try:
            plan = SOLVERS[solver].solver.plan(proc, grid(proc, n))
        except ValueError:  # too few steps for the order, or alpha = 0 at the start
            continue
        if plan.nfe <= nfe:
            return plan
    return None


def distance(solver: str, name: str, nfe: int, n: int = 20_000) -> float:
    """Wasserstein distance (2) of `n` samples from the data: in one dimension, sorted against quantiles.

    Starts are evenly likely points of the prior, so that only noise drawn on the way is random.
    """
    plan = plan_of(solver, name, nfe)
    if plan is None:
        return np.nan
    proc = PROCESSES[name]
    x_T = proc.sigma(proc.t_max) * ndtri((np.arange(n) + 0.5) / n)
    x = compiled(name, "x0")(jax.random.key(1), plan, jnp.asarray(x_T, jnp.float32)[:, None])
    return float(np.sqrt(np.mean((np.sort(np.asarray(x, float)[:, 0]) - quantiles(n)) ** 2)))


# --- the page ---


def evaluations_per_step(solver: str) -> str:
    """How often the denoiser is asked in a step, and how often besides."""
    row = SOLVERS[solver]
    return f"{row.stages} ({row.extra:+d} in all)" if row.extra else str(row.stages)


def order_cell(solver: str, name: str, grid: Callable[[Process, int], np.ndarray]) -> str:
    """The observed order, or its range over the five predictions."""
    found = [order(solver, name, predicts, grid=grid) for predicts in prediction.PREDICTIONS]
    low, high = f"{min(found):.2f}", f"{max(found):.2f}"
    return low if low == high else f"{low} to {high}"


def claims(solver: str) -> list[tuple[str, int, Callable[[Process, int], np.ndarray]]]:
    """What a row claims, `(its name on the page, order, grid)`; nothing of a stochastic solver."""
    row = SOLVERS[solver]
    both = (solver, row.order, graded), (f"{solver}, even", row.even_order, even)
    return [(said, order, grid) for said, order, grid in both if order]


def rows_of_orders() -> Iterator[list[str]]:
    """The first table."""
    from pages import code

    yield ["name", "solver", "evaluations a step", "claims", *PROCESSES]
    for solver, row in SOLVERS.items():
        about = [f"`{code(row.solver)}`", evaluations_per_step(solver)]
        for said, claimed, grid in claims(solver):
            yield [said, *about, str(claimed), *(order_cell(solver, p, grid) for p in PROCESSES)]
        if row.stochastic:
            yield [solver, *about, "stochastic", *[""] * len(PROCESSES)]


def rows_of_distances(name: str) -> Iterator[list[str]]:
    """The second table, for one process."""
    yield ["solver", *map(str, EVALUATIONS)]
    for solver in SOLVERS:
        found = [distance(solver, name, nfe) for nfe in EVALUATIONS]
        yield [solver, *("" if np.isnan(d) else f"{d:.4f}" for d in found)]


PAGE = """# Which solver, and how well it is known

Made by `python benchmarks/samplers_table.py` on {date}, from commit {commit}. Data: a mixture of two normals in one
dimension, whose denoiser is exact; all error is the solver's. What to take at few evaluations: RECOMMENDED.md.

## Order of convergence

Observed in float64 from 320 and 640 steps, even in `log_snr` between {low:g} and {high:g}, against scipy's solution of
the same ordinary differential equation. A number stands for all five predictions ("eps", "x0", "v", "score",
"velocity"), or the range over them. `UniPC` is measured with its corrector. The first steps of a multistep solver are
of lower order; the first interval is divided geometrically so that they do not count. Rows called "even" are measured
on grids that are even in `sigma / alpha`, where `PNDM`'s warm-up has the order of the rest. The names are those of
`samplers.named`.

{orders}

## Error at few evaluations

Wasserstein distance (2) of 20,000 samples from the data, by number of evaluations of the denoiser. Stochastic solvers
cannot come below about 0.005, the error of sampling. Empty: not possible with so few.

{distances}
"""


def main() -> None:
    """Measures everything and writes the page."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    from pages import commit, markdown  # here, because the tests load this file alone

    distances = [
        f"### `{name}`, `{grid}`\n\n{markdown(rows_of_distances(name))}" for name, (grid, _) in GRIDS.items()
    ]
    page = PAGE.format(
        date=datetime.date.today(),
        commit=commit(),
        low=LOW,
        high=HIGH,
        orders=markdown(rows_of_orders()),
        distances="\n\n".join(distances),
    )
    path = Path(samplers.__file__).with_name("README.md")
    path.write_text(page)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
