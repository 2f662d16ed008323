"""What belongs together: plans, denoisers and processes, times and processes, rows and times; and what the answer is."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import editing, guidance, inverse, model, normal, samplers
from gen_jax.diffusion import likelihood, loss, oracle, prediction, variance
from gen_jax.diffusion.process import DDPM, EDM, VE, VP, FlowMatching, LogSNR, Process, SubVP, expand
from gen_jax.samplers import multistep, named
from tests import described

KEY = jax.random.key(0)
LINEAR, COSINE = DDPM(50, beta_max=0.3), DDPM(50, "cosine")
NORMAL = normal.Normal(jnp.array(2.0), jnp.array(0.5))
X = jax.random.normal(KEY, (4, 2))


def network(x_t, t):
    return jnp.zeros_like(x_t) * t[:, None]


def plan_of(process, solver=None):
    solver = samplers.DDIM() if solver is None else solver
    return solver.plan(process, samplers.times.uniform(process, 5, final="denoise"))


DENOISERS = {
    "oracle": lambda p: oracle.gaussian(NORMAL, p),
    "network": lambda p: prediction.as_denoiser(network, p, predicts="v"),
    "clipped": lambda p: prediction.clipped(oracle.gaussian(NORMAL, p)),
    "threshold": lambda p: prediction.dynamic_threshold(oracle.gaussian(NORMAL, p)),
    "guided": lambda p: guidance.classifier_free(*[oracle.gaussian(NORMAL, p)] * 2, 2.0),
    "linear": lambda p: guidance.linear([lambda x, t: x, oracle.gaussian(NORMAL, p)], [0.5, 0.5]),
    "classifier": lambda p: guidance.classifier(oracle.gaussian(NORMAL, p), lambda x, t: x.sum(1), p),
    "pigdm": lambda p: inverse.pigdm(oracle.gaussian(NORMAL, p), p, inverse.Mask(np.ones((1, 2), bool)), X),
}


@pytest.mark.parametrize("name", DENOISERS)
def test_a_plan_of_another_process_is_found(name):
    plan, words = plan_of(LINEAR), "plan must be of the process of denoise.*at t = 50 the plan has alpha ="
    with pytest.raises(ValueError, match=words):
        samplers.sample(KEY, DENOISERS[name](COSINE), plan, X)
    assert samplers.sample(KEY, DENOISERS[name](LINEAR), plan, X).shape == X.shape


def test_any_solver_knows_its_levels():
    """But for tables of one's own, which are compared with nothing."""
    for row in named.SOLVERS.values():
        plan = plan_of(LINEAR, row.solver)
        t = np.asarray(plan.t, np.float64)
        np.testing.assert_allclose(plan.levels, np.stack([LINEAR.alpha(t), LINEAR.sigma(t)], 1), rtol=1e-5)
    plan = multistep.table(np.array([40.0, 10.0]), np.ones(2), np.zeros((2, 1)))
    np.testing.assert_array_equal(samplers.sample(KEY, oracle.gaussian(NORMAL, COSINE), plan, X), X)


def test_the_same_process_in_other_words_is_the_same():
    one, other = (LogSNR(lambda t: 10 - 20 * t) for _ in range(2))
    assert one != other
    samplers.sample(KEY, oracle.gaussian(NORMAL, one), plan_of(other), X)
    samplers.sample(KEY, oracle.gaussian(NORMAL, VP()), plan_of(VP(t_min=0.01)), X)
    longer = EDM(sigma_max=100.0)
    ll = likelihood.vlb(KEY, oracle.gaussian(NORMAL, EDM()), longer, X, num_samples=2)
    assert np.isfinite(ll.nats).all()


