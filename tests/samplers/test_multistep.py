import functools
import textwrap
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import dispatch
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from gen_jax import guidance, keys, samplers
from gen_jax.diffusion import prediction
from gen_jax.diffusion.process import DDPM, VP
from gen_jax.samplers import multistep, times

KEY = jax.random.key(11)
PROCESS = DDPM()
GRID = times.uniform(PROCESS, 8)
PLANS = {  # one of every shape: noise or not, memory or not
    "ddpm": samplers.DDPM().plan(PROCESS, GRID),
    "ddim": samplers.DDIM().plan(PROCESS, GRID),
    "dpmpp-2": samplers.DPMSolverPP(order=2).plan(PROCESS, GRID),
}
each_plan = pytest.mark.parametrize("name", PLANS)


def denoise(x_t, t):
    """Elementwise and not linear."""
    return jax.tree.map(lambda x: jnp.tanh(x + 1e-3 * t), x_t)


def clip(x_t, t):
    """Rounds alike wherever an element stands in the batch; tanh and division, on XLA's CPU, do not."""
    return jnp.clip(x_t, -0.5, 0.5)


def table_of(seed, n, order, noise):
    """Coefficients of no solver at all."""
    rng = np.random.default_rng(seed)
    h = np.tril(rng.normal(size=(n, order)) / order, 0) if n <= order else rng.normal(size=(n, order)) / order
    h[np.arange(n)[:, None] < np.arange(order)] = 0
    columns = {name: rng.uniform(-1, 1, n) for name in ("noise", "h_x", "h_x0")}
    if not noise:
        columns.pop("noise")
    return np.linspace(1, 0.1, n), rng.uniform(-1, 1, n), h, columns


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize(("n", "order"), [(1, 1), (1, 4), (2, 3), (7, 1), (7, 2), (9, 3), (9, 5)])
def test_sample_follows_any_table(n, order, noise):
    """The loop as papers write it: a list of the past that grows."""
    with jax.enable_x64(True):
        t, a, h, columns = table_of(n * order, n, order, noise)
        x_T = jax.random.normal(KEY, (3, 2))
        x, past = np.array(x_T), []
        for i in range(n):
            past.append(columns["h_x"][i] * x + columns["h_x0"][i] * np.tanh(x + 1e-3 * t[i]))
            x = a[i] * x + sum(h[i, j] * past[i - j] for j in range(min(order, i + 1)))
            for row in range(3) if noise else ():
                key = jax.random.fold_in(jax.random.fold_in(KEY, row), i)
                x[row] += columns["noise"][i] * jax.random.normal(key, (2,))
        plan = multistep.table(t, a, h, **columns)
        np.testing.assert_allclose(samplers.sample(KEY, denoise, plan, x_T), x, rtol=1e-10, atol=1e-12)


def test_corrector_is_a_row_of_the_same_table():
    """x + sum_j d_ij h_{i-j} after the denoiser was asked at x, folded into the step that follows (UniPC)."""
    with jax.enable_x64(True):
        n, order = 8, 4
        t, a, h, _ = table_of(0, n, order, False)
        d = table_of(1, n, order, False)[2]
        x_T = jax.random.normal(KEY, (3, 2))
        x, past = np.array(x_T), []
        for i in range(n):
            past.append(np.tanh(x + 1e-3 * t[i]))
            corrected = x + sum(d[i, j] * past[i - j] for j in range(min(order, i + 1)))
            x = a[i] * corrected + sum(h[i, j] * past[i - j] for j in range(min(order, i + 1)))
        plan = multistep.table(t, a, h + a[:, None] * d)
        np.testing.assert_allclose(samplers.sample(KEY, denoise, plan, x_T), x, rtol=1e-10, atol=1e-12)


@each_plan
def test_sample_is_init_step_finalize(name):
    plan, x_T = PLANS[name], PROCESS.prior(KEY, (3, 2))
    step = jax.jit(partial(samplers.step, KEY, denoise))
    state, path = samplers.init(plan, x_T), []
    for _ in range(plan.num_steps):
        state, x0_hat = step(plan, state)
        path.append((state.x, x0_hat))
    trace = lambda x, x0_hat: (x, x0_hat)
    x_0, traced = jax.jit(partial(samplers.sample, KEY, denoise, trace=trace))(plan, x_T)
    np.testing.assert_allclose(samplers.finalize(state), x_0, rtol=1e-6)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5), traced, tuple(map(jnp.stack, zip(*path, strict=True)))
    )


