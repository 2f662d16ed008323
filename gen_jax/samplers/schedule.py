"""The grids of diffusers: what a `scheduler_config.json` says of times, and the plan that follows for a solver.

    schedule = samplers.Schedule(spacing="leading", steps_offset=1, to_data=False)      # of Stable Diffusion
    plan = schedule.plan(process.DDPM(1000, "scaled_linear", 0.00085, 0.012), "euler", 20)
    x_0 = samplers.sample(key, denoise, plan, x_T)

A model that was published with diffusers was tried with the numbers that its schedulers make of this file, and these
differ from one scheduler to the next: in the spacing where the file states none, in whether one time is left out, in
where the last step ends. `FAMILIES` has these differences. Times are those of gen_jax, 1 to T: one more than diffusers'.

    solver                                       the schedulers of diffusers with the same numbers
    "ddim", "pndm"                               DDIM, PNDM with `skip_prk_steps`
    "pndm_runge_kutta"                           PNDM without, where `2 n` divides `T` and spacing is not "linspace"
    "ddpm", "euler", "euler_ancestral"           DDPM, EulerDiscrete, EulerAncestralDiscrete (but for the draws of noise)
    "heun", "lms"                                HeunDiscrete, LMSDiscrete
    "dpmpp", "dpmpp_exact", "sde_dpmpp"          DPMSolverMultistep of order 2, with "midpoint" or "heun", and its SDE
    "unipc"                                      UniPCMultistep, which is of order 2 and "bh2" by default
    "lcm"                                        LCM (but for the draws of noise); for a distilled network alone

Other solvers of `samplers.named` take the grid of their like: `FAMILIES`, and that of "dpmpp" where there is no row.
Their numbers are not those of diffusers, which has them with other coefficients ("dpmpp3", "deis") or not at all.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gen_jax import checks
from gen_jax.diffusion.marginals import marginals
from gen_jax.diffusion.prediction import check_predicts
from gen_jax.diffusion.process import DDPM, Process, at_log_snr
from gen_jax.samplers import named
from gen_jax.samplers.exponential import DEIS, LMS, DPMSolverPP, SDEDPMSolverPP, UniPC
from gen_jax.samplers.multistep import Plan
from gen_jax.samplers.pseudo import IPNDM, PNDM
from gen_jax.samplers.solvers import DDIM, LCM, Solver
from gen_jax.types import Count, Predicts, Size, SolverName, Spacing

SPACINGS: tuple[Spacing, ...] = ("leading", "linspace", "trailing")

OF_DIFFUSERS: Mapping[str, Solver] = {"unipc": UniPC(2, variant="bh2"), "lcm": LCM()}
"""Where diffusers' solver of a name is another than that of `samplers.named`, or is not there."""

LARGEST = 2.0**12
"""What diffusers puts for the infinite `sigma / alpha` of a time without signal; a time between T - 1 and T has it."""


class Family(NamedTuple):
    """What the grids of some schedulers have in common."""

    spacing: Spacing = "linspace"
    """Where the file does not state one."""
    spare: int = 0
    """How many times are left out at the end near the data, of "leading" and "linspace"."""
    whole: bool = True
    """Whether all are whole numbers; otherwise those of "linspace" and of Karras's grid are not."""
    karras: bool = False
    """Whether they can be Karras's; otherwise what the file says of them is of no effect."""
    strides: bool = False
    """Whether every step is `T // n` long, which is not where the next one begins unless `n` divides `T`."""
    distilled: bool = False
    """Whether they are some of the `original_steps` of distillation, whatever the spacing."""


STRIDES, SIGMAS, MULTISTEP = (
    Family("leading", strides=True),
    Family(whole=False, karras=True),
    Family(spare=1, karras=True),
)
FAMILIES: Mapping[str, Family] = {
    **dict.fromkeys(("ddim", "ddim_half", "ddim_one", "pndm", "pndm_runge_kutta"), STRIDES),
    **dict.fromkeys(("ddpm", "ddpm_beta"), Family("leading")),
    **dict.fromkeys(("euler", "euler_ancestral", "heun", "heun_churn", "lms", "lms2", "lms3"), SIGMAS),
    "lcm": Family(distilled=True),
}
"""By the name of a solver; `MULTISTEP` for the others."""


