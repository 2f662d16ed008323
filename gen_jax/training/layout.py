"""Where the arrays of a run live: the mesh, what is split over it, and how host arrays get there."""

import math
import re
from dataclasses import dataclass, field
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from gen_jax import checks
from gen_jax.keys import AXES, AXIS
from gen_jax.training.state import TrainState
from gen_jax.types import Shard

Leaf = jax.Array | np.ndarray
Shaped = Leaf | jax.ShapeDtypeStruct
Rules: TypeAlias = tuple[tuple[str, tuple[str | None, ...]], ...]
"""`(regular expression, axes)`: for parameters whose path has it, such as "block_0/mlp_in/kernel", the mesh axes of their
last dimensions. The first rule that fits is taken."""

MIN_SIZE = 2**12
"""Smaller arrays are not split by `shard`: gathering them costs more than it saves."""

TENSOR: Rules = (
    (r"_(query|key|value)/kernel$", ("tensor", None)),  # [C, heads, C / heads]
    (r"_(query|key|value)/bias$", ("tensor", None)),
    (r"_out/kernel$", ("tensor", None, None)),  # [heads, C / heads, C]
    (r"mlp_in/kernel$|Conv_0/kernel$", ("tensor",)),
    (r"mlp_in/bias$|Conv_0/bias$", ("tensor",)),
    (r"mlp_out/kernel$|Conv_1/kernel$", ("tensor", None)),
)
"""Heads of attention, and the channels inside of perceptrons and residual blocks, over the axis "tensor"
(Shoeybi et al. 2019, Section 3)."""


def check_shard(shard: str | None) -> None:
    """Raise ValueError for what is no choice."""
    if shard not in (None, "zero1", "fsdp"):
        near = checks.nearest(str(shard), ("zero1", "fsdp"))
        raise ValueError(f'shard must be None, "zero1" or "fsdp", got {shard!r}.{near}')


@checks.checked
@dataclass(frozen=True)
class Layout:
    """A mesh, the axes over which batches are split (`keys.AXES`), and what else is split.

    - `shard=None`: parameters, averages and the state of the optimizer are on every device.
    - `"zero1"`: averages and the state of the optimizer are split (Rajbhandari et al. 2020, P_os).
    - `"fsdp"`: parameters too (P_os+g+p).

    They are split over the mesh axis "fsdp", or over "data" where there is none, each large array along its largest
    dimension that the axis divides. `rules` say what is split over other axes, above all "tensor"; what a rule names and
    does not divide is not split.

    Every array that goes in and out of a compiled step is one global array, whichever mode runs it: under
    `"pmap"` the state has no leading device axis either.
    """

    parallel: str = "jit"
    mesh: Mesh = field(default_factory=lambda: Mesh(np.array(jax.devices()), (AXIS,)))
    shard: Shard | None = None
    rules: Rules = TENSOR

    def __post_init__(self):
        if self.parallel not in ("jit", "pmap"):
            near = checks.nearest(self.parallel, ("jit", "pmap"))
            raise ValueError(f'parallel must be "jit" or "pmap", got {self.parallel!r}.{near}')
        check_shard(self.shard)
        named = {name for _, axes in self.rules for name in axes}
        if taken := [name for name in AXES if name in named]:
            raise ValueError(f"rules must name other axes than those of the batch, got {taken}; use shard.")
        # the compiler, not the types of the arrays, decides how the inside of a step is laid out
        object.__setattr__(self, "mesh", Mesh(self.mesh.devices, self.mesh.axis_names))
        if AXIS not in self.mesh.axis_names:
            raise ValueError(
                f"the mesh needs an axis {AXIS!r} to split the batch over, it has {self.mesh.axis_names}"
            )
        if self.parallel == "pmap" and self.shard is not None:
            raise ValueError(
                f'shard={self.shard!r} needs parallel="jit": pmap has all parameters on every device'
            )
        if self.parallel == "pmap" and len(self.mesh.axis_names) > 1:
            raise ValueError(
                f'parallel="pmap" needs a mesh of one axis, it has {self.mesh.axis_names}; use "jit"'
            )

    @property
    def axes(self) -> tuple[str, ...]:
        """Of the mesh, those over which a batch is split."""
        return tuple(name for name in AXES if name in self.mesh.axis_names)

    @property
    def shards(self) -> int:
        """In how many parts a batch is split."""
        return math.prod(self.mesh.shape[name] for name in self.axes)

    @property
    def local_shards(self) -> int:
        """How many of them belong to this process."""
        return self.shards // jax.process_count()

    @property
    def split_axis(self) -> str:
        """Over which `shard` splits."""
        return "fsdp" if "fsdp" in self.mesh.axis_names else AXIS

    def sharding(self, *spec: str | tuple[str, ...] | None) -> NamedSharding:
        """`NamedSharding` of the mesh: no argument for replicated, else one entry an array axis."""
        return NamedSharding(self.mesh, PartitionSpec(*spec))

    @checks.checked
    def batch_sharding(self, stacked: bool) -> NamedSharding:
        """Of a batch `[B, ...]`, or of `K` batches `[K, B, ...]` when `stacked`."""
        axes = self.axes[0] if len(self.axes) == 1 else self.axes
        return self.sharding(None, axes) if stacked else self.sharding(axes)

    @checks.checked
    def specs(self, tree: PyTree | None, *, split: bool) -> PyTree:
        """The `PartitionSpec` of each array or shape of a tree: by the rules, and where `split` by `shard` too."""

        def leaf(path: tuple[object, ...], x: Shaped) -> PartitionSpec:
            axes = self._ruled(jax.tree_util.keystr(path, simple=True, separator="/"), x.shape)
            size = self.mesh.shape[self.split_axis]
            free = [d for d, n in enumerate(x.shape) if n % size == 0 and axes[d] is None]
            if split and free and math.prod(x.shape) >= MIN_SIZE:
                axes[max(free, key=lambda d: x.shape[d])] = self.split_axis
            while axes and axes[-1] is None:
                axes.pop()
            return PartitionSpec(*axes)

        return jax.tree_util.tree_map_with_path(leaf, tree)

    def _ruled(self, path: str, shape: tuple[int, ...]) -> list[str | None]:
        """The axis of each dimension, by the first rule that fits."""
        found = next((axes for pattern, axes in self.rules if re.search(pattern, path)), ())
        axes = [None] * (len(shape) - len(found)) + list(found)[-len(shape) or len(found) :]
        there = lambda name, n: name in self.mesh.axis_names and n % self.mesh.shape[name] == 0
        return [name if there(name, n) else None for name, n in zip(axes, shape, strict=True)]

    @checks.checked
    def state_sharding(self, state: PyTree | None) -> PyTree:
        """The place of each array of a state; of another tree, such as frozen weights, as that of parameters."""
        whole = lambda tree: self.specs(tree, split=self.shard == "fsdp")
        specs = whole(state)
        if isinstance(state, TrainState):
            specs = self.specs(state, split=self.shard is not None)._replace(params=whole(state.params))
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), specs)

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
