"""Images, or other data, from a model: sharded over devices, in chunks, the same for the same key everywhere.

    m, weights = pretrained.load("checkpoints/step10_conditional")
    images, labels = generate.sample(m, weights, jax.random.key(0), 16, label=8)

What is not asked for is as the model says (`model.Sampling`). Weights are a dict of trees: "network", the parameters to
sample with; "text" and "autoencoder" where the model has these; and for an unconditional model "guide", those of a weaker
one, where there is one. They are arguments of the compiled program, never constants in it.
"""

import functools
from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, ArrayLike, Float, Int, Key, PyTree, Shaped

from gen_jax import checks, keys, parameters, samplers
from gen_jax import guidance as guide
from gen_jax.conditioning import Label, Prompt, Text
from gen_jax.diffusion import prediction
from gen_jax.model import Model
from gen_jax.training.layout import Layout

Weights: TypeAlias = Mapping[str, PyTree]
"""Trees of parameters by name: "network", and where there are such, "text", "autoencoder", "guide" (a weaker model)."""

Interval: TypeAlias = tuple[float, float]
"""The times between which samples are guided."""

CHUNK = 250
"""Samples drawn at a time."""


def denoiser(
    model: Model,
    weights: Weights,
    cond: PyTree = None,
    weight: guide.Weight | None = None,
    *,
    null: PyTree = None,
    guide_model: Model | None = None,
    rescale: ArrayLike = 0.0,
) -> prediction.Denoiser:
    """`denoise(x_t, t) -> x0_hat` of a model, kept in the range of its codec; guided where there is a `weight`.

    A model with a condition is guided away from what it says without one (classifier-free guidance), an unconditional
    one away from what a weaker model says (autoguidance; Karras et al. 2024, Section 4). Call it inside `jit`, with
    `weights` and `cond` as arguments of the program.

    Args:
        model: what the weights are of.
        weights: "network", and what else the model needs.
        cond: conditions, `[B, ...]`; None is no condition.
        weight: of guidance; None is none.
        null: what guidance leads away from, like `cond`: a negative prompt. None is no condition.
        guide_model: the weaker model, by default the same with other parameters.
        rescale: as of `guidance.classifier_free`.

    Raises:
        ValueError: a weight, and nothing to be guided by.
    """

    def ask(by: Model, params: PyTree) -> Callable[..., PyTree]:
        network = by.network.build()

        def denoise(x_t: PyTree, t: Float[Array, ""], told: tuple[PyTree, ...] = ()) -> PyTree:
            apply = lambda x_t, t: network.apply(params, x_t, t, *told)
            return prediction.as_denoiser(apply, by.process, predicts=by.predicts)(x_t, t)

        return denoise

    weights = parameters.named(weights)
    tell = functools.partial(model.condition.tell, weights.get("text"))
    denoise, told = ask(model, weights["network"]), () if cond is None else tell(cond)
    if weight is None:
        return model.codec.bound(lambda x_t, t: denoise(x_t, t, told))
    if cond is not None and model.condition.guides:
        null = model.condition.null(len(jax.tree.leaves(cond)[0]), like=cond) if null is None else null
        return model.codec.bound(
            guide.classifier_free_batched(denoise, told, tell(null), weight, rescale=rescale)
        )
    if cond is None and "guide" in weights:
        weaker = ask(guide_model or model, weights["guide"])
        return model.codec.bound(guide.classifier_free(denoise, weaker, weight, rescale=rescale))
    raise ValueError(_NOTHING_TO_GUIDE_BY)


_NOTHING_TO_GUIDE_BY = (
    "there is nothing to be guided by: expected a condition that was dropped in training (dropout > 0), or for an "
    'unconditional model the weights of a weaker one, weights["guide"]. Without guidance the weight is 1.'
)


