"""The compiled sampler of a model, over the devices of a mesh."""

import functools
from typing import TypeAlias, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, ArrayLike, Float, Int, Key, PyTree, Shaped

from gen_jax import checks, keys, parameters, samplers
from gen_jax import guidance as guide
from gen_jax.generate import listening
from gen_jax.generate.denoising import Weights, check_rescale_of, denoiser
from gen_jax.model import Model
from gen_jax.training.layout import Layout
from gen_jax.types import Count, Fraction, RescaleOf

Interval: TypeAlias = tuple[float, float]
"""The times between which samples are guided."""


class Sampler:
    """`draw(weights, key, plan, index, cond, weight) -> data`, compiled; see `sampler`."""

    @checks.checked
    def __init__(
        self,
        model: Model,
        mesh: Mesh,
        interval: Interval | None,
        rescale: float,
        guide_model: Model | None,
        rescale_of: RescaleOf,
        rounded: bool,
    ):
        check_rescale_of(rescale_of)
        everywhere, ask = Layout(mesh=mesh).sharding(), functools.partial(denoiser, guide_model=guide_model)
        ask = functools.partial(ask, rescale=rescale, rescale_of=rescale_of, rounded=rounded)
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
            beside: Float[Array, "n ..."] | None,
            ticket: Int[Array, ""] | None,
        ) -> Shaped[Array, "n ..."]:
            key_prior, key_noise, _ = jax.random.split(key, 3)
            if x_T is None:
                x_T = model.process.prior(key_prior, (len(index), *model.codec.shape), index=index)
            if weight is not None and interval is not None:
                weight = guide.interval(weight, model.process, *interval)
            denoise = ask(model, weights, cond, weight, null=null, beside=beside)
            on_step = None if ticket is None else functools.partial(listening.tell, ticket, index)
            x_0 = samplers.sample(key_noise, denoise, plan, x_T, index=index, on_step=on_step)
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
            beside: Float[Array, "n ..."] | None = None,
            ticket: Int[Array, ""] | None = None,
        ) -> Shaped[Array, "n ..."]:
            checks.one_key(key)
            parameters.check(model, weights, guide_model)
            whole, split = PartitionSpec(), PartitionSpec(keys.AXIS)
            specs = (whole, whole, whole, split, split, whole, split, split, split, whole)
            run = jax.shard_map(each, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)
            pad = lambda v: jnp.pad(v, [(0, -len(v) % mesh.size)] + [(0, 0)] * (v.ndim - 1), mode="edge")
            num, each_sample = len(index), (index, cond, null, x_T, beside)
            index, cond, null, x_T, beside = jax.tree.map(pad, each_sample)
            out = run(weights, key, plan, index, cond, weight, x_T, null, beside, ticket)
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
        beside: PyTree = None,
        ticket: ArrayLike | None = None,
    ) -> Shaped[Array, "n ..."]:
        """Data of the samples `index`; arguments that are not on the devices yet are copied there.

        ValueError, which names an array, for weights with NaN: pixels would hide it.
        """
        arguments = self.place((weights, key, plan, index, cond, weight, x_T, null, beside, ticket))
        checks.finite_tree("weights", arguments[0])
        out: Shaped[Array, "n ..."] = self._program(*arguments)
        return out

    def lower(self, *arguments: PyTree) -> jax.stages.Lowered:
        """The program for these arguments, or for their shapes (`jax.ShapeDtypeStruct`), to read or compile it.

        The mesh may be of devices that are not there (`jax.experimental.topologies`).
        """
        sharding = Layout(mesh=self._mesh).sharding()

        def shaped(x: ArrayLike | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            known = jax.eval_shape(jnp.asarray, x)
            place = x.sharding if self._has(x) else sharding
            return jax.ShapeDtypeStruct(known.shape, known.dtype, sharding=place)

        return self._program.lower(*jax.tree.map(shaped, arguments))

    @checks.checked
    def place(self, tree: PyTree) -> PyTree:
        """Arrays on all devices of the mesh; those that are there, in whatever parts, stay as they are."""
        layout = Layout(mesh=self._mesh)
        return jax.tree.map(lambda x: x if self._has(x) else layout.put_data(jnp.asarray(x)), tree)

    def _has(self, x: ArrayLike | jax.ShapeDtypeStruct) -> TypeGuard[jax.Array]:
        """Whether it is on all devices of the mesh."""
        return isinstance(x, jax.Array) and x.sharding.device_set == set(self._mesh.devices.flat)


@checks.checked
def sampler(
    model: Model,
    mesh: Mesh | None = None,
    *,
    interval: Interval | None = None,
    rescale: Fraction = 0.0,
    guide_model: Model | None = None,
    rescale_of: RescaleOf = "x0",
    rounded: bool = False,
) -> Sampler:
    """The compiled sampler of a model: `draw(weights, key, plan, index, cond=None, weight=None, x_T=None)`.

    Sample `i` depends on `key` and `i` alone. With an `interval` it is guided at those times alone. The samples are
    split over the devices of `mesh`, by default all of this process, and end on each of them. One compilation serves
    all plans of a shape, all conditions, weights and keys; the same model gets the same sampler again. Further arguments
    are `null` and `beside` of `denoiser`, and `ticket`, of a listener (`generate.listening`).
    `rescale`, `rescale_of` and `rounded` are those of `denoiser`; `model.sampling.rounds(solver)` says whether to round.
    """
    check_rescale_of(rescale_of)
    mesh = local_mesh() if mesh is None else mesh
    if mesh.axis_names != (keys.AXIS,):
        raise ValueError(
            f"mesh must have one axis {keys.AXIS!r}, as local_mesh() makes one; got {mesh.axis_names}."
        )
    if interval is not None:  # the same conditions
        guide.interval(1.0, model.process, *interval)
    return _sampler(model.undrawn(), mesh, interval, rescale, guide_model, rescale_of, rounded)


_sampler = functools.lru_cache(maxsize=16)(Sampler)


@checks.checked
def local_mesh(num: Count | None = None) -> Mesh:
    """The devices of this process, or `num` of them where there are more, on the axis over which samples are split."""
    return Mesh(np.array(jax.local_devices()[:num]), (keys.AXIS,))