@each_plan
def test_trace_is_what_the_callback_picks(name):
    plan, x_T = PLANS[name], PROCESS.prior(KEY, (4, 3))
    run = partial(samplers.sample, KEY, denoise, plan, x_T)
    x_0, picked = run(trace=lambda x, x0_hat: {"two": x[:2], "norm": jnp.abs(x0_hat).sum()})
    assert picked["two"].shape == (8, 2, 3)
    assert picked["norm"].shape == (8,)
    np.testing.assert_array_equal(picked["two"][-1], x_0[:2])
    np.testing.assert_allclose(run(), x_0, rtol=1e-6)


@pytest.mark.usefixtures("optimized")
@each_plan
def test_sample_does_not_depend_on_the_batch(name):
    plan, x_T = PLANS[name], PROCESS.prior(KEY, (16, 3))
    run = jax.jit(lambda plan, x, index: samplers.sample(KEY, clip, plan, x, index=index))
    whole = run(plan, x_T, jnp.arange(16))
    np.testing.assert_array_equal(jax.jit(partial(samplers.sample, KEY, clip))(plan, x_T), whole)
    for part in (jnp.arange(5), jnp.arange(11, 16), jnp.asarray([9, 14, 2, 0, 3]), jnp.asarray([7])):
        np.testing.assert_array_equal(run(plan, x_T[part], part), whole[part])


@pytest.mark.usefixtures("optimized")
@each_plan
@pytest.mark.parametrize("how", ["sharded", "shard_map", "pmap"])
def test_sample_does_not_depend_on_the_number_of_devices(name, how):
    plan, x_T = PLANS[name], PROCESS.prior(KEY, (16, 3))
    run = partial(samplers.sample, KEY, clip)
    expected = jax.jit(run)(plan, x_T)
    mesh = jax.sharding.Mesh(jax.devices(), (keys.AXIS,))
    if how == "sharded":
        got = jax.jit(run)(plan, jax.device_put(x_T, jax.NamedSharding(mesh, P(keys.AXIS))))
    elif how == "shard_map":
        specs = {"in_specs": (P(), P(keys.AXIS)), "out_specs": P(keys.AXIS), "check_vma": False}
        got = jax.jit(jax.shard_map(run, mesh=mesh, **specs))(plan, x_T)
    else:
        got = jax.pmap(run, keys.AXIS, in_axes=(None, 0))(plan, x_T.reshape(8, 2, 3)).reshape(16, 3)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.usefixtures("optimized")
@each_plan
def test_sample_under_vmap_is_the_batch(name):
    plan, x_T = PLANS[name], PROCESS.prior(KEY, (6, 3))

    def one(plan, x, i):
        return samplers.sample(KEY, clip, plan, x[None], index=i[None])[0]

    got = jax.jit(jax.vmap(one, in_axes=(None, 0, 0)))(plan, x_T, jnp.arange(6))
    np.testing.assert_array_equal(got, jax.jit(partial(samplers.sample, KEY, clip))(plan, x_T))


def test_seeds_make_independent_noise():
    run = jax.jit(lambda key, x: samplers.sample(key, denoise, PLANS["ddpm"], x))
    x_T = jnp.zeros((2000, 1))
    one, two = (run(jax.random.key(seed), x_T)[:, 0] for seed in (0, 1))
    assert abs(np.corrcoef(one, two)[0, 1]) < 5 / 2000**0.5
    assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 5 / 2000**0.5
    assert len(np.unique(one)) == 2000


def test_one_compilation_serves_all_plans_of_a_shape():
    traces = []

    @jax.jit
    def run(key, plan, x_T):
        traces.append(plan)
        return samplers.sample(key, denoise, plan, x_T)

    x_T = PROCESS.prior(KEY, (2, 3))
    for seed, process in enumerate((DDPM(), DDPM(schedule="cosine"), VP())):
        for grid in (times.uniform(process, 8), times.karras(process, 8)):
            for solver in (samplers.DDPM(), samplers.DDPM("beta"), samplers.DDIM(0.5), samplers.DDIM(1.0)):
                run(jax.random.key(seed), solver.plan(process, grid), x_T)
    assert len(traces) == 1
    run(KEY, PLANS["ddim"], x_T)
    run(KEY, samplers.DPMSolverPP(order=1).plan(VP(), times.log_snr(VP(), 8)), x_T)
    assert len(traces) == 2


