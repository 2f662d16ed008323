"""Step 6: gradient descent, from a derivative by hand to a neural network with Flax and Optax.

    python experiments/step06_neural_network.py

1. `jax.grad` of 3 x^2 at 5 is 30, and of Rosenbrock's function at (0, 2) is (-2, 400).
2. Gradient descent walks down Rosenbrock's valley to its minimum at (1, 1).
3. A line is fitted by gradient descent: y = 2 x + 5 + noise. Least squares has the same answer in closed form.
4. A curve, y = sin(2 pi x) + noise, needs a network: an MLP, trained by Optax with the step that every model of gen_jax
   trains with.

About 15 seconds on two cores. Leaves in checkpoints/step06_neural_network/: rosenbrock.png, line.png, curve.png, loss.png
and summary.json.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from gen_jax import checks, keys, launch, plots
from gen_jax.networks.mlp import MLP
from gen_jax.training import TrainState, compile_step, make_step
from gen_jax.training.workdir import prepare
from gen_jax.types import Count, NotNegative, Seed


@checks.checked
@dataclass(frozen=True)
class Config:
    """Fit a line and a curve by gradient descent."""

    num: Count = 100
    """Points of each data set."""
    hidden: Count = 10
    """Width of the network's hidden layer."""
    steps: Count = 10_000
    """Of the network."""
    learning_rate: NotNegative = 0.2
    """Of the network, for plain gradient descent as in the book; it is so large that loss.png has spikes."""
    seed: Seed = 0
    workdir: Path = launch.ROOT / "checkpoints" / "step06_neural_network"


def rosenbrock(x: jax.Array) -> jax.Array:
    """`100 (x_1 - x_0^2)^2 + (x_0 - 1)^2`, whose minimum is 0 at (1, 1)."""
    return 100 * (x[1] - x[0] ** 2) ** 2 + (x[0] - 1) ** 2


def descend(function, start, learning_rate: float, steps: int):
    """The last `x` of `x <- x - learning_rate grad function(x)`, and every `x` on the way."""

    def step(x, _):
        x = jax.tree.map(lambda a, g: a - learning_rate * g, x, jax.grad(function)(x))
        return x, x

    return jax.jit(lambda x: jax.lax.scan(step, x, None, length=steps))(start)


def fit_line(x: jax.Array, y: jax.Array):
    """Weight and bias by gradient descent, and by least squares."""
    error = lambda params: jnp.mean((params["weight"] * x + params["bias"] - y) ** 2)
    found, _ = descend(error, {"weight": jnp.zeros(()), "bias": jnp.zeros(())}, 0.1, 2000)
    exact = jnp.linalg.lstsq(jnp.stack([x, jnp.ones_like(x)], axis=1), y)[0]
    return found, exact


def fit_curve(config: Config, x: jax.Array, y: jax.Array):
    """The network's parameters after training, its function `x -> y`, and the loss of every step."""
    net = MLP((config.hidden, 1), activation=jax.nn.sigmoid)

    def predict(params, x) -> jax.Array:
        return jnp.asarray(net.apply(params, x[:, None])).squeeze(1)

    def loss(params, key, batch):
        x, y = batch
        return jnp.mean((predict(params, x) - y) ** 2), {}

    optimizer = optax.sgd(config.learning_rate)
    params = net.init(jax.random.key(config.seed), x[:, None])
    state = TrainState.create(params, optimizer, jax.random.key(config.seed), ema=False)
    step = compile_step(
        make_step(loss, optimizer, ema_decay=None),
        steps_per_call=config.steps,
        mesh=Mesh(np.array(jax.local_devices()[:1]), (keys.AXIS,)),  # one device is enough
        select=lambda step, count: jnp.broadcast_to(
            jnp.arange(len(x)), (count, len(x))
        ),  # all rows, each step
    )
    state, metrics = step(state, (x, y))
    return state.params, lambda x: predict(state.params, x), np.asarray(metrics["loss"])


def parse(args: Sequence[str] | None = None) -> Config:
    """The configuration of a command line."""
    return launch.parse(Config, args, description=__doc__)


def main(config: Config) -> dict[str, object]:
    """Run all four; returns the numbers."""
    launch.start(1)
    prepare(config.workdir)
    key_x, key_line, key_curve = jax.random.split(jax.random.key(config.seed), 3)
    lowest, path = descend(rosenbrock, jnp.array([0.0, 2.0]), 1e-3, 10_000)
    grid = np.meshgrid(np.linspace(-2, 2, 200), np.linspace(-1, 3, 200))
    with plots.figure(config.workdir / "rosenbrock.png", width=5, height=5) as axes:
        axes.contour(
            *grid, np.log10(np.asarray(rosenbrock(jnp.stack(grid))) + 1e-3), levels=15, linewidths=0.7
        )
        axes.plot(*np.concatenate([[[0.0, 2.0]], path]).T, color="C3", label="gradient descent")
        axes.plot(1, 1, "*", color="black", markersize=10, label="minimum")
        axes.set(xlabel="$x_0$", ylabel="$x_1$", title="Rosenbrock's valley")
        axes.legend()

    x = jax.random.uniform(key_x, (config.num,))
    y = 2 * x + 5 + jax.random.uniform(key_line, x.shape)
    line, (weight, bias) = fit_line(x, y)
    across = jnp.linspace(0, 1, 200)
    with plots.figure(config.workdir / "line.png") as axes:
        axes.scatter(x, y, s=8, label="data")
        axes.plot(across, line["weight"] * across + line["bias"], color="C3", label="gradient descent")
        axes.set(xlabel="x", ylabel="y", title="a line")
        axes.legend()

    y = jnp.sin(2 * jnp.pi * x) + jax.random.uniform(key_curve, x.shape)
    params, curve, losses = fit_curve(config, x, y)
    with plots.figure(config.workdir / "curve.png") as axes:
        axes.scatter(x, y, s=8, label="data")
        axes.plot(across, curve(across), color="C3", label=f"network, {config.hidden} hidden units")
        axes.plot(across, jnp.sin(2 * jnp.pi * across) + 0.5, "--", color="gray", label="truth")
        axes.set(xlabel="x", ylabel="y", title="a curve")
        axes.legend()
    with plots.figure(config.workdir / "loss.png") as axes:
        axes.plot(losses)
        axes.set(xlabel="step", ylabel="mean squared error", yscale="log", title="training the network")

    summary = {
        "grad_of_3x^2_at_5": float(jax.grad(lambda x: 3 * x**2)(5.0)),
        "grad_of_rosenbrock_at_(0,2)": jax.grad(rosenbrock)(jnp.array([0.0, 2.0])).tolist(),
        "rosenbrock_minimum": [1.0, 1.0],
        "rosenbrock_descent_ended_at": lowest.tolist(),
        "line_by_descent": [float(line["weight"]), float(line["bias"])],
        "line_by_least_squares": [float(weight), float(bias)],
        "curve_parameters": sum(p.size for p in jax.tree.leaves(params)),
        "curve_mse": float(losses[-1]),
        "noise_variance": 1 / 12,
    }
    lines = ["next: python experiments/step07_vae.py"]
    return launch.finish(
        config.workdir, summary, config=config, experiment="step06_neural_network", lines=lines
    )


if __name__ == "__main__":
    launch.run(__file__)
