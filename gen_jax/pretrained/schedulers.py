"""A `scheduler_config.json` of diffusers: the process, what the network predicts, and the grids of the solvers.

    config = json.loads(path.read_text())
    process, predicts, schedule, solver = schedulers.read(config)
    plan = schedule.plan(process, solver, 20, predicts=predicts)

`schedulers.write` is the inverse. What a scheduler does that is not done here is refused by the name of the field and its
value: a model is not drawn with other numbers than its makers' unseen.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from gen_jax import checks
from gen_jax.diffusion.process import DDPM
from gen_jax.samplers.schedule import SPACINGS, Schedule
from gen_jax.types import Betas, Predicts

Meant = TypeVar("Meant")

SOLVERS: Mapping[str, Mapping[object, str] | str] = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": {"fixed_small": "ddpm", "fixed_large": "ddpm_beta"},
    "PNDMScheduler": {False: "pndm_runge_kutta", True: "pndm"},
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "HeunDiscreteScheduler": "heun",
    "LMSDiscreteScheduler": "lms",
    "DPMSolverMultistepScheduler": {
        ("dpmsolver++", 1, "midpoint"): "dpmpp1",
        ("dpmsolver++", 1, "heun"): "dpmpp1",
        ("dpmsolver++", 2, "midpoint"): "dpmpp",
        ("dpmsolver++", 2, "heun"): "dpmpp_exact",
        ("dpmsolver++", 3, "midpoint"): "dpmpp3",
        ("dpmsolver++", 3, "heun"): "dpmpp3",
        ("sde-dpmsolver++", 1, "midpoint"): "sde_dpmpp1",
        ("sde-dpmsolver++", 1, "heun"): "sde_dpmpp1",
        ("sde-dpmsolver++", 2, "midpoint"): "sde_dpmpp",
        ("sde-dpmsolver++", 2, "heun"): "sde_dpmpp_exact",
    },
    "DPMSolverSinglestepScheduler": {2: "dpmpp_single", 3: "dpmpp3_single"},
    "UniPCMultistepScheduler": {
        (1, "bh1"): "unipc1_bh1",
        (1, "bh2"): "unipc1_bh2",
        (2, "bh2"): "unipc",
        (3, "bh2"): "unipc_bh2",
    },
    "DEISMultistepScheduler": {2: "deis2", 3: "deis"},
    "LCMScheduler": "lcm",
}
"""By class, and by the values of its fields in `CHOOSES`."""

CHOOSES: Mapping[str, Mapping[str, object]] = {
    "DDPMScheduler": {"variance_type": "fixed_small"},
    "PNDMScheduler": {"skip_prk_steps": False},
    "DPMSolverMultistepScheduler": {
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "solver_type": "midpoint",
    },
    "DPMSolverSinglestepScheduler": {"solver_order": 2},
    "UniPCMultistepScheduler": {"solver_order": 2, "solver_type": "bh2"},
    "DEISMultistepScheduler": {"solver_order": 2},
}
"""The fields of a class that choose its solver, and their defaults."""

BETAS: Mapping[str, Betas] = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
}
PREDICTS: Mapping[str, Predicts] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}

DDPM_BETAS, LATENT_BETAS = (1e-4, 0.02, "linear"), (0.00085, 0.012, "linear")
DEFAULT_BETAS = {"HeunDiscreteScheduler": LATENT_BETAS, "LCMScheduler": (*LATENT_BETAS[:2], "scaled_linear")}
"""By class, where they are others than `DDPM_BETAS`."""

ALLOWED: Mapping[str, tuple[object, ...]] = {
    "trained_betas": (),
    "thresholding": (False,),
    "clip_sample": (False,),
    "use_exponential_sigmas": (False,),
    "use_beta_sigmas": (False,),
    "use_lu_lambdas": (False,),
    "use_flow_sigmas": (False,),
    "use_dynamic_shifting": (False,),
    "sigma_min": (),
    "sigma_max": (),
    "shift_terminal": (),
    "final_sigmas_type": ("zero",),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "lambda_min_clipped": (-math.inf,),
    "variance_type": ("fixed_small", "fixed_large"),
    "predict_x0": (True,),
    "disable_corrector": ([],),
    "solver_p": (),
    "timestep_scaling": (10.0,),
}
"""Fields with the values that are read, besides null. They mean the same in every class that has them."""

MOST_STEPS = 100_000
"""Of a process, whose table is in memory."""
READ = {
    *("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type"),
    *("rescale_betas_zero_snr", "steps_offset", "set_alpha_to_one", "timestep_spacing", "use_karras_sigmas"),
    "original_inference_steps",
}
IDLE = {
    *("dynamic_thresholding_ratio", "clip_sample_range", "sample_max_value", "flow_shift", "time_shift_type"),
    *("skip_prk_steps", "algorithm_type", "solver_order", "solver_type"),
    *("lower_order_final", "euler_at_final"),
}
"""Fields that change no number of the solvers that are read, or are of another class than the file's."""


