"""Configurations of schedulers, as they stand in published folders, and what is refused of them."""

import json
import math

import numpy as np
import pytest

from gen_jax.diffusion.process import DDPM
from gen_jax.pretrained import schedulers
from gen_jax.samplers import Schedule
from tests import tiny_sd

LATENT = DDPM(1000, "scaled_linear", 0.00085, 0.012)
BETAS = {
    "_diffusers_version": "0.6.0",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
STABLE = BETAS | {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}
SD15 = STABLE | {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "trained_betas": None}
SD21 = STABLE | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
SDXL = STABLE | {
    "_class_name": "EulerDiscreteScheduler",
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "skip_prk_steps": True,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}


@pytest.mark.parametrize(
    ("config", "process", "predicts", "schedule", "solver"),
    [
        (SD15, LATENT, "eps", Schedule(None, 1, False), "pndm"),
        (SD21, LATENT, "v", Schedule(None, 1, False), "ddim"),
        (SDXL, LATENT, "eps", Schedule("leading", 1, False), "euler"),
        (
            SD21 | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
            DDPM(1000, "scaled_linear", 0.00085, 0.012, zero_terminal_snr=True),
            "v",
            Schedule("trailing", 1, False),
            "ddim",
        ),
        (
            BETAS | {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True},
            LATENT,
            "eps",
            Schedule(karras=True),
            "dpmpp",
        ),
        (
            {"_class_name": "UniPCMultistepScheduler", "beta_schedule": "squaredcos_cap_v2"},
            DDPM(schedule="cosine"),
            "eps",
            Schedule(),
            "unipc",
        ),
        ({"_class_name": "DDPMScheduler", "prediction_type": "sample"}, DDPM(), "x0", Schedule(), "ddpm"),
        (
            {"_class_name": "HeunDiscreteScheduler"},
            DDPM(1000, "linear", 0.00085, 0.012),
            "eps",
            Schedule(),
            "heun",
        ),
        ({"_class_name": "LCMScheduler"}, LATENT, "eps", Schedule(), "lcm"),
        (
            {"_class_name": "LCMScheduler", "original_inference_steps": 25, "timestep_scaling": 10.0},
            LATENT,
            "eps",
            Schedule(original_steps=25),
            "lcm",
        ),
    ],
)
def test_read_says_what_the_file_says(config, process, predicts, schedule, solver):
    assert schedulers.read(config) == (process, predicts, schedule, solver)


@pytest.mark.parametrize(
    ("config", "solver"),
    [
        ({"_class_name": "PNDMScheduler"}, "pndm_runge_kutta"),
        ({"_class_name": "DDPMScheduler", "variance_type": "fixed_large"}, "ddpm_beta"),
        ({"_class_name": "EulerAncestralDiscreteScheduler"}, "euler_ancestral"),
        ({"_class_name": "LMSDiscreteScheduler"}, "lms"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_type": "heun"}, "dpmpp_exact"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "dpmpp3"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}, "sde_dpmpp"),
        ({"_class_name": "DPMSolverSinglestepScheduler"}, "dpmpp_single"),
        ({"_class_name": "UniPCMultistepScheduler", "solver_order": 3}, "unipc_bh2"),
        ({"_class_name": "DEISMultistepScheduler"}, "deis2"),
    ],
)
def test_read_finds_the_solver(config, solver):
    assert schedulers.read(config).solver == solver


def test_defaults_that_are_filled_in_are_not_stated():
    """A config in memory has all fields, and a list of those that the file did not state."""
    filled = SD15 | {"timestep_spacing": "leading", "_use_default_values": ["timestep_spacing"]}
    assert schedulers.read(filled) == schedulers.read(SD15)
    assert schedulers.read(SD15 | {"timestep_spacing": "leading"}) != schedulers.read(SD15)


def test_another_solver_takes_its_own_spacing_unless_the_file_states_one():
    first = lambda config, solver: float(schedulers.read(config).schedule.plan(LATENT, solver, 10).t[0]) - 1
    assert [first(SD15, solver) for solver in ("pndm", "ddim", "euler", "dpmpp")] == [901, 901, 999, 999]
    assert [first(SDXL, solver) for solver in ("euler", "ddim", "dpmpp", "unipc")] == [901, 901, 901, 901]


def test_read_takes_what_is_null_or_the_only_value_that_is_read():
    plain = BETAS | {"_class_name": "DPMSolverMultistepScheduler"}
    said = {field: next(iter(values), None) for field, values in schedulers.ALLOWED.items()}
    for more in (said, dict.fromkeys(schedulers.ALLOWED), {"a_later_option": False}):
        assert schedulers.read(plain | more) == schedulers.read(plain)
    text = json.dumps(plain | {"lambda_min_clipped": -math.inf})
    assert schedulers.read(json.loads(text)) == schedulers.read(plain)


@tiny_sd.needs_fixtures
@pytest.mark.parametrize(
    ("model", "predicts"), [("tiny-sd15", "eps"), ("tiny-sd21", "v"), ("tiny-sdxl", "eps")]
)
def test_read_of_the_fixtures(model, predicts):
    text = (tiny_sd.ROOT / model / "scheduler" / "scheduler_config.json").read_text()
    process, says, schedule, solver = schedulers.read(json.loads(text))
    assert (process, says, schedule, solver) == (LATENT, predicts, Schedule("leading", 1, False), "ddim")
    with np.load(tiny_sd.ROOT / model / "expected.npz") as expected:
        times = schedule.plan(process, solver, 10, predicts=says).t
        np.testing.assert_array_equal(np.asarray(times) - 1, expected["ddim_timesteps"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "got 'FlowMatchEuler.* flow matching are not read",
        ),
        ({"_class_name": "DDIMSchedular"}, "_class_name .* got 'DDIMSchedular'. Did you mean DDIMScheduler"),
        ({"_class_name": None}, "_class_name .* got None"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule must be one of .* got 'sigmoid'"),
        ({"beta_schedule": ["linear"]}, "beta_schedule must be one of .* got \\['linear'\\]"),
        ({"beta_start": "small"}, "beta_start must be a finite number, got 'small'"),
        ({"beta_start": 0.5}, "betas must satisfy"),
        ({"num_train_timesteps": 10.5}, "num_train_timesteps must be a whole number"),
        ({"prediction_type": "flow_prediction"}, "prediction_type must be one of .* got 'flow_prediction'"),
        ({"timestep_spacing": "even"}, "timestep_spacing must be one of .* got 'even'"),
        ({"steps_offset": -1}, "steps_offset must be at least 0 times, got -1"),
        ({"set_alpha_to_one": "yes"}, "set_alpha_to_one must be true or false, got 'yes'"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas is \\[0.1, 0.2\\], and .* only None is read"),
        ({"clip_sample": True}, "clip_sample is True, and .* only False or None is read"),
        ({"thresholding": True}, "thresholding is True"),
        ({"final_sigmas_type": "sigma_min"}, "final_sigmas_type is 'sigma_min'"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas is True"),
        ({"sigma_max": 80.0}, "sigma_max is 80.0"),
        ({"timestep_type": "continuous"}, "timestep_type is 'continuous'"),
        ({"interpolation_type": "log_linear"}, "interpolation_type is 'log_linear'"),
        ({"lambda_min_clipped": -5.1}, "lambda_min_clipped is -5.1"),
        ({"timestep_spacin": "leading"}, "timestep_spacin is 'leading', .* Did you mean timestep_spacing"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"},
            "algorithm_type, solver_order, solver_type of DPMSolver.* got algorithm_type 'dpmsolver'",
        ),
        ({"_class_name": "UniPCMultistepScheduler", "solver_order": 4}, "solver_order 4, solver_type 'bh2'"),
        (
            {"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1"},
            "solver_order 2, solver_type 'bh1'",
        ),
        (
            {"_class_name": "DDPMScheduler", "variance_type": "learned_range"},
            "variance_type is 'learned_range'",
        ),
    ],
)
def test_what_is_not_done_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        schedulers.read(SD21 | change)