def test_one_compilation_serves_times_weights_and_solvers_of_equal_memory():
    traces = []

    @jax.jit
    def run(key, plan, x_T, weight):
        traces.append(plan)
        guided = guidance.classifier_free(denoise, clip, weight)
        return samplers.sample(key, guided, plan, x_T)

    x_T, grid = PROCESS.prior(KEY, (2, 3)), times.log_snr(PROCESS, 8, final="stop")
    for weight, t_start in ((0.0, None), (1.0, 900.0), (3.0, 500.0)):
        for make in (times.uniform, times.karras, times.log_snr, times.beta, times.cosine):
            plan = samplers.DPMSolverPP(order=3).plan(PROCESS, make(PROCESS, 8, t_start=t_start))
            run(KEY, plan, x_T, weight)
    for solver in (
        samplers.DEIS(order=3),
        samplers.LMS(order=3),
        samplers.IPNDM(order=3),
        samplers.UniPC(order=2),
    ):
        for ends in (grid, grid[::-1]):
            run(KEY, solver.plan(PROCESS, ends), x_T, 2.0)
    assert len(traces) == 1


@pytest.mark.parametrize("name", ["ddpm"])
def test_4096_samples_in_chunks_are_those_at_once(name):
    plan, x_T = PLANS[name], PROCESS.prior(KEY, (4096, 4, 4, 1))
    run = jax.jit(lambda x, index: samplers.sample(KEY, clip, plan, x, index=index))
    whole = jax.jit(partial(samplers.sample, KEY, clip))(plan, x_T)
    chunks = [run(x_T[i : i + 512], jnp.arange(i, i + 512)) for i in range(0, 4096, 512)]
    np.testing.assert_array_equal(jnp.concatenate(chunks), whole)


@each_plan
def test_loop_is_one_scan_without_branches_and_noise_only_where_there_is_some(name):
    x_T = PROCESS.prior(KEY, (2, 3))
    text = str(jax.make_jaxpr(partial(samplers.sample, KEY, denoise))(PLANS[name], x_T))
    assert text.count("scan[") == 1
    assert "cond[" not in text
    assert "while[" not in text
    assert ("random_bits" in text) == (name == "ddpm")


@each_plan
def test_nfe_is_how_often_the_denoiser_is_asked(name):
    asked = []

    def counting(x_t, t):
        asked.append(float(t))
        return denoise(x_t, t)

    with jax.disable_jit():
        samplers.sample(KEY, counting, PLANS[name], jnp.ones((1, 1)))
    assert len(asked) == PLANS[name].nfe
    np.testing.assert_array_equal(asked, GRID[:-1])


@each_plan
def test_states_are_pytrees(name):
    plan = PLANS[name]
    image, points = jax.random.normal(KEY, (3, 4, 4, 1)), jax.random.normal(KEY, (3, 5))
    alone = samplers.sample(KEY, denoise, plan, image)
    boxed = samplers.sample(KEY, denoise, plan, {"image": image})
    np.testing.assert_array_equal(boxed["image"], alone)
    both = samplers.sample(KEY, denoise, plan, {"image": image, "points": points})
    assert jax.tree.map(jnp.shape, both) == {"image": (3, 4, 4, 1), "points": (3, 5)}
    if plan.noise is None:
        np.testing.assert_allclose(both["image"], alone, rtol=1e-6)
        np.testing.assert_allclose(both["points"], samplers.sample(KEY, denoise, plan, points), rtol=1e-6)


