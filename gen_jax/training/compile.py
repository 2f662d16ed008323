"""From a pure step to a program for many devices. No other file in the library knows about devices."""

import dataclasses
from collections.abc import Callable
from functools import cached_property, partial
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, PyTree

from gen_jax import checks
from gen_jax.keys import AXIS
from gen_jax.training import flops, spread
from gen_jax.training.layout import TENSOR, Layout, Rules
from gen_jax.training.mesh import make_mesh
from gen_jax.training.state import Metrics, Step, TrainState, check_step, takes
from gen_jax.types import Count, Shard

Select = Callable[[Int[Array, ""], int], Int[Array, "K B"]]
"""`select(step, K)`: the rows of the batches of the `K` steps from `step`, a pure function of the step."""


def lower_once(f: Callable[..., PyTree], *args: PyTree, out_shardings: PyTree = None) -> jax.stages.Lowered:
    """Lower `f(*args)` to one program that will run once, such as the `init` of a network.

    A CPU compiles it without optimisations: those take seconds and would save milliseconds.
    """
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(f, out_shardings=out_shardings, compiler_options=options).lower(*args)


@checks.checked
def compile_step(
    step: Step,
    *,
    parallel: str = "jit",
    mesh: Mesh | None = None,
    shard: Shard | None = None,
    rules: Rules = TENSOR,
    steps_per_call: Count = 1,
    select: Select | None = None,
    donate: bool = True,
) -> "Compiled":
    """Compile `K = steps_per_call` steps into one program over the devices of `mesh`.

    The default mesh is `make_mesh(shard)`: all devices.

        compiled(state, batch, frozen=None) -> (state, metrics)          metrics: float32 [K]

    - `batch` has leaves `[B, ...]`, or `[K, B, ...]` for `K > 1`; the `K` steps run in one `lax.scan`. With
      `select` the second argument is the whole data set (leaves `[N, ...]`, on every device) in place of a batch, and
      the program takes the rows `select(step, K)` from it.
    - `parallel="jit"`: one program for all devices. The batch is split over the mesh axes "replica", "data" and "fsdp";
      each device computes the loss and its gradient for its rows, and the means over the devices make the step. What
      else is split `shard` and `rules` say (`Layout`): with "zero1" gradients are reduced to the parts of the
      optimizer's state, and new parameters gathered; with "fsdp" parameters are gathered for the loss, those of large
      models again for its gradient (`spread.LARGE`), and gradients reduced to the parts.
    - `parallel="pmap"`: a program on each device, with all parameters.
    - `frozen` is a tree of weights that the loss uses and no gradient changes (`make_step(aux=True)`). It is an argument
      of the program, not a constant in it. It lies on the devices as parameters do; what is split and not large is
      gathered once a call. It is not donated: give the same arrays again.

    All modes give the same parameters (to rounding) if the loss is a mean over the examples that draws the noise of each
    with `gen_jax.keys`. The state has the same form in all modes. It is donated: use the one that is returned. Raises
    ValueError for a batch that does not divide over the devices.
    """
    check_step(step)
    layout = Layout(parallel, make_mesh(shard) if mesh is None else mesh, shard, rules)
    return Compiled(step, layout, steps_per_call, select, donate)


class Program(NamedTuple):
    """`run` does `K` steps; `lower` lowers them for arrays or their shapes."""

    run: Callable[..., tuple[TrainState, Metrics]]
    lower: Callable[..., jax.stages.Lowered]


