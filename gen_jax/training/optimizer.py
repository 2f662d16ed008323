"""The optimizers of the experiments: compositions of optax, with the schedule at hand for the log."""

from collections.abc import Callable
from functools import partial

import jax
import optax
from optax.contrib import MuonDimensionNumbers

from gen_jax import checks
from gen_jax.types import Count, Decay, NotNegative, Positive, Size

NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
"""`X <- a X + b (X X^T) X + c (X X^T)^2 X` (Jordan et al. 2024)."""


@checks.checked
def adam(
    learning_rate: NotNegative,
    *,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NotNegative = 1e-8,
    weight_decay: NotNegative = 0.0,
    num_steps: Count,
    warmup_steps: Size = 0,
    schedule: str = "cosine",
    clip_norm: Positive | None = 1.0,
    accumulate: Count = 1,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Adam (AdamW where `weight_decay > 0`) with the schedule, clipping and accumulation of `scheduled`.

    Source: Kingma & Ba 2015; Loshchilov & Hutter 2019 (decoupled decay).
    """
    rule = partial(optax.adamw, weight_decay=weight_decay) if weight_decay else optax.adam
    return scheduled(
        partial(rule, b1=b1, b2=b2, eps=eps),
        learning_rate,
        num_steps=num_steps,
        warmup_steps=warmup_steps,
        schedule=schedule,
        clip_norm=clip_norm,
        accumulate=accumulate,
    )


@checks.checked
def muon(
    learning_rate: NotNegative,
    *,
    momentum: Decay = 0.95,
    b2: Decay = 0.999,
    iterations: Count = 5,
    num_steps: Count,
    warmup_steps: Size = 0,
    schedule: str = "cosine",
    clip_norm: Positive | None = 1.0,
    accumulate: Count = 1,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Muon for matrices and kernels, Adam for vectors, with the options of `scheduled`.

        M <- momentum M + (1 - momentum) G,   W <- W - lr 0.2 sqrt(max(m, n)) U V^T   where   U S V^T = svd(M)

    with Nesterov's momentum in `M`. `iterations` of Newton and Schulz approximate `U V^T`: all singular values are then
    between 0.6 and 1.3. A rescaling before them saves one iteration (AOL; Boissin et al. 2025). The kernel of a
    convolution is taken as the matrix `[k l C, D]`. The factor makes steps as large as Adam's, so the same learning
    rates work.

    Source: Jordan et al. 2024; the factor, Liu et al. 2025, Eq. 4.
    """

    def as_matrices(params):
        matrix = lambda p: MuonDimensionNumbers(tuple(range(p.ndim - 1)), p.ndim - 1) if p.ndim > 1 else None
        return jax.tree.map(matrix, params)

    rule = partial(
        optax.contrib.muon,
        ns_steps=iterations,
        ns_coeffs=[NEWTON_SCHULZ] * iterations,  # as many rows: a loop, where one row would be unrolled
        preconditioning="aol",
        beta=momentum,
        adam_b2=b2,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=as_matrices,
    )
    return scheduled(
        rule,
        learning_rate,
        num_steps=num_steps,
        warmup_steps=warmup_steps,
        schedule=schedule,
        clip_norm=clip_norm,
        accumulate=accumulate,
    )


@checks.checked
def scheduled(
    rule: Callable[[optax.Schedule], optax.GradientTransformation],
    learning_rate: NotNegative,
    *,
    num_steps: Count,
    warmup_steps: Size = 0,
    schedule: str = "cosine",
    clip_norm: Positive | None = 1.0,
    accumulate: Count = 1,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Any `rule` of optax (a function of its schedule) on clipped gradients, with warm-up and cosine or no decay.

        lr(k) = learning_rate * k / warmup_steps                      for k < warmup_steps
        lr(k) = learning_rate * (1 + cos(pi u)) / 2,  u in [0, 1]     after it, to 0 at `num_steps` ("cosine")

    With `accumulate = N` the gradients of `N` steps are averaged into one update (`optax.MultiSteps`);
    `num_steps` and `warmup_steps` still count steps, and the schedule that is returned is a function of the
    step.

    Returns `(optimizer, schedule)`. Raises ValueError for a warm-up that does not end before `num_steps`, and for a rate
    that is negative or not finite. Source: Loshchilov & Hutter 2017 (cosine).
    """
    if not warmup_steps < num_steps:
        raise ValueError(
            f"need 0 <= warmup_steps < num_steps, got {warmup_steps} and {num_steps}; shorten the warm-up"
        )
    if schedule not in ("cosine", "constant"):
        near = checks.nearest(schedule, ("cosine", "constant"))
        raise ValueError(f'schedule must be "cosine" or "constant", got {schedule!r}.{near}')
    updates, warmup = max(1, num_steps // accumulate), warmup_steps // accumulate
    if schedule == "constant":
        rate = optax.constant_schedule(learning_rate)
    else:
        rate = optax.cosine_decay_schedule(learning_rate, max(1, updates - warmup))
    if warmup:
        rate = optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup), rate], [warmup])
    clip = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    optimizer: optax.GradientTransformation = optax.chain(*clip, rule(rate))
    if accumulate > 1:
        optimizer = optax.MultiSteps(optimizer, accumulate).gradient_transformation()
    return optimizer, lambda step: rate(step // accumulate)