@each_plan
def test_arithmetic_is_float32_around_a_bfloat16_network(name):
    plan, x_T = PLANS[name], PROCESS.prior(KEY, (4, 3))

    def low(x, t):
        return denoise(x, t).astype(jnp.bfloat16)

    exact, x_0 = (samplers.sample(KEY, d, plan, x_T) for d in (denoise, low))
    assert x_0.dtype == jnp.float32
    np.testing.assert_allclose(x_0, exact, atol=2e-2)
    x_0, path = samplers.sample(KEY, low, plan, x_T.astype(jnp.bfloat16), trace=lambda x, x0_hat: x)
    assert x_0.dtype == jnp.bfloat16
    assert path.dtype == jnp.float32


def test_plan_is_a_pytree_of_float32_arrays():
    for plan in PLANS.values():
        leaves = jax.tree.leaves(plan)
        assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in leaves)
        assert plan.nfe == plan.num_steps == 8
    with jax.enable_x64(True):
        plan = samplers.DDIM().plan(PROCESS, GRID)
        assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(plan))


def test_sample_on_the_network_side_is_one_closure():
    """The README's five lines: a network with parameters, a label and no knowledge of diffusion."""

    def network(params, x, t, label):
        return params * x + label[:, None] / (1 + t[:, None])

    @jax.jit
    def draw(key, params, label):
        key_prior, key_noise = jax.random.split(key)
        denoise = prediction.as_denoiser(lambda x, t: network(params, x, t, label), PROCESS, predicts="v")
        x_T = PROCESS.prior(key_prior, (2, 3))
        return samplers.sample(key_noise, prediction.clipped(denoise), PLANS["ddpm"], x_T)

    x_0 = draw(KEY, jnp.asarray(0.5), jnp.asarray([0.0, 1.0]))
    assert x_0.shape == (2, 3)
    assert np.abs(x_0).max() <= 1


# --- a loop of one's own ---


def test_package_docstring_runs():
    """The examples of `gen_jax.samplers`, as they stand there, with everything they name."""
    blocks, lines = [], samplers.__doc__.splitlines()
    for line, before in zip(lines, ["", *lines], strict=False):
        if line.startswith("    ") or (blocks and not line and blocks[-1][-1].startswith("     ")):
            blocks.append([]) if not before.startswith("    ") else None
            blocks[-1].append(line)
    assert len(blocks) == 3
    eps, x_0 = jax.random.normal(KEY, (2, 64, 28, 28, 1))
    x_0 = 0.3 * x_0
    scope = {
        "jax": jax,
        "functools": functools,
        "samplers": samplers,
        "proc": PROCESS,
        "key": KEY,
        "eps": eps,
    }
    scope |= {"key_prior": jax.random.key(1), "denoise": lambda x_t, t: 0.1 * x_t}
    exec(textwrap.dedent("\n".join(blocks[0])), scope)
    assert scope["x_0"].shape == x_0.shape
    scope["x_0"] = x_0
    exec(textwrap.dedent("\n".join(blocks[1])), scope)
    np.testing.assert_allclose(scope["x_0"], x_0, atol=0.2)
    scope["x_0"] = x_0
    exec(textwrap.dedent("\n".join(blocks[2])), scope)
    first, last = scope["inpainted"], scope["x0_hat"]
    assert first.shape == x_0.shape
    np.testing.assert_allclose(first[:, :, 14:], last[:, :, 14:], atol=1e-5)


@pytest.mark.parametrize("name", ["dpmpp-2"])
def test_loop_of_ones_own_is_a_scan_or_a_while_of_the_same_step(name):
    """`State` is the carry of any loop of jax; a step may be undone by keeping the state before it."""
    plan, x_T = PLANS[name], PROCESS.prior(KEY, (3, 2))
    one = partial(samplers.step, KEY, denoise, plan)
    loop = lambda state: jax.lax.while_loop(lambda s: s.step < plan.num_steps, lambda s: one(s)[0], state)
    got = samplers.finalize(jax.jit(loop)(samplers.init(plan, x_T)))
    np.testing.assert_allclose(got, samplers.sample(KEY, denoise, plan, x_T), rtol=1e-5)
    state, _ = one(samplers.init(plan, x_T))
    jax.tree.map(np.testing.assert_array_equal, one(state), one(state))


# --- gradients in the square root of the steps ---


def plan_of(n, solver=None):
    return (solver or samplers.DPMSolverPP(order=min(n, 2))).plan(VP(), times.log_snr(VP(), n))


