"""Time an EM iteration of a full-covariance mixture against scikit-learn, alternating; and the memory of a long one.

    python benchmarks/em.py                     # 200,000 rows, 16 components, 8 and 32 dimensions, float32 and float64
    python benchmarks/em.py --memory            # 5,000,000 rows of 8 dimensions: peak memory of the process

Same start and number of iterations on both sides, tolerance 0; compilation is timed apart; results are waited for.
Printed for each case: milliseconds an iteration of each (median of the rounds), how many times scikit-learn's speed
ours is (median of the pairs' ratios), and how far the log-likelihoods are apart. Needs scikit-learn (extra `bench`
or `test`).
"""

import json
import resource
import statistics
import time
import warnings
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from gen_jax import em, gmm


@dataclass(frozen=True)
class Config:
    """What to time."""

    rows: int = 200_000
    components: int = 16
    dims: tuple[int, ...] = (8, 32)
    iterations: int = 10
    rounds: int = 5
    memory: bool = False
    """Fit 5,000,000 rows once instead, and print the peak memory."""


def problem(rows: int, components: int, dims: int) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping clusters, and means to start from."""
    rng = np.random.default_rng(0)
    centres = 2 * rng.normal(size=(components, dims))
    x = centres[rng.integers(components, size=rows)] + rng.normal(size=(rows, dims))
    return x, x[:components].copy()


def ours(x: np.ndarray, means: np.ndarray, iterations: int):
    """A fit of so many iterations, and the seconds that compiling it took."""
    components, dims = means.shape
    eye = np.broadcast_to(np.eye(dims), (components, dims, dims))
    start = gmm.GMM(*(jnp.asarray(a, x.dtype) for a in (np.full(components, 1 / components), means, eye)))
    rows = jax.device_put(x)

    def fit() -> np.ndarray:
        found = em.fit(jax.random.key(0), rows, components, init=start, tol=0.0, max_iters=iterations)
        return np.asarray(jax.block_until_ready(found).log_likelihood)

    begin = time.perf_counter()
    fit()
    return fit, time.perf_counter() - begin


def theirs(x: np.ndarray, means: np.ndarray, iterations: int):
    """The same of scikit-learn."""
    from sklearn.mixture import GaussianMixture

    components, dims = means.shape
    options = {
        "weights_init": np.full(components, 1 / components, x.dtype),
        "means_init": means.astype(x.dtype),
        "precisions_init": np.stack([np.eye(dims, dtype=x.dtype)] * components),
        "init_params": "random_from_data",  # the cheapest: it is not used
    }

    def fit() -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = GaussianMixture(components, tol=0.0, max_iter=iterations, **options).fit(x)
        return np.asarray(model.lower_bounds_)

    return fit


def seconds(fit) -> float:
    """Wall time of one fit."""
    begin = time.perf_counter()
    fit()
    return time.perf_counter() - begin


def per_iteration(make, iterations: int) -> float:
    """Seconds of an iteration, as the difference of a long and a short fit: what is done once falls out."""
    return (seconds(make[1]) - seconds(make[0])) / iterations


def main(config: Config) -> list[dict]:
    """Print a JSON line a case."""
    if config.memory:
        return [memory()]
    results = []
    for dims in config.dims:
        for dtype in ("float32", "float64"):
            with jax.enable_x64(dtype == "float64"):
                x, means = problem(config.rows, config.components, dims)
                x = x.astype(dtype)
                short, long = 2, 2 + config.iterations
                (ours_short, _), (ours_long, compiling) = (ours(x, means, n) for n in (short, long))
                their_pair = theirs(x, means, short), theirs(x, means, long)
                rounds = [
                    (
                        per_iteration((ours_short, ours_long), config.iterations),
                        per_iteration(their_pair, config.iterations),
                    )
                    for _ in range(config.rounds)
                ]
                a, b = ours_long(), their_pair[1]()
                result = {
                    "dims": dims,
                    "dtype": dtype,
                    "ms_an_iteration": round(1e3 * statistics.median(r[0] for r in rounds), 1),
                    "ms_an_iteration_sklearn": round(1e3 * statistics.median(r[1] for r in rounds), 1),
                    "times_sklearn": round(statistics.median(r[1] / r[0] for r in rounds), 2),
                    "seconds_to_compile": round(compiling, 1),
                    "greatest_relative_difference": float(np.max(np.abs(a - b) / np.abs(b))),
                }
            print(json.dumps(result), flush=True)
            results.append(result)
    return results


def memory() -> dict:
    """Peak memory of a process that fits 5,000,000 rows of 8 dimensions."""
    key, rows, dims, components = jax.random.key(0), 5_000_000, 8, 16
    x = jax.random.normal(key, (rows, dims))
    fit = em.fit(key, x, components, max_iters=3, tol=0.0)
    jax.block_until_ready(fit)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    result = {"rows": rows, "dims": dims, "peak_gib": round(peak, 2), "data_gib": round(x.nbytes / 2**30, 2)}
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
