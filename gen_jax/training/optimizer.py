"""The optimizer of the experiments: a composition of optax, with its schedule at hand for the log."""

from collections.abc import Callable
from typing import Any

import optax

Schedule = Callable[[Any], Any]
"""`step -> learning rate`."""


def adam(
    learning_rate: float,
    *,
    num_steps: int,
    warmup_steps: int = 0,
    schedule: str = "cosine",
    clip_norm: float | None = 1.0,
    weight_decay: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    accumulate: int = 1,
) -> tuple[optax.GradientTransformation, Schedule]:
    """Adam (AdamW where `weight_decay > 0`) on clipped gradients, with linear warm-up and cosine or no decay.

        lr(k) = learning_rate * k / warmup_steps                      for k < warmup_steps
        lr(k) = learning_rate * (1 + cos(pi u)) / 2,  u in [0, 1]     after it, to 0 at `num_steps` ("cosine")

    With `accumulate = N` the gradients of `N` steps are averaged into one update (`optax.MultiSteps`);
    `num_steps` and `warmup_steps` still count steps, and the schedule that is returned is a function of the
    step.

    Returns `(optimizer, schedule)`. Raises ValueError for a warm-up that does not end before `num_steps`.
    Source: Kingma & Ba 2015; Loshchilov & Hutter 2019 (decoupled decay), 2017 (cosine).
    """
    if accumulate < 1:
        raise ValueError(
            f"accumulate must be at least 1 (gradients averaged into one update), got {accumulate}"
        )
    if not 0 <= warmup_steps < num_steps:
        raise ValueError(
            f"need 0 <= warmup_steps < num_steps, got {warmup_steps} and {num_steps}; shorten the warm-up"
        )
    if schedule not in ("cosine", "constant"):
        raise ValueError(f'schedule must be "cosine" or "constant", got {schedule!r}')
    updates, warmup = max(1, num_steps // accumulate), warmup_steps // accumulate
    if schedule == "constant":
        rate = optax.constant_schedule(learning_rate)
    else:
        rate = optax.cosine_decay_schedule(learning_rate, max(1, updates - warmup))
    if warmup:
        rate = optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup), rate], [warmup])
    steps = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    steps.append(
        optax.adamw(rate, b1, b2, eps, weight_decay=weight_decay)
        if weight_decay
        else optax.adam(rate, b1, b2, eps)
    )
    optimizer: Any = optax.chain(*steps)
    if accumulate > 1:
        optimizer = optax.MultiSteps(optimizer, accumulate).gradient_transformation()
    return optimizer, lambda step: rate(step // accumulate)
