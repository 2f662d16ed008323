"""What a run learned, in short: fingerprints of its loss and of its optimizer, for runs that no `config` describes.

A fingerprint is of the program: of the operations, their constants and the shapes, as JAX traces them. It does not depend
on devices, on names of functions or on where they are written. A newer JAX or gen_jax may trace the same loss to another
program, so fingerprints of two versions are not compared.
"""

import hashlib
import re
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

import gen_jax
from gen_jax.training import ema as averages
from gen_jax.training.state import Aux, Step, TrainState
from gen_jax.training.workdir import Json

_NAMES = re.compile(r"0x[0-9a-f]+|name=\S+|<function .*?>")
MOST_BYTES = 2**26
"""Of a constant that is looked at; of larger ones the shape has to do."""


def of_run(step: Step, state: TrainState, batch: PyTree, frozen: PyTree, num_steps: int) -> Json:
    """Of the loss and the optimizer of `make_step`, or of a step of one's own as a whole; shapes are enough as arguments.

    The optimizer often depends on the number of steps, by its schedule: it is told with it.
    """
    found: Json = {"versions": [jax.__version__, gen_jax.__version__], "num_steps": num_steps}
    shapes = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    state, frozen = shapes(state), shapes(frozen)
    parts = getattr(step, "parts", None)
    if parts is None:
        return found | {"step": fingerprint_of(step, state, batch)}
    loss, optimizer, aux = parts
    extra = (Aux(state.step, state.ema_params, frozen),) if aux else ()
    wide = jax.eval_shape(averages.wide, state.params)

    def update(grads: PyTree, opt_state: PyTree, value: jax.Array) -> PyTree:
        flat = lambda params: sum(jnp.sum(x) for x in jax.tree.leaves(params))
        return optimizer.update(grads, opt_state, grads, value=value, grad=grads, value_fn=flat)

    value = jax.ShapeDtypeStruct((), jnp.float32)
    return found | {
        "loss": fingerprint_of(loss, state.params, state.key, batch, *extra),
        "optimizer": [
            fingerprint_of(optimizer.init, wide),
            fingerprint_of(update, wide, state.opt_state, value),
        ],
    }


def fingerprint_of(function: Callable[..., Any], *args: PyTree) -> str | None:
    """Of the program of `function(*args)`; None where it can not be traced by itself, as inside of a mapped axis."""
    try:
        program = jax.make_jaxpr(function)(*args)
    except Exception:  # whatever the user's code raises, the run itself will say
        return None
    digest = hashlib.sha256(_NAMES.sub("", str(program.jaxpr)).encode())
    for x in program.consts:
        digest.update(f"{getattr(x, 'dtype', '')}{jnp.shape(x)}".encode())
        whole = not isinstance(x, jax.Array) or x.is_fully_addressable
        if whole and getattr(x, "nbytes", 0) <= MOST_BYTES and not _is_key(x):
            digest.update(np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()[:16]


def _is_key(x: object) -> bool:
    return jnp.issubdtype(getattr(x, "dtype", np.dtype(bool)), jax.dtypes.prng_key)


def check(saved: Json | None, now: Json, may_change: Collection[str], where: str) -> None:
    """Raise ValueError where the loss or the optimizer is not the one that the checkpoint was trained with.

    The optimizer may be another one where the run is to have another number of steps.
    """
    if not saved or saved.get("versions") != now["versions"]:
        return
    longer = saved.get("num_steps") != now["num_steps"]
    names = [
        name
        for name in ("loss", "optimizer", "step")
        if name not in may_change
        and None not in (saved.get(name), now.get(name))
        and saved[name] != now[name]
        and not (longer and name != "loss")
    ]
    if names:
        raise ValueError(
            f"cannot resume: the {' and the '.join(names)} of this run is not what the checkpoints in {where} were "
            "trained with (another learning rate is another optimizer). Give another workdir to start a new run; to go "
            f"on with what is there, give may_change={tuple(names)!r}, or describe runs by a config, which is compared "
            "in place of the programs."
        )
