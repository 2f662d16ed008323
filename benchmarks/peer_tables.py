"""Solvers of diffusers and k-diffusion as tables of coefficients: their own code, run on basis vectors.

Every solver of a fixed number of steps is linear in what it is given: the start, the denoiser's answers, and noise. So
its loop is run once on vectors that say how much of each the state holds (`Recorder`), and the table serves for any
denoiser and any number of samples. Nothing is written again: the schedulers' `step` and the `sample_*` functions are
called, and a change of theirs is seen.

A peer's denoiser is asked at the scheduler's own `sigma`, also where its `timesteps` are rounded.
"""

import copy
import functools
import importlib
import importlib.util
import math
import sys
import types
from typing import Any, NamedTuple
from unittest import mock

import diffusers
import jax
import numpy as np
import torch

from gen_jax.diffusion.process import Process
from gen_jax.samplers import Plan

ASKED, NOISES = 24, 72
"""Most answers and most draws of noise that a table holds."""


class Table(NamedTuple):
    """`x_k = rows[k] @ [x_T, x0_hat_0, ..., x0_hat_{n-1}, z_0, ...]`, scaled so that `alpha_k^2 + sigma_k^2 = 1`."""

    alpha: np.ndarray
    """Where the denoiser is asked, `[n]`."""
    sigma: np.ndarray
    """The same, `[n]`."""
    rows: np.ndarray
    """`[n + 1, 1 + n + m]`; the last one is the sample."""

    @property
    def nfe(self) -> int:
        """How often the denoiser is asked."""
        return len(self.alpha)

    @property
    def stochastic(self) -> bool:
        """Whether noise is added on the way."""
        return self.rows.shape[1] > 1 + self.nfe


class TooManyError(Exception):
    """The solver asks more often than a table holds."""