OTHERS = {
    "learned": lambda: samplers.learned.sample(
        KEY,
        variance.as_denoiser(lambda x, t: (x, x), COSINE),
        samplers.learned.plan(LINEAR, samplers.times.uniform(LINEAR, 5)),
        X,
    ),
    "repaint": lambda: inverse.repaint(
        KEY, oracle.gaussian(NORMAL, LINEAR), LINEAR, plan_of(COSINE), X, X, np.ones((1, 2), bool)
    ),
    "sdedit": lambda: editing.sdedit(KEY, oracle.gaussian(NORMAL, COSINE), COSINE, plan_of(LINEAR), X),
    "encode": lambda: editing.encode(
        oracle.gaussian(NORMAL, COSINE), LINEAR, samplers.DDIM(), np.array([50.0, 20.0, 1.0]), X
    ),
    "vlb": lambda: likelihood.vlb(KEY, oracle.gaussian(NORMAL, COSINE), LINEAR, X),
    "ode": lambda: likelihood.ode(KEY, oracle.gaussian(NORMAL, SubVP()), VP(), X),
    "adaptive": lambda: samplers.adaptive.ode(oracle.gaussian(NORMAL, VE()), VE(sigma_max=80.0), X),
    "two": lambda: guidance.classifier_free(
        oracle.gaussian(NORMAL, LINEAR), oracle.gaussian(NORMAL, COSINE), 2.0
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_two_processes_in_one_call_are_found(name):
    with pytest.raises(ValueError, match=r"must be of .*process"):
        OTHERS[name]()


def test_a_comparison_is_made_once_and_not_of_traced_plans():
    plan, process = plan_of(LINEAR), oracle.gaussian(NORMAL, LINEAR)
    samplers.sample(KEY, process, plan, X)
    asked = []

    class Counting(DDPM):
        def alpha(self, t):
            asked.append(t)
            return super().alpha(t)

    den = prediction.as_denoiser(network, Counting(50, beta_max=0.3), predicts="v")
    samplers.sample(KEY, den, plan, X)
    after = len(asked)
    samplers.sample(KEY, den, plan, X)
    assert len(asked) == after  # neither compared nor compiled again
    assert jax.jit(lambda plan: samplers.sample(KEY, den, plan, X))(plan_of(COSINE)).shape == X.shape


# --- times and rows ---

PROCESSES = {
    "ddpm": LINEAR,
    "vp": VP(),
    "sub_vp": SubVP(),
    "ve": VE(),
    "edm": EDM(),
    "flow": FlowMatching(),
    "log_snr": LogSNR(lambda t: 12 - 22 * t),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_times_outside_of_a_process_are_found(name):
    process = PROCESSES[name]
    late = 1.5 * process.t_max
    for f in (process.alpha, process.sigma, process.log_snr, lambda t: process.perturb(X, t, X)):
        for t in (-5.0, late, np.array([0.0, late]).mean() * 2, jnp.asarray(late)):
            with pytest.raises(ValueError, match=r"t must be in \[0, .*\], the times of the process.*got"):
                f(t)
        with pytest.raises(ValueError, match="t must be"):
            f(np.full(4, np.nan))
        f(np.float32(process.t_max))


def test_a_process_of_ones_own_is_asked_in_its_times():
    @dataclasses.dataclass(frozen=True)
    class Own(Process):
        t_min: float = 0.01
        t_max: float = 2.0

        def alpha(self, t):
            return 1 - t / 2

        def sigma(self, t):
            return t

    with pytest.raises(ValueError, match=r"t must be in \[0, 2\]"):
        Own().log_snr(-1.0)
    np.testing.assert_allclose(Own().perturb(X, 1.0, X), 1.5 * X, rtol=1e-6)


def test_log_snr_must_fall():
    with pytest.raises(
        ValueError, match=r"strictly decreases.*got -9.98 at 0.001, and 10 at 1: return minus"
    ):
        LogSNR(lambda t: 20 * t - 10)
    with pytest.raises(ValueError, match="strictly decreases"):
        LogSNR(lambda t: 5 + 0 * t)
    make = lambda slope: LogSNR(lambda t: -slope * t).sigma(0.5)
    np.testing.assert_allclose(jax.jit(make)(2.0), (1 / (1 + np.exp(-1.0))) ** 0.5, rtol=1e-6)  # traced


ROWS = {
    "t of the columns": lambda: LINEAR.perturb(X, jnp.array([1.0, 2.0]), X),
    "t across": lambda: LINEAR.perturb(X[:, 0], jnp.full((4, 1), 2.0), X[:, 0]),
    "t along another axis": lambda: LINEAR.perturb(X[:, :1], jnp.full((1, 4), 2.0), X[:, :1]),
}


@pytest.mark.parametrize("name", ROWS)
def test_one_time_for_each_row_alone(name):
    with pytest.raises(ValueError, match="t must be one number, or one for each of the rows of x_0"):
        ROWS[name]()


def test_noise_is_shaped_as_the_data():
    with pytest.raises(ValueError, match=r"eps must have the shape of x_0, \(4, 2\); got \(4, 1\)"):
        LINEAR.perturb(X, 1.0, X[:, :1])
    with pytest.raises(ValueError, match=r"values must be one number, or one for each"):
        expand(jnp.ones(3), X)
    frames = LINEAR.perturb(jnp.ones((2, 3, 5)), jnp.full((2, 3), 10.0), jnp.zeros((2, 3, 5)))
    np.testing.assert_allclose(frames, np.full((2, 3, 5), LINEAR.alpha(np.array(10.0))), rtol=1e-6)


def test_a_classifier_says_one_number_for_each_sample():
    den = oracle.gaussian(NORMAL, LINEAR)
    guided = guidance.classifier(den, lambda x, t: jnp.stack([x[:, 0], -x[:, 0]], 1), LINEAR)
    with pytest.raises(
        ValueError, match=r"log_prob must return one number for each sample, \(4,\); got \(4, 2\)"
    ):
        guided(X, 10.0)
    logits = lambda x, t: jnp.stack([x[:, 0], -x[:, 0]], 1)
    with pytest.raises(ValueError, match=r"label must be one for each sample, \(4,\); got \(3,\)"):
        guidance.log_class(logits, jnp.array([0, 1, 1]))(X, 10.0)
    with pytest.raises(ValueError, match="label must be from 0 to 1, a class of the classifier; got 2"):
        guidance.log_class(logits, jnp.array([0, 1, 2, 0]))(X, 10.0)


def test_there_are_as_many_conditions_as_samples():
    of_label = lambda x_t, t, label: x_t * label.mean()
    den = guidance.classifier_free_batched(of_label, jnp.ones(3), jnp.zeros(3), 2.0)
    with pytest.raises(
        ValueError, match=r"condition must be one for each of the 4 samples.*got the shape \(3,\)"
    ):
        den(X, 10.0)


# --- habits ---

PLAN = plan_of(LINEAR)
DEN = oracle.gaussian(NORMAL, LINEAR)
FAULTS = {
    "a solver for a plan": (
        lambda: samplers.sample(KEY, DEN, samplers.DDIM(), X),
        r"plan must be a Plan, as solver.plan\(process, times\) makes one, got DDIM",
    ),
    "a grid for a plan": (
        lambda: samplers.sample(KEY, DEN, samplers.times.uniform(LINEAR, 5), X),
        r"plan must be a Plan, as solver.plan.*got an array float64 \(6,\)",
    ),
    "another order": (lambda: samplers.sample(DEN, KEY, PLAN, X), "key must be a key of jax.random.key"),
    "a network": (
        lambda: samplers.sample(KEY, network, PLAN, X),
        r"it is a network.*prediction.as_denoiser\(network, process, predicts=...\).*IndexError",
    ),
    "a network in a bound": (lambda: likelihood.vlb(KEY, network, LINEAR, X), "it is a network"),
    "a network that is guided": (
        lambda: guidance.classifier_free(network, DEN, 2.0)(X, 3.0),
        "it is a network",
    ),
    "times of a denoiser": (
        lambda: prediction.as_denoiser(network, LINEAR, predicts="v")(X, jnp.ones(4)),
        r"t must be one time of all samples, a scalar; got the shape \(4,\)",
    ),
    "a misspelt solver": (lambda: named.plan(LINEAR, "dpmp", 5), "got 'dpmp'. Did you mean dpmpp"),
    "a misspelt end": (
        lambda: samplers.times.uniform(LINEAR, 5, final="denoised"),
        "got 'denoised'. Did you mean denoise?",
    ),
    "a misspelt prediction": (
        lambda: prediction.as_denoiser(network, LINEAR, predicts="velocty"),
        "got 'velocty'. Did you mean velocity?",
    ),
    "a misspelt schedule": (lambda: DDPM(schedule="linaer"), "got 'linaer'. Did you mean linear"),
    "rescale": (
        lambda: guidance.classifier_free(DEN, DEN, 2.0, rescale=7),
        "rescale must be .*at most 1, got 7",
    ),
    "steps of a bound": (
        lambda: likelihood.vlb(KEY, DEN, LINEAR, X, num_steps=-5),
        "num_steps must be at least 1, got -5",
    ),
    "steps of a process": (lambda: DDPM(num_steps=2.5), "num_steps must be .*whole number.*got 2.5"),
    "a size": (lambda: LINEAR.prior(KEY, (-3, 2)), "shape must be at least 0 numbers, got -3"),
    "half a size": (lambda: LINEAR.prior(KEY, (2.5, 2)), "shape must be a whole number of numbers, got 2.5"),
    "no shape": (lambda: LINEAR.prior(KEY, 5), r"shape must be that of an array \[n, ...\].*got 5"),
    "an old key": (lambda: LINEAR.prior(jax.random.PRNGKey(0), (2, 2)), r"key of jax.random.key\(seed\)"),
    "bytes": (
        lambda: loss.denoising(KEY, network, LINEAR, np.zeros((2, 2), np.uint8)),
        "x_0 must be floating-point.*got uint8. For bytes: x / 127.5 - 1",
    ),
    "times of two": (
        lambda: loss.denoising(KEY, network, LINEAR, X, time_sampling=lambda key, n: jnp.ones(2) / 2),
        r"time_sampling must return one u for each of 4 examples, got \(2,\)",
    ),
    "NaN": (
        lambda: samplers.sample(KEY, DEN, PLAN, np.where(np.arange(8).reshape(4, 2) == 2, np.nan, X)),
        "x_T must be finite, got nan in 1 of 4 rows: 1",
    ),
    "an index": (
        lambda: samplers.sample(KEY, DEN, PLAN, X, index=jnp.arange(3)),
        "index must have one number for each",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_people_do_is_answered(name):
    call, words = FAULTS[name]
    with pytest.raises(ValueError, match=words):
        call()


def test_what_was_measured_is_finite_where_it_is_used():
    mask, y = inverse.Mask(np.array([[True, False]])), np.array(X)
    y[0, 1] = np.nan
    guided = inverse.pigdm(DEN, LINEAR, mask, y, 0.1)
    assert np.isfinite(guided(X, 10.0)).all()
    y[2, 0] = np.nan
    with pytest.raises(ValueError, match="y must be finite where the operator measures"):
        inverse.pigdm(DEN, LINEAR, mask, y, 0.1)


# --- betas of one's own ---


def test_own_betas_are_those_of_the_process():
    betas = np.array([0.1, 0.3, 0.2, 0.9])
    own = DDPM(betas=betas)
    assert own.num_steps == 4
    np.testing.assert_allclose(own.betas, betas, rtol=1e-12)
    np.testing.assert_allclose(own.alpha(np.arange(5.0)) ** 2, [1, *np.cumprod(1 - betas)], rtol=1e-12)
    assert own == DDPM(4, betas=[0.1, 0.3, 0.2, 0.9])
    assert hash(own) != hash(DDPM(betas=betas[::-1]))
    described_so = dataclasses.replace(described.model(), process=own)
    assert model.from_json(model.to_json(described_so)) == described_so
    for wrong in ([0.1, 1.5], [], [0.0]):
        with pytest.raises(
            ValueError, match=r"betas must be num_steps = .*in \(0, 1\)|num_steps must be at least 1"
        ):
            DDPM(betas=wrong)
    with pytest.raises(ValueError, match="betas must be num_steps = 5 numbers"):
        DDPM(5, betas=betas)


def test_betas_that_leave_much_of_the_data_are_said():
    with pytest.warns(UserWarning, match=r"alpha_T = 0.60 of the data.*100 steps. Take beta_max=0.2"):
        DDPM(num_steps=100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DDPM(num_steps=100, beta_max=0.2)
        DDPM()
        DDPM(num_steps=100, schedule="cosine")
        DDPM(num_steps=100, zero_terminal_snr=True)


# --- pytrees ---


def test_pytrees_are_noised_and_trained_on_like_arrays():
    x_0 = {"a": X, "b": jnp.ones((4, 3, 1))}
    zero = lambda x_t, t: jax.tree.map(jnp.zeros_like, x_t)
    value, _ = loss.denoising(KEY, zero, LINEAR, x_0, predicts="x0")
    np.testing.assert_allclose(value, (np.square(X).sum(1) + 3).mean() / 5, rtol=1e-5)
    one, _ = loss.denoising(KEY, zero, LINEAR, X, predicts="eps", weighting=loss.min_snr(5.0))
    same, _ = loss.denoising(KEY, zero, LINEAR, {"a": X}, predicts="eps", weighting=loss.min_snr(5.0))
    np.testing.assert_allclose(one, same, rtol=1e-6)
    noised = LINEAR.perturb(x_0, 10.0, jax.tree.map(jnp.zeros_like, x_0))
    np.testing.assert_allclose(noised["b"], np.full((4, 3, 1), LINEAR.alpha(np.array(10.0))), rtol=1e-6)
    with pytest.raises(ValueError, match="network must return what it is given, a pytree"):
        loss.denoising(KEY, lambda x_t, t: x_t["a"], LINEAR, x_0)


def test_the_prior_of_a_pytree():
    shape = {"a": (3000, 2), "b": (3000,)}
    x_T = VE().prior(KEY, shape)
    np.testing.assert_allclose([x.std() / 50 for x in jax.tree.leaves(x_T)], 1, atol=0.05)
    assert abs(np.corrcoef(x_T["a"][:, 0], x_T["b"])[0, 1]) < 0.1
    some = VE().prior(KEY, {"a": (2, 2), "b": (2,)}, index=jnp.array([7, 2999]))
    for name in shape:
        np.testing.assert_allclose(some[name], x_T[name][jnp.array([7, 2999])], rtol=1e-6)
    x_0 = samplers.sample(
        KEY, oracle_of_trees, plan_of(LINEAR), LINEAR.prior(KEY, {"a": (2, 2), "b": (2, 5)})
    )
    assert jax.tree.map(jnp.shape, x_0) == {"a": (2, 2), "b": (2, 5)}


def oracle_of_trees(x_t, t):
    return jax.tree.map(lambda x: DEN(x, t), x_t)


def test_bins_are_called_bins():
    with pytest.raises(TypeError, match="has no argument 'levels'; it has x, mean, std, bins"):
        likelihood.discretized_log_prob(X, X, jnp.ones(()), levels=256)