@checks.checked
@dataclass(frozen=True)
class Schedule:
    """What a `scheduler_config.json` says of the times of a plan; None is what it does not state.

    Args:
        spacing: `timestep_spacing`. Of `n` steps among `T` times "leading" takes every `T // n`-th from the first one on,
            "linspace" divides all of them evenly, and "trailing" takes every `T / n`-th from the last one back (Lin et
            al. 2024, Table 2). Not stated, it is "leading" for "ddim", "pndm" and "ddpm", and "linspace" for the others.
        steps_offset: how much later than the first one "leading" begins; 1 for Stable Diffusion.
        to_data: `set_alpha_to_one`: whether the last step of "ddim" and "pndm" ends at the data, `t = 0`, or at the first
            time with noise, `t = 1`. Not stated, it does for "ddim" and does not for "pndm". All others end at the data.
        karras: `use_karras_sigmas`: times evenly spaced in `(sigma / alpha)^(1/7)`, `samplers.times.karras`, for the
            solvers that have it in diffusers: not "ddim", "pndm", "ddpm".
        original_steps: `original_inference_steps`: how many times a distilled network was asked at, every `T //
            original_steps`-th; "lcm" takes `n` of these.

    Raises:
        ValueError: another spacing, a negative offset, or no original step.
    """

    spacing: Spacing | None = None
    steps_offset: int = 0
    to_data: bool | None = None
    karras: bool = False
    original_steps: int = 50

    def __post_init__(self) -> None:
        if self.spacing is not None and self.spacing not in SPACINGS:
            raise ValueError(
                f"spacing must be one of {', '.join(map(repr, SPACINGS))}, or None; got {self.spacing!r}."
            )
        checks.whole("steps_offset", self.steps_offset, "time", least=0)
        checks.whole("original_steps", self.original_steps, "step")

    @checks.checked
    def plan(
        self,
        process: Process,
        solver: SolverName,
        n: Count,
        *,
        predicts: Predicts = "eps",
        start: Size = 0,
        stop: Size | None = None,
    ) -> Plan:
        """The plan of `n` steps, which are diffusers' `num_inference_steps`, or of a part of them.

        "heun" evaluates the denoiser `2 n - 1` times and "pndm" `n + 1` times; `plan.nfe` says so.

        Args:
            process: a discrete process.
            solver: a name of `samplers.named`, or "lcm"; "unipc" is diffusers' UniPC, of order 2.
            n: number of steps of the whole grid.
            predicts: what the network says; of "v", "pndm" combines the answers as they are, as diffusers does.
            start: the first step that is taken. `first_step(n, strength)` for image to image: from data with the noise of
                `plan.t[0]`. (Not diffusers' numbers are then those of "pndm", which begins a step earlier there and later
                is off by one, of "lms", which leaves out the answers that it does not have, and of "lcm" in its own
                pipeline, which puts all steps after the noise of the strength.)
            stop: the first one that is not taken. `hand_over` for a refiner.

        Raises:
            ValueError: an unknown solver, a process that is not discrete, no step, or more steps than fit.
        """
        method = find(solver)
        check_predicts(predicts)
        t, s = (end[start:stop] for end in self._steps(process, solver, n))
        if not len(t):
            raise ValueError(
                f"start and stop must leave at least one of the {n} steps, got {start} and {stop}."
            )
        if isinstance(method, PNDM):
            method = dataclasses.replace(method, combined="v" if predicts == "v" else "eps")
        if isinstance(method, DDIM) and _family(solver).strides:
            return method.between(marginals(process, t), marginals(process, s))
        if isinstance(method, PNDM) and method.warmup == "heun":
            again = t[1:2], t[1:2] + _num_steps(process) // n
            asked, begin = (np.concatenate([t[:1], x, t[1:]]) for x in again)
            end = np.concatenate([s[:1], t[1:2], s[1:]])
            return method.between(process, asked, marginals(process, begin), marginals(process, end))
        last = s[-1] if s[-1] < t[-1] else 0.0
        return _asked_in_training(
            _of_few_steps(method, len(t)).plan(process, np.append(t, last)), process, predicts
        )

    @checks.checked
    def rounds(self, solver: SolverName) -> bool:
        """Whether diffusers asks the network at whole times alone: `rounded` of `generate.denoiser`.

        Karras's grid for "dpmpp" and "unipc" lies between whole times. The network is asked at the nearest ones, while
        `alpha` and `sigma` stay those of the grid. "euler", "heun" and "lms" ask where the grid is.
        """
        family = _family(solver)
        return family.whole or not (self.karras or (self.spacing or family.spacing) == "linspace")

    @checks.checked
    def is_karras(self, solver: SolverName) -> bool:
        """Whether the grid of this solver is Karras's."""
        return _family(solver).karras and self.karras

    @checks.checked
    def deviation(self, process: Process, solver: SolverName, n: Count) -> float:
        """What diffusers multiplies standard normal noise by, to start from; in the unit of `x_t`.

        It is 1, but `sigma_t` of the first time for "euler", "heun", "lms" where the spacing is not "leading".
        """
        family = _family(solver)
        if family.whole or (self.spacing or family.spacing) == "leading":
            return 1.0
        return float(process.sigma(self._steps(process, solver, n)[0][0]))

    @checks.checked
    def hand_over(self, process: Process, solver: SolverName, n: Count, part: float) -> int:
        """How many of `n` steps come before the `part` of all times at which a refiner takes over.

        Diffusers' `denoising_end` of the one pipeline and `denoising_start` of the other: with 0.8 the plan with `stop`
        at this number takes the steps that begin in the noisier 800 of 1000 times, and that with `start` the others.
        """
        if not 0 <= part <= 1:
            raise ValueError(
                f"part must lie in [0, 1], got {part}: 0.8 leaves a fifth of the times to the refiner."
            )
        cut = round(_num_steps(process) - part * _num_steps(process))
        return int((self._steps(process, solver, n)[0] - 1 >= cut).sum())

    def _steps(
        self, process: Process, solver: str, n: int
    ) -> tuple[Float[np.ndarray, "{n}"], Float[np.ndarray, "{n}"]]:
        """Where each step begins, which is where the network is asked, and where it ends."""
        family, counted = _family(solver), self._counted(process, solver, n)
        if family.strides:
            to_data = solver.startswith("ddim") if self.to_data is None else self.to_data
            s = counted - _num_steps(process) // n
            return counted + 1, np.where(s >= 0, s + 1, 0.0 if to_data else 1.0)
        t = counted + 1
        if family.karras:
            t = at_log_snr(process, -2 * np.log(self._ratios(process, family, counted)))
        return t, np.append(t[1:], 0.0)

    def _counted(self, process: Process, solver: str, n: int) -> Float[np.ndarray, "{n}"]:
        """The times as diffusers counts them, from 0."""
        family, total = _family(solver), _num_steps(process)
        spacing, m = self.spacing or family.spacing, checks.whole("n", n, "step") + family.spare
        most = min(self.original_steps, total) if family.distilled else total
        if family.distilled:
            counted = total // most * (most - np.floor(np.linspace(0, most, n, endpoint=False))) - 1
        elif spacing == "linspace":
            counted = np.linspace(0, total - 1, m)[::-1][:n]
            counted = counted.round() if family.whole else counted
        elif spacing == "leading":
            counted = total // m * np.arange(m, dtype=float)[::-1][:n] + self.steps_offset
        else:
            counted = np.arange(total, 0, -total / n)[:n].round() - 1
        if m > most or counted[0] > total - 1:
            raise ValueError(
                f"{n} steps of {solver} with {self} do not fit into the {most} times that there are: take fewer."
            )
        return counted

    def _ratios(
        self, process: Process, family: Family, counted: Float[np.ndarray, "n"]
    ) -> Float[np.ndarray, "n"]:
        """`sigma / alpha` at these times; linear between whole ones."""
        with np.errstate(over="ignore"):
            table = np.exp(-0.5 * np.asarray(process.log_snr(1.0 + np.arange(_num_steps(process)))))
        table[np.isinf(table)] = LARGEST
        ratios: np.ndarray = np.interp(counted, np.arange(_num_steps(process)), table)
        if not self.karras:
            return ratios
        high, low = (table[-1], table[0]) if family.whole else (ratios[0], ratios[-1])
        return np.asarray(np.linspace(high ** (1 / 7), low ** (1 / 7), len(counted)) ** 7)