class Sampler:
    """`draw(weights, key, plan, index, cond, weight) -> data`, compiled; see `sampler`."""

    def __init__(
        self, model: Model, mesh: Mesh, interval: Interval | None, rescale: float, guide_model: Model | None
    ):
        everywhere = Layout(mesh=mesh).sharding()
        self._mesh = mesh

        def each(
            weights: Weights,
            key: Key[Array, ""],
            plan: samplers.Plan,
            index: Int[Array, "n"],
            cond: PyTree,
            weight: guide.Weight | None,
            x_T: PyTree,
            null: PyTree,
        ) -> Shaped[Array, "n ..."]:
            key_prior, key_noise, _ = jax.random.split(key, 3)
            if x_T is None:
                x_T = model.process.prior(key_prior, (len(index), *model.codec.shape), index=index)
            if weight is not None and interval is not None:
                weight = guide.interval(weight, model.process, *interval)
            denoise = denoiser(
                model, weights, cond, weight, null=null, guide_model=guide_model, rescale=rescale
            )
            x_0 = samplers.sample(key_noise, denoise, plan, x_T, index=index)
            return model.codec.decode(x_0, weights.get("autoencoder"))

        def program(
            weights: Weights,
            key: Key[Array, ""],
            plan: samplers.Plan,
            index: Int[Array, "n"],
            cond: PyTree,
            weight: Float[Array, ""] | None,
            x_T: PyTree,
            null: PyTree = None,
        ) -> Shaped[Array, "n ..."]:
            checks.one_key(key)
            parameters.check(model, weights, guide_model)
            whole, split = PartitionSpec(), PartitionSpec(keys.AXIS)
            specs = (whole, whole, whole, split, split, whole, split, split)
            run = jax.shard_map(each, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)
            pad = lambda v: jnp.pad(v, [(0, -len(v) % mesh.size)] + [(0, 0)] * (v.ndim - 1), mode="edge")
            num, (index, cond, null, x_T) = len(index), jax.tree.map(pad, (index, cond, null, x_T))
            out = run(weights, key, plan, index, cond, weight, x_T, null)
            constrained: Shaped[Array, "n ..."] = jax.lax.with_sharding_constraint(out[:num], everywhere)
            return constrained

        self._program = jax.jit(program)

    def __call__(
        self,
        weights: Weights,
        key: Key[Array, ""],
        plan: samplers.Plan,
        index: Int[Array | np.ndarray, "n"],
        cond: PyTree = None,
        weight: ArrayLike | None = None,
        x_T: PyTree = None,
        null: PyTree = None,
    ) -> Shaped[Array, "n ..."]:
        """Data of the samples `index`; arguments that are not on the devices yet are copied there."""
        out: Shaped[Array, "n ..."] = self._program(
            *self.place((weights, key, plan, index, cond, weight, x_T, null))
        )
        return out

    def lower(self, *arguments: PyTree) -> jax.stages.Lowered:
        """The program for these arguments, to read or compile it."""
        return self._program.lower(*self.place(arguments))

    def place(self, tree: PyTree) -> PyTree:
        """Arrays on all devices of the mesh; those that are there, in whatever parts, stay as they are."""
        layout, devices = Layout(mesh=self._mesh), set(self._mesh.devices.flat)

        def put(x: ArrayLike) -> jax.Array:
            if isinstance(x, jax.Array) and x.sharding.device_set == devices:
                return x
            placed: jax.Array = layout.put_data(jnp.asarray(x))
            return placed

        return jax.tree.map(put, tree)


def sampler(
    model: Model,
    mesh: Mesh | None = None,
    *,
    interval: Interval | None = None,
    rescale: float = 0.0,
    guide_model: Model | None = None,
) -> Sampler:
    """The compiled sampler of a model: `draw(weights, key, plan, index, cond=None, weight=None, x_T=None)`.

    Sample `i` depends on `key` and `i` alone. With an `interval` it is guided at those times alone. The samples are
    split over the devices of `mesh`, by default all of this process, and end on each of them. One compilation serves
    all plans of a shape, all conditions, weights and keys; the same model gets the same sampler again.
    """
    mesh = local_mesh() if mesh is None else mesh
    return _sampler(model.undrawn(), mesh, interval, rescale, guide_model)


_sampler = functools.lru_cache(maxsize=16)(Sampler)


def local_mesh(num: int | None = None) -> Mesh:
    """The devices of this process, or `num` of them where there are more, on the axis over which samples are split."""
    return Mesh(np.array(jax.local_devices()[:num]), (keys.AXIS,))


def choose(
    model: Model,
    key: Key[Array, ""],
    index: Int[Array | np.ndarray, "n"],
    *,
    label: Label | None = None,
    prompt: Prompt | None = None,
) -> PyTree:
    """The conditions with which `sample` draws the samples `index` for the same key, see `Condition.choose`."""
    checks.one_key(key)
    return model.condition.choose(jax.random.split(key, 3)[2], index, label, prompt)


