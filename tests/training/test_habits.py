"""What people do with a training loop: names, numbers and states of their own, a notebook's reruns."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from flax import linen
from least_squares import KEY, X, fit, quadratic, state_of

from gen_jax import data, training
from gen_jax.training import TrainState, make_step

# --- names ---


def test_metrics_with_the_name_of_a_figure_are_kept_apart(tmp_path):
    """Overwritten, the step of a line was the metric, and the next resume deleted all lines before it."""

    def loss(params, key, batch):
        mine = {
            "step": 7.0,
            "seconds": 8.0,
            "learning_rate": 9.0,
            "images_per_second": 10.0,
            "mfu": 12.0,
            "mine": 11.0,
        }
        return quadratic(params, key, batch)[0], mine

    options = training.Options(steps_per_call=1, log_every=2, progress=False)
    more = {"options": options, "workdir": tmp_path, "schedule": optax.constant_schedule(0.5)}
    fit(loss, num_steps=4, may_change=("optimizer",), **more)
    fit(loss, num_steps=8, **more)
    lines = toy.lines(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    for line in lines:
        assert line["learning_rate"] == 0.5
        assert line["seconds"] < 8
        names = (
            "loss.step",
            "loss.seconds",
            "loss.learning_rate",
            "loss.images_per_second",
            "loss.mfu",
            "mine",
        )
        assert [line[name] for name in names] == [7, 8, 9, 10, 12, 11]
        assert line["mfu"] < 1


def test_a_learning_rate_of_the_loss_is_one_where_no_schedule_has_another(tmp_path):
    fit(lambda *a: (quadratic(*a)[0], {"learning_rate": 0.25}), workdir=tmp_path)
    assert toy.lines(tmp_path)[-1]["learning_rate"] == 0.25


def test_lines_of_a_writer_of_ones_own_keep_their_step(tmp_path):
    writer = training.JSONLines(tmp_path / "metrics.jsonl")
    writer.on_log(5, {"step": 1.0})
    assert json.loads(writer.path.read_text()) == {"step": 5, "loss.step": 1.0}


def test_the_terminal_shows_the_metric_that_is_asked_for(capsys):
    loss = lambda *a: (quadratic(*a)[0], {"half": 0.5})
    show = training.Options(steps_per_call=1, log_every=0)
    fit(loss, options=show, shown="half")
    assert "step 4/4  half 0.5  " in (out := capsys.readouterr().out)
    assert "rows/s" in out  # of numbers, not of images
    with pytest.raises(ValueError, match=r"shown must be one of .*, got 'hafl'\. Did you mean half"):
        fit(loss, shown="hafl")


def test_rates_of_images_are_of_images(capsys):
    loss = lambda params, key, batch: (jnp.mean(params["w"]) + jnp.mean(batch["image"]), {})
    show = training.Options(steps_per_call=2)
    fit(loss, batches=[{"image": np.zeros((4, 2, 2, 1), np.float32)}], options=show)
    assert "images/s" in capsys.readouterr().out


# --- numbers ---


@pytest.mark.parametrize("rate", [float("nan"), -1.0, float("inf")])
@pytest.mark.parametrize("make", [training.adam, training.muon])
def test_a_rate_that_is_none_is_refused(make, rate):
    with pytest.raises(ValueError, match="learning_rate must be at least 0, got"):
        make(rate, num_steps=10)


def test_a_schedule_that_gives_no_rate_is_refused():
    with pytest.raises(ValueError, match=r"schedule must give rates .* got -\d\S* at step 3"):
        fit(schedule=lambda step: 1.0 - 0.4 * step)


@pytest.mark.parametrize("num_steps", [-5, 2.5, True, "10"])
def test_a_number_of_steps_is_whole_and_not_negative(num_steps):
    with pytest.raises(ValueError, match="num_steps must be"):
        fit(num_steps=num_steps)


@pytest.mark.parametrize("name", ["log_every", "checkpoint_every", "sample_every"])
def test_zero_is_never(name, tmp_path):
    options = training.Options(steps_per_call=1, progress=False, **{name: 0})
    seen = []
    fit(options=options, workdir=tmp_path, callbacks=[toy.OnSample(lambda *a: seen.append(a))])
    assert toy.steps(tmp_path) == [4]
    assert [line["step"] for line in toy.lines(tmp_path)] == [4]
    assert not seen
    with pytest.raises(ValueError, match=f"{name} must be .*at least 0"):
        training.Options(**{name: -1})


RATES = {"optax": optax.adam(1e-3), "ours": training.adam(1e-3, num_steps=9999, clip_norm=None)[0]}


@pytest.mark.parametrize("rule", RATES)
def test_moments_of_bfloat16_parameters_move(rule):
    """`1 - b2^m` of gradients of 1: in bfloat16, from 1/4 on, a thousandth of the way is less than half a digit."""
    params, m = {"w": jnp.ones(2, jnp.bfloat16)}, 3000
    state = TrainState.create(params, RATES[rule], KEY)
    step = make_step(lambda params, key, batch: jnp.sum(params["w"]), RATES[rule])
    state, _ = training.compile_step(step, mesh=toy.ONE, steps_per_call=m)(state, np.zeros((m, 1)))
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape]
    assert {x.dtype for x in moments} == {jnp.dtype("float32")}
    assert state.params["w"].dtype == jnp.bfloat16
    assert state.ema_params["w"].dtype == jnp.float32
    np.testing.assert_allclose(moments[1], 1 - 0.999**m, rtol=1e-4)


# --- states ---


@pytest.mark.parametrize(
    "wrap", [lambda v: v, lambda v: {"encoder": v, "decoder": {"params": {"w": jnp.ones(2)}}}]
)
@pytest.mark.parametrize("name", ["batch_stats", "cache", "intermediates"])
def test_collections_that_a_network_writes_are_refused_by_name(wrap, name):
    params = wrap({"params": {"w": jnp.ones(2)}, name: {"mean": jnp.ones(2)}})
    with pytest.raises(ValueError, match=rf"params hold .*{name}.*train the collection \"params\" alone"):
        TrainState.create(params, optax.sgd(0.1), KEY)


def test_a_parameter_may_be_called_cache():
    TrainState.create({"cache": jnp.ones(2)}, optax.sgd(0.1), KEY)


class Norm(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.BatchNorm(use_running_average=False)(x)


def test_statistics_inside_of_a_larger_tree_are_refused():
    params = {"net": Norm().init(KEY, jnp.ones((2, 3))), "scale": jnp.ones(())}
    with pytest.raises(ValueError, match=r"statistics of a BatchNorm .* params\['net'\]\['batch_stats'\]"):
        TrainState.create(params, optax.sgd(0.1), KEY)


def test_keys_of_an_optimizer_are_saved_and_the_run_resumes_to_the_bit(tmp_path):
    optimizer = optax.chain(optax.add_noise(0.1, 0.55, jax.random.key(5)), optax.sgd(0.1))
    run = lambda name, num: fit(optimizer=optimizer, num_steps=num, workdir=tmp_path / name, config={"a": 1})
    whole = run("whole", 8)
    run("parts", 4)
    np.testing.assert_array_equal(run("parts", 8).params["w"], whole.params["w"])
    keys = lambda state: [
        jax.random.key_data(x) for x in jax.tree.leaves(state.opt_state) if x.dtype == KEY.dtype
    ]
    np.testing.assert_array_equal(keys(run("parts", 8)), keys(whole))


@pytest.mark.parametrize(
    ("w", "loss", "said"),
    [
        (jnp.zeros(3), lambda p, key, b: jnp.sum((p - 1) ** 2), "params that are one array cannot be saved"),
        (
            {"w": jnp.zeros(3), "none": jnp.zeros((0, 2))},
            quadratic,
            r"params\['none'\] has the shape \(0, 2\)",
        ),
    ],
)
def test_what_cannot_be_saved_is_said_before_the_first_step(tmp_path, w, loss, said):
    optimizer, traced = optax.sgd(0.1), []

    def counted(*args):
        traced.append(args)
        return loss(*args)

    for resume in (True, False):
        with pytest.raises(ValueError, match=said):
            fit(counted, optimizer, state=state_of(optimizer, w), workdir=tmp_path, config={}, resume=resume)
    assert not traced
    assert fit(loss, optimizer, state=state_of(optimizer, w)).step == 4  # without a workdir it trains


def test_a_config_with_nan_can_be_resumed(tmp_path):
    config = {"a": math.nan, "b": [math.nan, 1.0], "c": math.inf}
    fit(workdir=tmp_path, config=config)
    assert fit(workdir=tmp_path, config=config, num_steps=6).step == 6
    with pytest.raises(ValueError, match="a: 'NaN' saved, 1 now"):
        fit(workdir=tmp_path, config=config | {"a": 1}, num_steps=8)


def test_paths_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    fit(workdir="~/run")
    assert (tmp_path / "run" / "metrics.jsonl").exists()
    assert training.load("~/run").step == 4
    assert not (tmp_path / "~").exists()


# --- a notebook ---


def other(params, key, batch):
    return jnp.mean(jnp.abs(params["w"][None] - batch["x"])), {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"loss": other}, "the loss of this run is not what the checkpoints in"),
        ({"optimizer": optax.sgd(0.2)}, "the optimizer of this run"),
        ({"optimizer": optax.inject_hyperparams(optax.sgd)(learning_rate=0.3)}, "optimizer"),
        ({"loss": other, "num_steps": 6}, "the loss of this run"),
        ({"optimizer": optax.adam(0.1)}, "optimizer"),
    ],
    ids=["loss", "rate", "rate in the state", "loss, more steps", "adam"],
)
def test_another_problem_in_the_same_workdir_is_not_answered_by_the_old_one(tmp_path, change, said):
    fit(workdir=tmp_path)
    with pytest.raises(ValueError, match=said):
        fit(workdir=tmp_path, **change)


def test_the_same_problem_goes_on(tmp_path):
    """The same functions made anew, as by a cell that is run twice; more steps may have a schedule of their own."""

    def problem(num):
        optimizer, _ = training.adam(1e-2, num_steps=num)
        scale = np.float32(3.0)
        return lambda params, key, batch: scale * quadratic(params, key, batch)[0], optimizer

    run = lambda num: fit(*problem(num), num_steps=num, workdir=tmp_path)
    first = run(4)
    np.testing.assert_array_equal(run(4).params["w"], first.params["w"])
    assert run(6).step == 6


def test_a_constant_of_the_loss_is_a_part_of_it(tmp_path):
    of = lambda target: lambda params, key, batch: jnp.mean((params["w"] - target) ** 2)
    fit(of(jnp.ones(3)), workdir=tmp_path)
    with pytest.raises(ValueError, match="the loss of this run"):
        fit(of(jnp.full(3, 2.0)), workdir=tmp_path)
    assert fit(of(jnp.full(3, 2.0)), workdir=tmp_path, may_change=("loss",), num_steps=5).step == 5


def test_a_run_that_was_written_before_goes_on(tmp_path, monkeypatch):
    """Without a fingerprint in its checkpoint."""
    from gen_jax.training import loop

    monkeypatch.setattr(loop.identities, "of_run", lambda *a: {"versions": None})
    fit(workdir=tmp_path)
    monkeypatch.undo()
    assert fit(other, workdir=tmp_path, num_steps=6).step == 6


def test_fit_needs_no_workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    memory = data.batches({"x": X}, 8, key=KEY)
    state = training.fit(
        make_step(quadratic, optax.sgd(0.1), ema_decay=None), state_of(optax.sgd(0.1)), memory, num_steps=3
    )
    assert state.step == 3
    assert not [*tmp_path.iterdir()]