class Scheduler(NamedTuple):
    """What a `scheduler_config.json` says."""

    process: DDPM
    predicts: Predicts
    schedule: Schedule
    """For any solver, as of the file that diffusers makes another scheduler of (`from_config`)."""
    solver: str
    """A name for `schedule.plan`."""


@checks.checked
def read(config: Mapping[str, object]) -> Scheduler:
    """Reads the configuration of a scheduler.

    What the file does not state has the default of its class. In `schedule` it stays open, because a scheduler of another
    class takes its own default (`from_config` of diffusers). `clip_sample` counts as false where it is not stated.

    Numbers of "dpmpp3", "deis" and the single-step solvers are not those of diffusers (`samplers.schedule`).
    Diffusers' pipelines for Stable Diffusion 1 and 2, but not for XL, take 1 for every other `steps_offset`:
    `dataclasses.replace(schedule, steps_offset=1)`.

    Raises:
        ValueError: an unknown class, or one of flow matching; a value that is not known, or known and not done here.
    """
    filled = config.get("_use_default_values")  # in a config in memory: what the file did not state
    unstated = filled if isinstance(filled, list | tuple) else ()
    stated = {k: v for k, v in config.items() if k not in unstated and not k.startswith("_")}
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in SOLVERS:
        hint = " Models of flow matching are not read." if str(name).startswith("FlowMatch") else ""
        raise ValueError(
            f"_class_name must be one of {', '.join(SOLVERS)}; got {checks.came(name)}.{hint}"
            f"{checks.nearest(name, SOLVERS)}"
        )
    _check_known(stated)
    low, high, betas = DEFAULT_BETAS.get(name, DDPM_BETAS)
    process = DDPM(
        num_steps=checks.whole(
            "num_train_timesteps", stated.get("num_train_timesteps", 1000), "time", most=MOST_STEPS
        ),
        schedule=_one_of("beta_schedule", stated.get("beta_schedule", betas), BETAS),
        beta_min=checks.finite("beta_start", stated.get("beta_start", low)),
        beta_max=checks.finite("beta_end", stated.get("beta_end", high)),
        zero_terminal_snr=_flag(stated, "rescale_betas_zero_snr") or False,
    )
    predicts = _one_of("prediction_type", stated.get("prediction_type", "epsilon"), PREDICTS)
    spacing = stated.get("timestep_spacing")
    schedule = Schedule(
        spacing=None if spacing is None else _one_of("timestep_spacing", spacing, {s: s for s in SPACINGS}),
        steps_offset=checks.whole(
            "steps_offset", stated.get("steps_offset", 0), "time", least=0, most=MOST_STEPS
        ),
        to_data=_flag(stated, "set_alpha_to_one"),
        karras=_flag(stated, "use_karras_sigmas") or False,
        original_steps=checks.whole(
            "original_inference_steps", stated.get("original_inference_steps", 50), "step"
        ),
    )
    return Scheduler(process, predicts, schedule, _solver(name, stated))


