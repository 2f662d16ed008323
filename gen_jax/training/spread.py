"""The gradient of a batch that is split over devices: each computes that of its rows, and their mean makes the step.

Under `shard="fsdp"` a device has a part of each large parameter. It gathers them for the loss, and gradients go to the
parts by a reduce-scatter: each device gets the sum of its part alone (Rajbhandari et al. 2020, Section 5.3). Only
parameters and gradients move, never activations.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Key, PyTree

from gen_jax.training.layout import Layout
from gen_jax.training.objective import Build, Differentiate, Loss
from gen_jax.training.room import num_bytes
from gen_jax.training.state import Aux

LARGE = 2**31
"""Bytes of all parameters from which on they are not kept whole from the loss to its gradient."""


def is_large(tree: PyTree) -> bool:
    """Whether parameters are gathered where they are used, and not kept whole."""
    return num_bytes(tree) >= LARGE


def over(layout: Layout) -> Callable[[Build, Loss], Differentiate]:
    """`spread(build, loss)` for the devices of a layout, see `training.Step`."""
    return partial(_spread, layout)


def _spread(layout: Layout, build: Build, loss: Loss) -> Differentiate:
    axes, split = layout.axes, layout.split_axis
    manual = lambda tree, parted: _manual(layout.specs(tree, split=parted), axes)

    def gather(tree: PyTree, specs: PyTree) -> PyTree:
        """Whole arrays of the parts."""
        whole = lambda x, d: jax.lax.all_gather(x, split, axis=d, tiled=True)
        return _where_split(whole, tree, specs)

    def scatter(tree: PyTree, specs: PyTree) -> PyTree:
        """The parts of the sum of whole arrays."""
        part = lambda x, d: jax.lax.psum_scatter(x, split, scatter_dimension=d, tiled=True)
        return _where_split(part, tree, specs)

    def mean(tree: PyTree, specs: PyTree) -> PyTree:
        """Over the devices, of sums over the axis that splits where there is a part."""
        rest, size = tuple(name for name in axes if name != split), layout.mesh.shape[split]
        part = lambda x: jax.lax.pmean(x / size, rest) if rest else x / size
        return jax.tree.map(lambda x, spec: part(x) if _split(spec) else jax.lax.pmean(x, axes), tree, specs)

    def run(params: PyTree, key: Key[Array, ""], batch: PyTree, *extra: Aux) -> Any:
        parts, to = manual(params, layout.shard == "fsdp"), manual(params, layout.shard is not None)
        given = [_of_aux(aux, manual, layout) for aux in extra]
        large = layout.shard == "fsdp" and is_large(params)

        def local(params: PyTree, key: Key[Array, ""], batch: PyTree, *extra: Aux) -> Any:
            extra = tuple(map(gather, extra, given))
            if large:
                found, grads = build(_gathered(loss, partial(gather, specs=parts)))(
                    params, key, batch, *extra
                )
            else:
                found, grads = build(loss)(gather(params, parts), key, batch, *extra)
                grads = scatter(grads, to)
            return jax.lax.pmean(found, axes), mean(grads, to)

        whole = PartitionSpec()
        inside = (parts, whole, PartitionSpec(axes), *given)
        each = jax.shard_map(
            local,
            mesh=layout.mesh,
            in_specs=inside,
            out_specs=(whole, to),
            axis_names=set(axes),
            check_vma=False,
        )
        return each(params, key, batch, *extra)

    return run


def _gathered(loss: Loss, gather: Callable[[PyTree], PyTree]) -> Loss:
    """The loss of parameters that are split, which are gathered again for its gradient: none is kept whole.

    A network in bfloat16 keeps what it made of them, unless it computes its blocks again too (`remat`).
    """
    keep = lambda primitive, *_, **__: primitive is not jax.lax.all_gather_p
    return jax.checkpoint(lambda params, *rest: loss(gather(params), *rest), policy=keep)


def _of_aux(aux: Aux, manual: Callable[[PyTree, bool], PyTree], layout: Layout) -> Aux:
    frozen = manual(aux.frozen, layout.shard == "fsdp" and is_large(aux.frozen))
    return Aux(PartitionSpec(), manual(aux.ema_params, layout.shard is not None), frozen)  # type: ignore[arg-type]


def _manual(specs: PyTree, axes: tuple[str, ...]) -> PyTree:
    """Without the axes that the compiler looks after, such as "tensor"."""
    return jax.tree.map(lambda spec: PartitionSpec(*(name if name in axes else None for name in spec)), specs)


def _where_split(move: Callable[[Array, int], Array], tree: PyTree, specs: PyTree) -> PyTree:
    """`move(x, d)` for what is split along its dimension `d`, and the rest as it is."""
    return jax.tree.map(lambda x, spec: move(x, _split(spec)[0]) if _split(spec) else x, tree, specs)


def _split(spec: PartitionSpec) -> list[int]:
    return [d for d, name in enumerate(spec) if name is not None]
