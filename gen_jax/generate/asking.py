"""What is asked of a model: the arguments of its sampler, checked, and on the devices."""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float, Int, Key, PyTree, Shaped

from gen_jax import checks, parameters, samplers
from gen_jax.codec import image_shape
from gen_jax.conditioning import Label, Prompt, Text
from gen_jax.diffusion import matching
from gen_jax.generate.denoising import NOTHING_TO_GUIDE_BY, Weights, distilled
from gen_jax.generate.programs import sampler
from gen_jax.model import Model
from gen_jax.training.fingerprint import fingerprint
from gen_jax.types import Count, RescaleOf, Size, SolverName


@checks.checked
def choose(
    model: Model,
    key: Key[Array, ""],
    index: Int[Array | np.ndarray, "n"],
    *,
    label: Label | None = None,
    prompt: Prompt | None = None,
) -> PyTree:
    """The conditions with which `sample` draws the samples `index` for the same key, see `Condition.choose`."""
    return model.condition.choose(jax.random.split(key, 3)[2], index, label, prompt)


@checks.checked
def plan(model: Model, solver: SolverName | None = None, nfe: Count | None = None) -> samplers.Plan:
    """The steps with which `sample` draws: of a solver by name, for a number of evaluations; else as the model says.

    Where the model has a schedule (`Sampling.schedule`), the solver takes its grid, and `nfe` is the number of steps.
    """
    return model.sampling.plan(model.process, model.predicts, solver, nfe)


@checks.checked
def weight(model: Model, weights: Weights, guidance: float | None = None) -> np.float32 | None:
    """The weight with which `sample` guides, None for none.

    What the model says is done where it can be: an unconditional model without a weaker one is not guided. What is asked
    for and can not be done is a ValueError.
    """
    weights = weights if isinstance(weights, Mapping) else parameters.named(weights)
    able = model.condition.guides or "guide" in weights or distilled(model)
    guidance = None if guidance is None else checks.finite("guidance", guidance, "; 1 is none")
    if guidance is not None and guidance != 1 and not able:
        raise ValueError(f"guidance {guidance:g}: {NOTHING_TO_GUIDE_BY}")
    value = model.sampling.guidance if guidance is None else guidance
    return None if value == 1 or not able else np.float32(value)


@checks.checked
def sized(model: Model, height: Count | None, width: Count | None) -> Model:
    """The model for this size; what is not given stays."""
    if height is None and width is None:
        return model
    shape = image_shape(model.codec)
    return model.at(shape[0] if height is None else height, shape[1] if width is None else width)


def _check_given(model: Model, num: int, x_T: object, beside: object) -> None:
    if x_T is not None:
        checks.of_shape("x_T", x_T, (num, *model.codec.shape))
    if model.beside and beside is None:
        raise ValueError(
            f"the network sees {model.beside} channels beside those of the noise: it draws into pictures that exist, by "
            "retouch.inpaint."
        )
    if beside is not None:
        checks.of_shape("beside", beside, (num, *model.codec.shape[:-1], model.beside))


@checks.checked
def conditions(
    model: Model,
    key: Key[Array, ""],
    num: Size,
    *,
    label: Label | None = None,
    prompt: Prompt | None = None,
    negative_prompt: Prompt | None = None,
) -> tuple[PyTree, PyTree]:
    """The conditions of `num` samples, and what guidance leads them away from; None for no condition.

    ValueError where the model does not know what is asked for, or the prompts are not `num`.
    """
    index = np.arange(num)
    cond = choose(model, key, index, label=label, prompt=prompt)
    if negative_prompt is None:
        return cond, None
    if distilled(model):
        raise ValueError(
            f"negative_prompt {negative_prompt!r}: this network is told the weight of guidance and asked once, so "
            "nothing leads it away from a text."
        )
    if not model.condition.guides:
        raise ValueError(f"negative_prompt {negative_prompt!r}: {NOTHING_TO_GUIDE_BY}")
    if isinstance(model.condition, Text):
        return model.condition.against(cond, negative_prompt)
    return cond, choose(model, key, index, prompt=negative_prompt)


class _Draw(Protocol):
    def __call__(
        self, index: Int[np.ndarray, "n"], ticket: ArrayLike | None = None
    ) -> Shaped[Array, "n ..."]:
        """The samples with these numbers; `ticket` is that of a listener."""


class Asked(NamedTuple):
    """What is asked of a model, ready to be drawn."""

    model: Model
    plan: samplers.Plan
    weight: np.float32 | None
    cond: PyTree
    null: PyTree
    draw: _Draw

    def says(self, key: Key[Array, ""], weights: Weights) -> dict[str, object]:
        """What determines the samples, as words, numbers and checksums."""
        arrays = {"weights": dict(weights), "plan": self.plan, "conditions": (self.cond, self.null)}
        return {
            "key": f"{jax.random.key_impl(key)} {np.ravel(jax.random.key_data(key)).tolist()}",
            "model": hashlib.sha256(repr(self.model.undrawn()).encode()).hexdigest()[:16],
            **{name: f"{found.checksum:08x}" for name, found in fingerprint(arrays).items()},
            "nfe": self.plan.nfe,
            "guidance": None if self.weight is None else float(self.weight),
            "made_by": f"jax {jax.__version__} on {jax.local_devices()[0].device_kind}",
        }


def ask(
    model: Model,
    weights: Weights,
    key: Key[Array, ""],
    num: int,
    mesh: Mesh,
    *,
    label: Label | None,
    prompt: Prompt | None,
    negative_prompt: Prompt | None,
    solver: SolverName | None,
    nfe: int | None,
    guidance: float | None,
    rescale: float,
    rescale_of: RescaleOf,
    height: int | None,
    width: int | None,
    guide_model: Model | None,
    x_T: Float[Array | np.ndarray, "num ..."] | None = None,
    beside: Float[Array | np.ndarray, "num ..."] | None = None,
    steps: samplers.Plan | None = None,
) -> Asked:
    """What is asked for, checked, with weights on the devices of a mesh; arguments and errors are those of `sample`."""
    parameters.check(model, weights, guide_model)
    model = sized(model, height, width)
    _check_given(model, num, x_T, beside)
    rounded = model.sampling.rounds(solver)
    program = sampler(
        model, mesh, rescale=rescale, guide_model=guide_model, rescale_of=rescale_of, rounded=rounded
    )
    table = plan(model, solver, nfe) if steps is None else steps
    matching.check_plan(table.t, table.levels, None, model.process, model.predicts)
    if x_T is not None and steps is None:
        x_T = x_T * np.float32(model.sampling.deviation(model.process, solver, nfe))
    w = weight(model, weights, guidance)
    cond, null = conditions(model, key, num, label=label, prompt=prompt, negative_prompt=negative_prompt)
    placed, given = program.place(dict(weights)), (cond, x_T, null, beside)

    def draw(index: Int[np.ndarray, "n"], ticket: ArrayLike | None = None) -> Shaped[Array, "n ..."]:
        told, noise, away, more = jax.tree.map(lambda a: a[index], given)
        return program(placed, key, table, index, told, w, noise, away, more, ticket)

    return Asked(model, table, w, cond, null, draw)