@checks.checked
def write(process: DDPM, predicts: Predicts, schedule: Schedule, solver: str) -> dict[str, object]:
    """The inverse of `read`: the configuration of the scheduler that is this solver.

    Raises:
        ValueError: diffusers has no scheduler of this solver, or none of what the network predicts.
    """
    name, choices = _class_of(solver)
    said = {
        "beta_start": process.beta_min,
        "beta_end": process.beta_max,
        "beta_schedule": _key_of("schedule", process.schedule, BETAS),
        "num_train_timesteps": process.num_steps,
        "prediction_type": _key_of("predicts", predicts, PREDICTS),
        "steps_offset": schedule.steps_offset,
        "clip_sample": False,
    }
    stated = {
        "rescale_betas_zero_snr": process.zero_terminal_snr or None,
        "set_alpha_to_one": schedule.to_data,
        "timestep_spacing": schedule.spacing,
        "use_karras_sigmas": schedule.karras or None,
        "original_inference_steps": schedule.original_steps if solver == "lcm" else None,
    }
    return {"_class_name": name, **said, **choices} | {k: v for k, v in stated.items() if v is not None}


def _class_of(solver: str) -> tuple[str, dict[str, object]]:
    """The first class of diffusers that is this solver, and its fields that choose it."""
    for name, choices in SOLVERS.items():
        if choices == solver:
            return name, {}
        if isinstance(choices, Mapping):
            for key, chosen in choices.items():
                if chosen == solver:
                    values = key if isinstance(key, tuple) else (key,)
                    return name, dict(zip(CHOOSES[name], values, strict=True))
    raise ValueError(
        f"diffusers has no scheduler of the solver {solver!r}, so a folder can not say that a model is drawn by it: give "
        "the model another one, such as dataclasses.replace(model.sampling, solver='dpmpp')."
    )


def _key_of(field: str, value: str, means: Mapping[str, str]) -> str:
    for key, meant in means.items():
        if meant == value:
            return key
    raise ValueError(
        f"{field} is {checks.came(value)}, and schedulers of diffusers have {', '.join(means.values())} alone."
    )


def _check_known(stated: Mapping[str, object]) -> None:
    """ValueError for a field that asks for what is not done here, or that is not known and not empty."""
    for field, value in stated.items():
        if field in ALLOWED and value is not None and value not in ALLOWED[field]:
            expected = " or ".join(map(repr, (*ALLOWED[field], None)))
            raise ValueError(
                f"{field} is {checks.came(value)}, and of a scheduler only {expected} is read: change it in the file "
                "if you know that the model was not made for it."
            )
        if field not in {*ALLOWED, *READ, *IDLE} and value:
            raise ValueError(
                f"{field} is {checks.came(value)}, and is not known of a scheduler: take it out of the file if it "
                "changes nothing."
                f"{checks.nearest(field, {*ALLOWED, *READ, *IDLE})}"
            )


def _solver(name: str, stated: Mapping[str, object]) -> str:
    choices, fields = SOLVERS[name], CHOOSES.get(name, {})
    if isinstance(choices, str):
        return choices
    values = [stated.get(field, default) for field, default in fields.items()]
    for key, solver in choices.items():
        if values == (list(key) if isinstance(key, tuple) else [key]):
            return solver
    got = ", ".join(f"{field} {checks.came(value)}" for field, value in zip(fields, values, strict=True))
    raise ValueError(
        f"{', '.join(fields)} of {name} must be one of {', '.join(map(str, choices))}; got {got}."
    )


def _one_of(field: str, value: object, means: Mapping[str, Meant]) -> Meant:
    if isinstance(value, str) and value in means:
        return means[value]
    raise ValueError(f"{field} must be one of {', '.join(map(repr, means))}; got {checks.came(value)}.")


def _flag(stated: Mapping[str, object], field: str) -> bool | None:
    """Whether it is so; None where it is not stated."""
    value = stated.get(field)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{field} must be true or false, got {checks.came(value)}.")
    return value