@pytest.mark.parametrize("n", [1, 3, 16, 23])
def test_checkpointed_sample_is_the_same(n):
    """Values, traces and gradients, for numbers of steps that are squares and that are not."""

    def both(scale, checkpoint):
        shifted = lambda x, t: jnp.tanh(scale * x + t)
        trace = lambda x, x0_hat: {"x": x, "x0_hat": x0_hat}
        x_0, path = samplers.sample(KEY, shifted, plan_of(n), x_T, trace=trace, checkpoint=checkpoint)
        return x_0.sum() + jnp.square(path["x0_hat"]).sum(), path

    x_T = VP().prior(KEY, (3, 2))
    plain, again = (
        jax.jit(partial(jax.value_and_grad(both, has_aux=True), checkpoint=c))(jnp.float32(0.7))
        for c in (False, True)
    )
    assert again[0][1]["x"].shape == (n, 3, 2)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), plain, again)


@pytest.mark.parametrize("solver", [samplers.LMS(order=4), samplers.DDPM()], ids=repr)
def test_checkpointed_sample_is_differentiable(solver):
    with jax.enable_x64(True):
        plan = plan_of(20, solver)

        @jax.jit
        def x_0(x_T, scale):
            return samplers.sample(KEY, lambda x, t: jnp.tanh(scale * x + t), plan, x_T, checkpoint=True)

        check_grads(
            x_0, (jnp.linspace(-1.0, 1.0, 3)[:, None], jnp.asarray(0.7)), order=1, modes=["rev"], rtol=1e-5
        )


def test_memory_of_checkpointed_gradients_grows_as_the_root_of_the_steps():
    weights = jnp.zeros((2, 32, 32))

    def loss(weights, plan, x_T, checkpoint):
        layers = lambda x, t: functools.reduce(lambda x, w: jnp.tanh(x @ w), weights, x)
        return samplers.sample(KEY, layers, plan, x_T, checkpoint=checkpoint).sum()

    def memory(n, checkpoint):
        grad = jax.jit(jax.grad(partial(loss, checkpoint=checkpoint)))
        lowered = grad.lower(weights, plan_of(n), jnp.ones((64, 32)))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    plain, root = ([memory(n, checkpoint) for n in (64, 256)] for checkpoint in (False, True))
    assert plain[1] / plain[0] > 3.5
    assert root[1] / root[0] < 2.5
    assert root[1] < plain[1] / 8


def test_checkpointed_sample_traces_the_denoiser_once():
    """Not once a segment, nor again for the steps that are left of 23."""
    traces = []

    def counting(x_t, t):
        traces.append(t)
        return denoise(x_t, t)

    for n in (16, 23):
        traces.clear()
        jax.make_jaxpr(partial(samplers.sample, KEY, counting, plan_of(n), checkpoint=True))(jnp.ones((2, 3)))
        assert len(traces) == 1


# --- which step was not finite ---


def bad_below(t_bad, value=jnp.nan):
    """Answers with one bad number in the samples 1 and 2 from the time `t_bad` on."""

    def denoise(x_t, t):
        return jax.tree.map(lambda x: x.at[1:3, 0].set(jnp.where(t < t_bad, value, 0.5)), x_t)

    return denoise


@pytest.fixture
def forgotten():
    """JAX keeps the error of an effect, and would raise it again in the next test that waits for effects."""
    yield
    dispatch.runtime_tokens.clear()


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize(("name", "value"), [("ddim", np.nan), ("dpmpp-2", np.inf)])
def test_check_finite_says_at_which_step(name, value):
    words = r"denoiser returned NaN or inf in 2 samples at step 5 of 8, t = 375, where x_t was still finite"
    run = partial(samplers.sample, KEY, bad_below(400, value), PLANS[name], check_finite=True)
    x_T = PROCESS.prior(KEY, (4, 3))
    with jax.debug_nans(False):
        with pytest.raises(FloatingPointError, match=words):
            run(x_T)
        with pytest.raises(jax.errors.JaxRuntimeError, match=words):
            jax.block_until_ready(jax.jit(run)(x_T))