def plan(model: Model, solver: str | None = None, nfe: int | None = None) -> samplers.Plan:
    """The steps with which `sample` draws: of a solver by name, for a number of evaluations; else as the model says."""
    nfe = model.sampling.nfe if nfe is None else checks.whole("nfe", nfe, "evaluation")
    return samplers.named.plan(model.process, model.sampling.solver if solver is None else solver, nfe)


def weight(model: Model, weights: Weights, guidance: float | None = None) -> np.float32 | None:
    """The weight with which `sample` guides, None for none.

    What the model says is done where it can be: an unconditional model without a weaker one is not guided. What is asked
    for and can not be done is a ValueError.
    """
    able = model.condition.guides or "guide" in weights
    guidance = None if guidance is None else checks.finite("guidance", guidance, "; 1 is none")
    if guidance is not None and guidance != 1 and not able:
        raise ValueError(f"guidance {guidance:g}: {_NOTHING_TO_GUIDE_BY}")
    value = model.sampling.guidance if guidance is None else guidance
    return None if value == 1 or not able else np.float32(value)


def sample(
    model: Model,
    weights: Weights,
    key: Key[Array, ""],
    num: int,
    *,
    label: Label | None = None,
    prompt: Prompt | None = None,
    negative_prompt: Prompt | None = None,
    solver: str | None = None,
    nfe: int | None = None,
    guidance: float | None = None,
    x_T: Float[Array | np.ndarray, "num ..."] | None = None,
    guide_model: Model | None = None,
    chunk: int = CHUNK,
) -> tuple[Shaped[np.ndarray, "num ..."], PyTree]:
    """Samples of a model, and the conditions that they were drawn for: labels, tokens, None of an unconditional one.

    Args:
        model, weights: from `pretrained.load`, or of one's own.
        key: sample `i` depends on it and on `i` alone, not on `num`, `chunk` or the devices.
        num: how many.
        label: of all of them, or `[num]`, one of each; by default each its own, at random.
        prompt: what is to be seen: a text for all, or a list of one for each (`gen_jax.text.prompts`).
        negative_prompt: what guidance leads away from, by default the empty text.
        solver: a name of `samplers.named`; default: as the model says.
        nfe: evaluations of the denoiser a sample, or the few less that whole steps leave; default: as the model says.
        guidance: weight of guidance; 1 is none, which costs half. Default: as the model says.
        x_T: noise to start from, `[num, *shape]`; default: the prior's.
        guide_model: what `weights["guide"]` are the weights of, where that is another model.
        chunk: how many at once.

    Returns:
        Data as the codec decodes them: uint8 `[num, H, W, C]` for `codec.Pixels`.

    Raises:
        ValueError: a label that is out of range; a label or a prompt that the model does not know what to do with; an
            unknown solver; fewer than 1 sample or evaluation; guidance by nothing; `x_T` of another shape;
            weights of another network; a seed in place of a key.
    """
    checks.one_key(key)
    num, chunk = checks.whole("num", num, "sample"), checks.whole("chunk", chunk, "sample")
    parameters.check(model, weights, guide_model)
    if x_T is not None:
        checks.of_shape("x_T", x_T, (num, *model.codec.shape))
    draw = sampler(model, local_mesh(num), guide_model=guide_model)
    table, w = plan(model, solver, nfe), weight(model, weights, guidance)
    cond, null = conditions(model, key, num, label=label, prompt=prompt, negative_prompt=negative_prompt)
    weights, parts = draw.place(dict(weights)), []
    size = min(chunk, num)
    for start in range(0, num, size):
        index = np.arange(start, start + size)
        rows = np.minimum(index, num - 1)
        told, noise, away = jax.tree.map(lambda a, rows=rows: a[rows], (cond, x_T, null))
        parts.append(jax.device_get(draw(weights, key, table, index, told, w, noise, away)))
    return np.concatenate(parts)[:num], jax.device_get(cond)


def conditions(
    model: Model,
    key: Key[Array, ""],
    num: int,
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
    if not model.condition.guides:
        raise ValueError(f"negative_prompt {negative_prompt!r}: {_NOTHING_TO_GUIDE_BY}")
    if isinstance(model.condition, Text):
        return model.condition.against(cond, negative_prompt)
    return cond, choose(model, key, index, prompt=negative_prompt)
