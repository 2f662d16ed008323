"""Where the arrays of a run live: the mesh, what is sharded over it, and how host arrays get there."""

import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from gen_jax import checks
from gen_jax.keys import AXIS

Leaf = jax.Array | np.ndarray
Shaped = Leaf | jax.ShapeDtypeStruct

FSDP_MIN_SIZE = 2**12
"""Smaller arrays are replicated under FSDP: gathering them costs more than it saves."""


@checks.checked
@dataclass(frozen=True)
class Layout:
    """A mesh with an axis `"data"` over which batches are split, and parameters too under `fsdp`.

    Every array that goes in and out of a compiled step is one global array, whichever mode runs it: under
    `"pmap"` the state has no leading device axis either.
    """

    parallel: str = "jit"
    mesh: Mesh = field(default_factory=lambda: Mesh(np.array(jax.devices()), (AXIS,)))
    fsdp: bool = False

    def __post_init__(self):
        if self.parallel not in ("jit", "pmap"):
            near = checks.nearest(self.parallel, ("jit", "pmap"))
            raise ValueError(f'parallel must be "jit" or "pmap", got {self.parallel!r}.{near}')
        # the compiler, not the types of the arrays, decides how the inside of a step is laid out
        object.__setattr__(self, "mesh", Mesh(self.mesh.devices, self.mesh.axis_names))
        if AXIS not in self.mesh.axis_names:
            raise ValueError(
                f"the mesh needs an axis {AXIS!r} to split the batch over, it has {self.mesh.axis_names}"
            )
        if self.parallel == "pmap" and self.fsdp:
            raise ValueError('fsdp=True needs parallel="jit": pmap replicates the parameters on every device')
        if self.parallel == "pmap" and len(self.mesh.axis_names) > 1:
            raise ValueError(
                f'parallel="pmap" needs a mesh of one axis, it has {self.mesh.axis_names}; use "jit"'
            )

    @property
    def shards(self) -> int:
        """In how many parts a batch is split."""
        return self.mesh.shape[AXIS]

    @property
    def local_shards(self) -> int:
        """How many of them belong to this process."""
        return self.shards // jax.process_count()

    def sharding(self, *spec: str | None) -> NamedSharding:
        """`NamedSharding` of the mesh: no argument for replicated, else one entry an array axis."""
        return NamedSharding(self.mesh, PartitionSpec(*spec))

    @checks.checked
    def batch_sharding(self, stacked: bool) -> NamedSharding:
        """Of a batch `[B, ...]`, or of `K` batches `[K, B, ...]` when `stacked`."""
        return self.sharding(None, AXIS) if stacked else self.sharding(AXIS)

    @checks.checked
    def state_sharding(self, state: PyTree | None) -> PyTree:
        """Replicated, or under `fsdp` split along the largest dimension that the mesh divides."""

        def leaf(x: Shaped) -> NamedSharding:
            dims = [d for d, n in enumerate(x.shape) if n % self.shards == 0]
            if not self.fsdp or not dims or math.prod(x.shape) < FSDP_MIN_SIZE:
                return self.sharding()
            largest = max(dims, key=lambda d: x.shape[d])
            return self.sharding(*[None] * largest, AXIS)

        return jax.tree.map(leaf, state)

    @checks.checked
    def shapes(self, state: PyTree) -> PyTree:
        """What `put_state` would make of a state, or of its shapes alone, as `jax.ShapeDtypeStruct`."""
        return jax.tree.map(_shape, state, self.state_sharding(state))

    @checks.checked
    def batch_shapes(self, batch: PyTree, stacked: bool) -> PyTree:
        """The same of a batch."""
        return jax.tree.map(lambda x: _shape(x, self.batch_sharding(stacked)), batch)

    @checks.checked
    def put_state(self, state: PyTree) -> PyTree:
        """Copy a state that every process holds in full to the mesh; the argument stays valid."""
        return jax.tree.map(_put, state, self.state_sharding(state))

    @checks.checked
    def put_frozen(self, tree: PyTree | None) -> PyTree:
        """Place weights as `put_state` does, without a copy of what is in its place already."""
        put = lambda x, sharding: x if _placed(x, sharding) else _put(x, sharding, copy=False)
        return jax.tree.map(put, tree, self.state_sharding(tree))

    @checks.checked
    def put_data(self, arrays: PyTree) -> PyTree:
        """Copy arrays that every process holds in full to every device."""
        return jax.tree.map(lambda x: _put(x, self.sharding()), arrays)

    @checks.checked
    def put_batch(self, batch: PyTree, *, stacked: bool = False) -> PyTree:
        """Split host batches `[B, ...]` (`[K, B, ...]` if `stacked`) over the mesh; `B`: this process's rows.

        Raises ValueError when the rows do not divide evenly over the devices.
        """
        sharding, axis = self.batch_sharding(stacked), int(stacked)

        def leaf(x: Leaf) -> jax.Array:
            if x.shape[axis] % self.local_shards:
                raise ValueError(
                    f"a batch of {x.shape[axis]} rows does not divide over {self.local_shards} devices; "
                    f"use a batch size that is a multiple of {self.shards}"
                )
            if jax.process_count() == 1:
                return jax.device_put(x, sharding)
            return jax.make_array_from_process_local_data(sharding, np.asarray(x))

        return jax.tree.map(lambda x: x if _placed(x, sharding) else leaf(x), batch)

    @checks.checked
    def from_pmap(self, tree: PyTree) -> PyTree:
        """Outputs of `pmap` with `out_axes=None` as global arrays; with several processes they are local."""
        if jax.process_count() == 1:
            return tree

        def leaf(x: jax.Array) -> jax.Array:
            if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
                return jax.random.wrap_key_data(leaf(jax.random.key_data(x)), impl=jax.random.key_impl(x))
            shards = [shard.data for shard in x.addressable_shards]
            return jax.make_array_from_single_device_arrays(x.shape, self.sharding(), shards)

        return jax.tree.map(leaf, tree)

    @checks.checked
    def is_placed(self, state: PyTree) -> bool:
        """Whether `state` comes from `put_state` or a compiled step. Looks at one leaf, to be cheap."""
        x = jax.tree.leaves(state)[0]
        return _placed(x, self.sharding())


def _shape(x: Shaped, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _placed(x: object, sharding: NamedSharding) -> bool:
    return isinstance(x, jax.Array) and x.sharding == sharding


def _put(x: Leaf, sharding: NamedSharding, *, copy: bool = True) -> jax.Array:
    """`device_put` that with `copy` never shares memory with `x`, and reaches devices of other processes."""
    if jax.process_count() == 1:
        # may_alias=False still shares the shard of the device that has x
        return jax.device_put(jnp.copy(x) if copy else x, sharding)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.jit(lambda y: y, out_shardings=sharding)(x)
    host = np.array(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