class Compiled:
    """A compiled step; see `compile_step`. `traces` counts how often JAX has traced it: 1 in a whole run.

    `flops` are the floating-point operations of a step on all devices together, known once it is traced (`cost.flops`).
    """

    @checks.checked
    def __init__(self, step: Step, layout: Layout, steps_per_call: int, select: Select | None, donate: bool):
        self.layout = layout
        self.steps_per_call = steps_per_call
        self.traces, self.flops = 0, 0.0
        self._step, self._select, self._donate = step, select, donate
        self._program: Program | None = None

    def __call__(self, state: TrainState, data: PyTree, frozen: PyTree = None) -> tuple[TrainState, Metrics]:
        """`K` steps from `state` on host or device arrays `data`."""
        if not self.layout.is_placed(state):
            state = self.layout.put_state(state)
        frozen = self.layout.put_frozen(frozen)
        return self._made(state, frozen).run(state, self.put(data), frozen)

    @checks.checked
    def lower(self, state: TrainState, data: PyTree, frozen: PyTree = None) -> jax.stages.Lowered:
        """Lower the program for these arguments, or for their shapes (`jax.ShapeDtypeStruct`), without running it.

        Compiled, it is a function of `(state, data, frozen)`, and the first call has nothing left to compile. With
        `parallel="jit"` the mesh may be of devices that are not there (`jax.experimental.topologies`).
        """
        return self._made(state, frozen).lower(state, data, frozen)

    def _made(self, state: TrainState, frozen: PyTree) -> Program:
        if self._program is None:
            self._program = self._pmap() if self.layout.parallel == "pmap" else self._jit(state, frozen)
        return self._program

    @checks.checked
    def put(self, data: PyTree) -> PyTree:
        """Place a batch, or with `select` the data set, on the devices, unless it is there already."""
        if self._select is None:
            return self.layout.put_batch(data, stacked=self.steps_per_call > 1)
        placed = all(
            isinstance(x, jax.Array) and x.sharding == self._replicated for x in jax.tree.leaves(data)
        )
        return data if placed else self.layout.put_data(data)

    @cached_property
    def _replicated(self) -> jax.sharding.NamedSharding:
        return self.layout.sharding()

    def _run(
        self,
        state: TrainState,
        batches: PyTree,
        frozen: PyTree,
        constrain: Callable[[TrainState], TrainState],
        axis_name: str | None = None,
    ) -> tuple[TrainState, Metrics]:
        step = partial(self._step, axis_name=axis_name)
        if axis_name is None and self.layout.shards > 1 and takes(self._step, "spread"):
            step = partial(step, spread=spread.over(self.layout))
            if not spread.is_large(frozen):  # gathered once, and not in each step
                whole = dataclasses.replace(self.layout, shard=None).state_sharding(frozen)
                frozen = jax.lax.with_sharding_constraint(frozen, whole)
        if frozen is not None:
            step = partial(step, frozen=frozen)

        each = self.layout.shards if axis_name is not None else 1
        inlined = jax.jit(step, inline=True)  # a program of its own to count; in this one nothing changes

        def body(state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
            self.flops = float(each * flops.of_traced(inlined.trace(state, batch).jaxpr))
            state, metrics = inlined(state, batch)
            return constrain(state), metrics

        if self.steps_per_call > 1:
            return jax.lax.scan(body, state, batches, self.steps_per_call)
        state, metrics = body(state, batches)
        return state, jax.tree.map(lambda m: m[None], metrics)

    def _rows(self, state: TrainState) -> Int[Array, "K B"]:
        assert self._select is not None
        rows = self._select(state.step, self.steps_per_call)
        if rows.shape[1] % self.layout.shards:
            raise ValueError(
                f"a batch of {rows.shape[1]} rows does not divide over {self.layout.shards} devices; "
                f"use a batch size that is a multiple of {self.layout.shards}"
            )
        return rows

    def _gather(self, data: PyTree, rows: Int[Array, "K B"]) -> PyTree:
        rows = rows if self.steps_per_call > 1 else rows[0]
        # as rows of numbers: XLA's CPU backend gathers those ten times faster than rows of images
        take = lambda x: x.reshape(len(x), -1)[rows].reshape(*rows.shape, *x.shape[1:])
        return jax.tree.map(take, data)

    def _jit(self, state: TrainState, frozen: PyTree) -> Program:
        layout, stacked = self.layout, self.steps_per_call > 1
        shardings = layout.state_sharding(state)
        batch_sharding = layout.batch_sharding(stacked)

        def program(state: TrainState, data: PyTree, frozen: PyTree) -> tuple[TrainState, Metrics]:
            self.traces += 1
            if self._select is not None:
                rows = jax.lax.with_sharding_constraint(self._rows(state), layout.batch_sharding(True))
                data = jax.lax.with_sharding_constraint(self._gather(data, rows), batch_sharding)
            constrain = lambda s: jax.lax.with_sharding_constraint(s, shardings)
            return self._run(state, data, frozen, constrain)

        jitted = jax.jit(
            program,
            in_shardings=(
                shardings,
                batch_sharding if self._select is None else layout.sharding(),
                layout.state_sharding(frozen),
            ),
            out_shardings=(shardings, layout.sharding()),
            donate_argnums=0 if self._donate else (),
        )
        return Program(jitted, jitted.lower)

    def _pmap(self) -> Program:
        layout, stacked = self.layout, self.steps_per_call > 1

        def program(
            state: TrainState, data: PyTree, frozen: PyTree, _: Int[Array, ""]
        ) -> tuple[TrainState, Metrics]:
            self.traces += 1
            if self._select is not None:
                rows = self._rows(state)
                size = rows.shape[1] // layout.shards
                start = jax.lax.axis_index(AXIS) * size
                data = self._gather(data, jax.lax.dynamic_slice_in_dim(rows, start, size, axis=1))
            return self._run(state, data, frozen, lambda s: s, AXIS)

        axis = int(stacked)
        pmapped = jax.pmap(
            program,
            AXIS,
            in_axes=(None, axis if self._select is None else None, None, 0),
            out_axes=None,
            devices=list(layout.mesh.devices.flat),
            donate_argnums=0 if self._donate else (),
        )
        split = jax.jit(
            lambda x: x.reshape(*x.shape[:axis], layout.shards, -1, *x.shape[axis + 1 :]),
            out_shardings=layout.batch_sharding(stacked),
        )
        mapped = layout.put_batch(np.zeros(layout.local_shards, np.int32))  # pmap wants one mapped argument

        def run(state: TrainState, data: PyTree, frozen: PyTree) -> tuple[TrainState, Metrics]:
            if self._select is None:
                data = jax.tree.map(split, data)
            return layout.from_pmap(pmapped(state, data, frozen, mapped))

        def lower(state: TrainState, data: PyTree, frozen: PyTree) -> jax.stages.Lowered:
            if self._select is None:
                data = layout.batch_shapes(jax.eval_shape(partial(jax.tree.map, split), data), stacked)
            return pmapped.lower(state, data, frozen, mapped)

        return Program(run, lower)