class Recorder:
    """What a solver does, written down as it asks."""

    def __init__(self, asked: int = ASKED) -> None:
        self.asked = asked
        self.levels: list[tuple[float, float]] = []
        self.rows: list[np.ndarray] = []
        self.drawn = 0
        self.path: dict[float, torch.Tensor] = {}

    @property
    def start(self) -> torch.Tensor:
        """A unit of `x_T`."""
        return self._unit(0)

    def ask(self, x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        """The denoiser's answer for `x = alpha x_0 + sigma eps`, as a basis vector."""
        if len(self.rows) == self.asked:
            raise TooManyError
        norm = math.hypot(alpha, sigma)
        self.levels.append((alpha / norm, sigma / norm))
        self.rows.append(x.double().numpy()[0] / norm)
        return self._unit(len(self.rows))

    def noise(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Fresh noise, as a basis vector."""
        if self.drawn == NOISES:
            raise TooManyError
        self.drawn += 1
        return self._unit(self.asked + self.drawn)

    def brownian(self, s: Any, t: Any) -> torch.Tensor:
        """`(W(t) - W(s)) / sqrt|t - s|` of one Brownian path: overlapping intervals are correlated, as in a tree."""
        s, t = (float(f"{float(u):.6g}") for u in (s, t))
        return (self._walk(t) - self._walk(s)) / math.sqrt(abs(t - s)) if s != t else 0 * self.start

    def _walk(self, u: float) -> torch.Tensor:
        if u not in self.path:
            below = max((v for v in self.path if v < u), default=None)
            above = min((v for v in self.path if v > u), default=None)
            if below is None and above is None:
                self.path[u] = 0 * self.start
            elif below is None or above is None:
                edge = above if below is None else below
                self.path[u] = self.path[edge] + math.sqrt(abs(u - edge)) * self.noise()
            else:
                part = (u - below) / (above - below)
                mean = (1 - part) * self.path[below] + part * self.path[above]
                self.path[u] = mean + math.sqrt(part * (above - u)) * self.noise()
        return self.path[u]

    def table(self, x: torch.Tensor) -> Table:
        """The table that ends in the sample `x`."""
        rows = np.array([*self.rows, x.double().numpy()[0]])
        n, last = len(self.rows), np.flatnonzero(np.abs(rows).max(0) > 1e-12)[-1]
        noises = rows[:, 1 + self.asked : max(last, self.asked) + 1]
        return Table(*np.array(self.levels).T, np.concatenate([rows[:, : 1 + n], noises], axis=1))

    def _unit(self, i: int) -> torch.Tensor:
        """`[1, P]`, 1 at `i`."""
        return torch.eye(1, 1 + self.asked + NOISES, dtype=torch.float64).roll(i, 1)


# --- ours ---


def of_plan(plan: Plan, process: Process) -> Table:
    """A plan of ours; `x_T` counts in units of its deviation, which is 1 up to 2e-5."""
    plan = jax.tree.map(lambda column: np.asarray(column, np.float64), plan)
    recorder, slots = Recorder(plan.num_steps), plan.h.shape[1]
    alpha, sigma = process.alpha(plan.t), process.sigma(plan.t)
    x, past = recorder.start, [0 * recorder.start] * slots
    for k in range(plan.num_steps):
        x0_hat = recorder.ask(x, float(alpha[k]), float(sigma[k]))
        past[k % slots] = plan.h_x[k] * x + plan.h_x0[k] * x0_hat
        x = plan.x[k] * x + sum(c * h for c, h in zip(plan.h[k], past, strict=True))
        if plan.noise is not None:
            x = x + plan.noise[k] * recorder.noise()
    return recorder.table(x)


# --- diffusers ---

BY_TIMESTEPS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "LCMScheduler", "TCDScheduler")
LINEAR = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
UNCLIPPED = {"clip_sample": False}
STATE_IS_Y = ("Euler", "Heun", "LMS", "KDPM2", "DPMSolverSDE", "EDM", "Cosine")
"""Beginnings of the names of schedulers whose state is `x / alpha`."""


def of_diffusers(name: str, options: dict[str, Any], call: dict[str, Any], n: int) -> Table:
    """A scheduler with `n` inference steps; `call` are arguments of its `step`."""
    scheduler, recorder = copy.deepcopy(_made(name, *options.items())), Recorder()
    scheduler.set_timesteps(n)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    module = sys.modules[type(scheduler).__module__]
    sampler = lambda *args, **kwargs: recorder.brownian
    x = recorder.start * float(getattr(scheduler, "init_noise_sigma", 1.0))
    with (
        mock.patch.object(module, "randn_tensor", recorder.noise, create=True),
        mock.patch.object(module, "BrownianTreeNoiseSampler", sampler, create=True),
    ):
        for t in scheduler.timesteps:
            if name.startswith(STATE_IS_Y):
                scheduler.scale_model_input(x, t)
            a, s = _level(scheduler, name, t)
            out = _output(scheduler, name, x, recorder.ask(x, a, s), a, s)
            x = scheduler.step(out, t, x, **call).prev_sample
    return recorder.table(x)


@functools.cache
def _made(name: str, *options: tuple[str, Any]) -> Any:
    """A scheduler: some take half a second to make."""
    make = getattr(diffusers, name)
    known = make.__init__.__wrapped__.__code__.co_varnames
    settings = {key: value for key, value in (LINEAR | UNCLIPPED).items() if key in known}
    return make(**settings | dict(options))


def _level(scheduler: Any, name: str, t: Any) -> tuple[float, float]:
    """`(a, s)` of the scheduler's state, `a x_0 + s eps`."""
    if name in BY_TIMESTEPS:
        alpha_bar = float(scheduler.alphas_cumprod[int(t)])
        return alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    k = scheduler.step_index or 0
    if name == "IPNDMScheduler":
        return float(scheduler.alphas[k]), float(scheduler.betas[k])
    sigma = float(scheduler.sigmas[k])
    if name.startswith("FlowMatch"):
        return 1 - sigma, sigma
    if not getattr(scheduler, "state_in_first_order", True):
        if hasattr(scheduler, "sigmas_interpol"):
            k -= (
                name == "KDPM2AncestralDiscreteScheduler"
            )  # as its step has it; its scale_model_input is one ahead
            sigma = float(scheduler.sigmas_interpol[k])
        elif name == "DPMSolverSDEScheduler":
            sigma = float(scheduler.mid_point_sigma)
    if name.startswith(STATE_IS_Y):
        return 1.0, sigma
    return (1 + sigma**2) ** -0.5, sigma * (1 + sigma**2) ** -0.5


def _output(scheduler: Any, name: str, x: Any, x0_hat: Any, a: float, s: float) -> Any:
    """What the network would say: eps, the velocity, v, or what EDM's preconditioning makes `x0_hat` of."""
    eps = (x - a * x0_hat) / s
    if name.startswith("FlowMatch"):
        return eps - x0_hat
    if name == "IPNDMScheduler":
        return a * eps - s * x0_hat
    if name.startswith(("EDM", "Cosine")):
        skip = scheduler.precondition_outputs(torch.ones(1), torch.zeros(1), torch.tensor(s))
        out = scheduler.precondition_outputs(torch.zeros(1), torch.ones(1), torch.tensor(s))
        return (x0_hat - skip.double() * x) / out.double()
    return eps


# --- k-diffusion ---


@functools.cache
def k_sampling() -> Any:
    """`k_diffusion.sampling`, with none of the rest of the package, which imports a training set-up."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("k_diffusion is not installed: pip install k-diffusion.")
    package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    package.__path__, package.utils = list(spec.submodule_search_locations), utils
    utils.append_dims = lambda x, ndim: x[(...,) + (None,) * (ndim - x.ndim)]
    with mock.patch.dict(sys.modules, {"k_diffusion": package, "k_diffusion.utils": utils}):
        return importlib.import_module("k_diffusion.sampling")


def of_k_diffusion(name: str, options: dict[str, Any], sigmas: torch.Tensor) -> Table:
    """`sample_<name>` on `sigmas`, which end in 0; "dpm_fast" takes the first, the last but one, and `n`."""
    sampler, recorder = getattr(k_sampling(), f"sample_{name}"), Recorder()
    model = lambda y, sigma: recorder.ask(y, 1.0, float(sigma.reshape(-1)[0]))
    given = sampler.__wrapped__.__code__.co_varnames[: sampler.__wrapped__.__code__.co_argcount]
    if "noise_sampler" in given:
        options = options | {"noise_sampler": recorder.brownian}
    sigmas = sigmas.double()
    x = recorder.start * float(torch.sqrt(1 + sigmas[0] ** 2))
    where = (float(sigmas[-2]), float(sigmas[0]), len(sigmas) - 1) if name == "dpm_fast" else (sigmas,)
    with mock.patch.object(torch, "randn_like", recorder.noise):
        x = sampler(model, x, *where, disable=True, **options)
    return recorder.table(x)