@checks.checked
def find(solver: SolverName) -> Solver:
    """The solver that a schedule has of a name; ValueError where there is none."""
    own = OF_DIFFUSERS.get(solver) if isinstance(solver, str) else None
    return named.find(solver).solver if own is None else own


@checks.checked
def first_step(n: Count, strength: float) -> int:
    """The first of `n` steps for image to image with this `strength` in diffusers; with 1 it is the first of all.

    ValueError for a strength that leaves no step.
    """
    if not (0 < strength <= 1 and int(n * strength)):
        raise ValueError(
            f"strength must lie in (0, 1] and leave a step, at least {1 / n:g} of {n} steps; got {strength}."
        )
    return n - int(n * strength)


def _family(solver: str) -> Family:
    find(solver)
    return FAMILIES.get(solver, MULTISTEP)


def _of_few_steps(method: Solver, n: int) -> Solver:
    """The same solver of a lower order where there are fewer steps than its order."""
    if isinstance(method, DPMSolverPP | SDEDPMSolverPP | UniPC | DEIS | LMS | IPNDM) and method.order > n:
        return dataclasses.replace(method, order=n)
    return method


def _asked_in_training(plan: Plan, process: Process, predicts: Predicts) -> Plan:
    """The same steps, but the network is asked at T where they begin with `LARGEST`, as in diffusers, and not before T.

    It says `v`, of which the denoiser makes `x0_hat` with `alpha, sigma` of the time `asked`; of the plan's time it is

        alpha_t x_t - sigma_t v = (alpha_t - sigma_t alpha_asked / sigma_asked) x_t + sigma_t / sigma_asked x0_hat

    Between T - 1 and T diffusers counts time by the logarithm of `sigma / alpha`.
    """
    t, end = np.asarray(plan.t, np.float64), float(_num_steps(process))
    late = (t > end - 1) & (t < end)
    if predicts not in ("v", "x0") or not late.any():
        return plan
    first, *log_ratio = -0.5 * np.asarray(process.log_snr(np.append(end - 1, np.where(late, t, end - 1))))
    part = np.clip((log_ratio - first) / (np.log(LARGEST) - first), 0, 1)
    asked = np.where(late, end - 1 + part, t)
    at, there = marginals(process, t), marginals(process, asked)
    columns = {"t": asked, "levels": np.stack([there.alpha, there.sigma], axis=1)}
    if predicts == "v":
        x = np.where(late, at.alpha - at.sigma * there.alpha / there.sigma, 0.0)
        x0 = np.where(late, at.sigma / there.sigma, 1.0)
        columns |= {"h_x": np.asarray(plan.h_x + plan.h_x0 * x), "h_x0": np.asarray(plan.h_x0 * x0)}
    return plan._replace(**{name: jnp.asarray(column, plan.t.dtype) for name, column in columns.items()})


def _num_steps(process: Process) -> int:
    if not isinstance(process, DDPM):
        raise ValueError(f"a schedule needs a discrete process, such as DDPM(); got {process}.")
    return process.num_steps