@pytest.mark.usefixtures("forgotten")
def test_check_finite_says_whether_x_t_was_finite():
    with jax.debug_nans(False):
        x_T = jnp.ones((4, 3)).at[2, 1].set(jnp.nan)
        with pytest.raises(ValueError, match="x_T must be finite, got nan in 1 of 4 rows: 2"):
            samplers.sample(KEY, denoise, PLANS["ddim"], x_T)
        run = jax.jit(partial(samplers.sample, KEY, denoise, PLANS["ddim"], check_finite=True))
        with pytest.raises(
            jax.errors.JaxRuntimeError, match=r"x_t was NaN or inf in 1 samples at step 0.*x_T was given so"
        ):
            jax.block_until_ready(run(x_T))
        plan = multistep.table(np.linspace(1, 0.1, 4), np.ones(4), np.full((4, 1), 10.0))
        with pytest.raises(
            FloatingPointError, match=r"in 4 samples at step 1 of 4, t = 0.7: x0_hat .* too large"
        ):
            samplers.sample(KEY, lambda x, t: 0 * x + 2e38, plan, jnp.ones((4, 3)), check_finite=True)


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("how", ["grad", "vmap", "checkpoint", "sharded", "pytree", "bfloat16"])
def test_check_finite_works_in_every_transformation(how):
    run = partial(samplers.sample, KEY, bad_below(400), PLANS["dpmpp-2"], check_finite=True)
    x_T = PROCESS.prior(KEY, (8, 3))
    mesh = jax.sharding.Mesh(jax.devices(), (keys.AXIS,))
    calls = {
        "grad": lambda: jax.jit(jax.grad(lambda x: run(x).sum()))(x_T),
        "vmap": lambda: jax.jit(jax.vmap(run))(x_T.reshape(2, 4, 3)),
        "checkpoint": lambda: jax.jit(partial(run, checkpoint=True))(x_T),
        "sharded": lambda: jax.jit(run)(jax.device_put(x_T, jax.NamedSharding(mesh, P(keys.AXIS)))),
        "pytree": lambda: jax.jit(run)({"a": x_T, "b": x_T}),
        "bfloat16": lambda: jax.jit(run)(x_T.astype(jnp.bfloat16)),
    }
    with (
        jax.debug_nans(False),
        pytest.raises(jax.errors.JaxRuntimeError, match="in 2 samples at step 5 of 8"),
    ):
        jax.block_until_ready(calls[how]())


@pytest.mark.parametrize("name", ["dpmpp-2"])
def test_check_finite_changes_nothing_else(name):
    x_T = PROCESS.prior(KEY, (4, 3))
    run = partial(samplers.sample, KEY, denoise, PLANS[name])
    np.testing.assert_allclose(jax.jit(partial(run, check_finite=True))(x_T), jax.jit(run)(x_T), rtol=1e-6)
    text = str(jax.make_jaxpr(run)(x_T))
    assert "is_finite" not in text
    assert "callback" not in text


# --- what is rejected ---


def test_table_rejects_what_no_solver_can_do():
    one = np.ones(3)
    with pytest.raises(ValueError, match="before the first"):
        multistep.table(one, one, np.ones((3, 2)))
    with pytest.raises(ValueError, match="finite; got x = nan at step 1 of 3, t = 1"):
        multistep.table(one, np.array([1, np.nan, 1]), np.ones((3, 1)))


@pytest.mark.parametrize(
    ("denoise", "x_T", "words"),
    [
        (lambda x, t: x[:, :1], jnp.ones((2, 3)), r"denoiser .*\(2, 3\).*returned \(2, 1\)"),
        (lambda x, t: (x, t), jnp.ones((2, 3)), r"denoiser .*returned PyTreeDef\(\(\*, \*\)\)"),
        (lambda x, t: jnp.ones((2, 3), int), jnp.ones((2, 3)), "denoiser .*floating-point.*int32"),
        (denoise, jnp.ones((2, 3), int), "x_T .*int32"),
        (denoise, {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 3))}, r"one B.*\(2, 3\), \(3, 3\)"),
        (denoise, jnp.ones(()), r"one B.*\[\(\)\]"),
        (denoise, {}, r"one B.*\[\]"),
    ],
)
def test_sample_rejects_bad_input(denoise, x_T, words):
    with pytest.raises(ValueError, match=words):
        jax.jit(partial(samplers.sample, KEY, denoise))(PLANS["ddim"], x_T)
