"""Steps 1 to 8 as a user runs them, small: what they leave behind, going on, sampling again, wrong flags."""

import dataclasses
import importlib
import json

import bounds
import jax
import numpy as np
import pytest
import scipy.stats
import step07_vae as step07
import step08_hvae as step08
from PIL import Image

from gen_jax import data, launch, plots, training
from tests import gcs


def figures(workdir):
    """The pictures in a directory, all of which must show something."""
    names = set()
    for path in [*workdir.glob("*.png"), *workdir.glob("*.gif")]:
        with Image.open(path) as image:
            assert np.asarray(image.convert("L")).std() > 1
        names.add(path.name)
    return names


def run_step(name, workdir, capsys, **options):
    """An experiment without a network: what it returns is what it wrote, and it says what to do next."""
    module = importlib.import_module(name)
    summary = module.main(module.Config(workdir=workdir, **options))
    assert json.loads((workdir / "summary.json").read_text()) == summary
    config = json.loads((workdir / "config.json").read_text())
    assert config["experiment"] == name
    assert set(config["options"]) == {f.name for f in dataclasses.fields(module.Config)}
    following = capsys.readouterr().out.splitlines()[-1].removeprefix("next: python experiments/")
    assert (launch.ROOT / "experiments" / following).exists()
    return summary, figures(workdir)


def test_step01_sums_become_normal(tmp_path, capsys):
    summary, drawn = run_step("step01_normal", tmp_path, capsys)
    assert drawn == {"density.png", "parameters.png", "averages.png", "sums.png"}
    distances = [summary[f"distance_to_normal_{n}"] for n in (1, 2, 4, 10)]
    assert distances == sorted(distances, reverse=True)
    np.testing.assert_allclose(distances[0], 0.0577, atol=0.005)  # sup |u - Phi((u - 1/2) sqrt(12))|
    assert distances[-1] < 0.006


def test_step02_fits_the_heights(tmp_path, capsys):
    summary, drawn = run_step("step02_maximum_likelihood", tmp_path, capsys)
    assert drawn == {"histogram.png", "fit.png", "generated.png"}
    x = data.table("heights")[:, 0]
    np.testing.assert_allclose([summary["mean"], summary["std"]], [x.mean(), x.std()], rtol=1e-5)
    model = scipy.stats.norm(x.mean(), x.std())
    np.testing.assert_allclose(summary["model_P(x<=160)"], model.cdf(160), rtol=1e-3)
    np.testing.assert_allclose(summary["model_P(x>180)"], model.sf(180), rtol=1e-3)
    np.testing.assert_allclose(summary["data_P(x<=160)"], np.mean(x <= 160))


def test_step02_takes_a_file_of_the_reader(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("1\n2\n4\n")
    summary, _ = run_step("step02_maximum_likelihood", tmp_path, capsys, data=str(tmp_path / "mine.txt"))
    np.testing.assert_allclose(summary["mean"], 7 / 3, rtol=1e-6)


def test_step03_fits_heights_and_weights(tmp_path, capsys):
    summary, drawn = run_step("step03_multivariate_normal", tmp_path, capsys)
    assert drawn == {"surface.png", "contour.png", "data.png", "fit.png"}
    x = data.table("height_weight")
    np.testing.assert_allclose(summary["cov"], np.cov(x.T, ddof=0), rtol=1e-4)
    np.testing.assert_allclose(summary["correlation"], np.corrcoef(x.T)[0, 1], rtol=1e-4)


def test_step04_draws_a_mixture(tmp_path, capsys):
    summary, drawn = run_step("step04_gaussian_mixture", tmp_path, capsys)
    assert drawn == {"data.png", "surface.png", "contour.png", "samples.png"}
    names = "log_likelihood_per_row_of_the_mixture", "log_likelihood_per_row_of_one_normal"
    assert -4.2 < summary[names[0]] < -4.155382
    assert summary[names[1]] < summary[names[0]] - 0.3


def test_step05_finds_the_books_answer(tmp_path, capsys):
    summary, drawn = run_step("step05_em", tmp_path, capsys, num_restarts=2, max_components=3)
    assert drawn == {"em.gif", "log_likelihood.png", "criteria.png", "generated.png"}
    np.testing.assert_allclose(summary["log_likelihood_per_row"], -4.155382, atol=1e-5)
    assert summary["status"] == "converged"
    assert summary["components_by_bic"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "flags", "drawn"),
    [
        ("step01_normal", [], {"density.png", "parameters.png", "averages.png", "sums.png"}),
        (
            "step05_em",
            ["--num-restarts", "1", "--max-components", "2"],
            {"em.gif", "criteria.png", "generated.png"},
        ),
    ],
)
def test_figures_of_a_step_go_into_a_bucket(name, flags, drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    with gcs.reached() as bucket:
        module.main(module.parse(["--workdir", f"{bucket.url}/a/b", *flags]))
        found = {name.rpartition("/")[2] for name in bucket.names(f"{bucket.bucket}/a/b/")}
    assert found >= drawn | {"config.json", "summary.json"}
    assert list(tmp_path.iterdir()) == []


def test_step06_descends(tmp_path, capsys):
    summary, drawn = run_step("step06_neural_network", tmp_path, capsys)
    assert drawn == {"rosenbrock.png", "line.png", "curve.png", "loss.png"}
    assert summary["grad_of_3x^2_at_5"] == 30.0
    assert summary["grad_of_rosenbrock_at_(0,2)"] == [-2.0, 400.0]
    assert summary["rosenbrock_minimum"] == [1.0, 1.0]
    np.testing.assert_allclose(summary["rosenbrock_descent_ended_at"], [1, 1], atol=0.03)
    assert summary["rosenbrock_descent_ended_at"] != [1.0, 1.0]
    np.testing.assert_allclose(summary["line_by_descent"], summary["line_by_least_squares"], rtol=1e-3)
    assert summary["curve_mse"] < 1.3 * summary["noise_variance"]


SHORT = "--steps 4 --batch-size 16 --num 3 --steps-per-call 2 --checkpoint-every 2 --log-every 2"


def step07_arguments(workdir, *more):
    flags = f"{SHORT} --test-images 16 --test-samples 3 --workdir {workdir} --hidden 8".split()
    return [*flags, *more]


def test_step07_leaves_everything_it_promises_and_goes_on(tmp_path, capsys):
    first = step07_arguments(tmp_path, "--latent", "2", "--labels")
    summary = step07.main(step07.parse(first))
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    pictures = {"loss.png", "reconstructions.png", "interpolation.png", "manifold.png", "samples.png"}
    assert figures(tmp_path) == pictures
    np.testing.assert_allclose(
        summary["test_elbo"], summary["test_reconstruction"] - summary["test_kl"], rtol=1e-5
    )
    # the book's loss is twice the bound, but for the constant of a density
    np.testing.assert_allclose(summary["book_loss"], 2 * summary["loss"] - 784 * np.log(2 * np.pi), rtol=1e-3)
    assert np.load(tmp_path / "labels.npy").shape == (3,)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["experiment"], config["num_classes"]) == ("step07_vae", 10)
    assert f"mean over the images: {summary['book_loss']:.2f}\n" in capsys.readouterr().out
    draw = lambda *more: step07.draw_samples(
        step07.parse(["--sample-only", "--workdir", str(tmp_path), "--num", "2", *more])
    )
    assert not np.array_equal(draw(), draw("--seed", "3"))
    draw("--label", "8")
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), [8, 8])
    with pytest.raises(ValueError, match="must be from 0 to 9, got 10"):
        draw("--label", "10")
    capsys.readouterr()
    more = step07.main(step07.parse([*first, "--steps", "6"]))
    assert more["steps"] == 6
    assert "resuming: checkpoint of step 4" in capsys.readouterr().out
    with pytest.raises(ValueError, match="latent"):
        step07.main(step07.parse([*first, "--latent", "3"]))
    costs = set(training.cost.of_run(tmp_path))
    (tmp_path / "metrics.jsonl").write_bytes(b"")  # a complete run without them is complete
    again = step07.main(step07.parse([*first, "--steps", "6"]))
    of_steps = {
        "loss",
        "book_loss",
        "elbo",
        "reconstruction",
        "kl",
        "images_per_second",
        "seconds_of_training",
    }
    assert set(more) - set(again) == of_steps | costs
    assert again["test_elbo"] == more["test_elbo"]
    for damaged in (b"\0 no figures\n", b""):  # of which sampling has no need
        (tmp_path / "metrics.jsonl").write_bytes(damaged)
        assert len(draw()) == 2
    (tmp_path / "metrics.jsonl").unlink()
    assert len(draw()) == 2


def test_grey_values_have_no_probability_of_a_bernoulli():
    said = lambda value: bounds.meaning("bernoulli", "none", np.array([[0, value, 255]], np.uint8))
    assert "not a likelihood of them" in said(7)
    assert said(0) == "probability of an image's bits, as they are in the data"


@pytest.mark.slow  # in CI: the above, and that step 7 leaves all it promises
def test_step07_says_what_grey_values_are_to_a_bernoulli(tmp_path, capsys):
    """It trains, on what is a cross-entropy and no likelihood, and says so in the output and the summary."""
    arguments = step07_arguments(tmp_path, "--likelihood", "bernoulli", "--objective", "dreg")
    summary = step07.main(step07.parse([*arguments, "--num-samples", "2"]))
    assert "not a likelihood of them" in summary["nats_are_the_log_of"]
    assert "--binarize dynamic or static" in capsys.readouterr().out
    assert np.isfinite(summary["iwae"])
    with pytest.raises(ValueError, match="label 1 asks for a class, but this model is unconditional"):
        step07.draw_samples(
            step07.parse(["--sample-only", "--workdir", str(tmp_path), "--label", "1", "--num", "1"])
        )


@pytest.mark.slow
def test_step07_starts_from_the_parameters_of_another_run(tmp_path):
    bound = ["--likelihood", "bernoulli", "--binarize", "dynamic"]
    step07.main(step07.parse(step07_arguments(tmp_path / "a", *bound)))
    onwards = [*bound, "--start-from", str(tmp_path / "a"), "--learning-rate", "0"]
    step07.main(step07.parse(step07_arguments(tmp_path / "b", *onwards)))
    a, b = (training.load(tmp_path / name).params for name in "ab")
    jax.tree.map(np.testing.assert_array_equal, a, b)
    with pytest.raises(ValueError, match="holds the parameters of another model"):
        step07.main(step07.parse(step07_arguments(tmp_path / "c", *onwards, "--latent", "3")))


@pytest.mark.slow  # all of MNIST; in CI: tests/data/test_transforms.py, and what step 7 says, below
@pytest.mark.parametrize("binarize", ["static", "dynamic"])
def test_bits_are_told_apart_from_grey_values(binarize):
    """Static bits are the same in every run, test images are bits in both, and the published figures are of them."""
    load = lambda: bounds.load_images(launch.Data(), labels=True, binarize=binarize)
    (train, test, classes), (again, _, _) = load(), load()
    assert classes == 10
    assert set(np.unique(test["image"])) == {0, 255}
    np.testing.assert_array_equal(train["image"], again["image"])
    assert (len(np.unique(train["image"])) == 2) == (binarize == "static")
    grey = data.load("mnist", split="test")["image"] / 255
    np.testing.assert_allclose((test["image"] / 255).mean(), grey.mean(), atol=1e-3)
    assert bounds.meaning("bernoulli", binarize, train["image"]).startswith("probability of an image")


def save_images(directory, images):
    directory.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(directory / f"{i}.png")


def test_only_a_missing_test_split_is_cut_from_the_training_set(tmp_path):
    """A damaged one is an error: a training set that is silently another would make figures that do not compare."""
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3), np.uint8)
    load = lambda path: bounds.load_images(launch.Data(str(path)), labels=False, binarize="none")
    np.savez(tmp_path / "whole.npz", image=images)
    train, test, _ = load(tmp_path / "whole.npz")
    np.testing.assert_array_equal(train["image"], images[:18])
    np.testing.assert_array_equal(test["image"], images[18:])
    both = tmp_path / "both"
    save_images(both / "train", images[:15])
    save_images(both / "test", images[15:])
    train, test, _ = load(both)
    assert (len(train["image"]), len(test["image"])) == (15, 5)
    (both / "test" / "1.png").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"1\.png"):
        load(both)
    with pytest.raises(ValueError, match="nowhere"):
        load(tmp_path / "nowhere.npz")


@pytest.fixture
def colour(tmp_path):
    """The path of a data set of colour images of odd size."""
    images = np.random.default_rng(0).integers(0, 256, (40, 11, 9, 3), np.uint8)
    np.savez(tmp_path / "colour.npz", image=images)
    return tmp_path / "colour.npz"


@pytest.mark.slow  # in CI: the parts of it, in tests/test_vae.py
def test_step07_trains_on_colour_images_of_odd_size(tmp_path, colour):
    flags = (
        f"--dataset {colour} --network conv --channels 4 6 --likelihood discretized_logistic --parallel pmap"
    )
    summary = step07.main(step07.parse(step07_arguments(tmp_path, *flags.split())))
    assert np.isfinite(summary["test_bits_per_dim"])
    assert np.load(tmp_path / "samples.npy").shape == (3, 11, 9, 3)


def step08_arguments(workdir, *more):
    return [*SHORT.split(), "--test-images", "16", "--test-samples", "3", "--workdir", str(workdir), *more]


def test_step08_leaves_everything_it_promises(tmp_path, monkeypatch, capsys):
    summary = step08.main(step08.parse(step08_arguments(tmp_path, "--hidden", "8", "--latents", "3", "2")))
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert figures(tmp_path) == {"loss.png", "kl.png", "reconstructions.png", "levels.png", "samples.png"}
    assert summary["test_log_prob"] >= summary["test_elbo"] - 1
    np.testing.assert_allclose(
        summary["test_elbo"],
        summary["test_reconstruction"] - summary["test_kl_1"] - summary["test_kl_2"],
        rtol=1e-5,
    )
    # the book's loss and the loss differ by a constant, that of a density
    np.testing.assert_allclose(summary["book_loss"], summary["loss"] - 784 * np.log(2 * np.pi), rtol=1e-3)
    assert np.load(tmp_path / "samples.npy").shape == (3, 28, 28, 1)
    draw = lambda *more: step08.draw_samples(
        step08.parse(["--sample-only", "--workdir", str(tmp_path), "--num", "2", *more])
    )
    assert not np.array_equal(draw(), draw("--seed", "3"))
    alike = draw("--temperature", "0")
    np.testing.assert_array_equal(alike[0], alike[1])
    with pytest.raises(ValueError, match="levels must be from 0 to 2, got 3"):
        draw("--levels", "3")
    titles = []
    monkeypatch.setattr(plots, "save_strips", lambda *a: titles.append(a[-1]))
    with (tmp_path / "metrics.jsonl").open("a") as file:  # as the book's model ends
        file.write('{"step": 4, "kl_1": 6.35, "kl_2": 0.0004}\n')
    capsys.readouterr()
    draw("--levels", "1")
    draw("--levels", "2")
    (note,) = titles
    assert "z_2 alone, which the model does not use: 0.0004 of 6.35 nats" in note
    assert capsys.readouterr().out.count(note) == 1
    # the config of a run of version 0.1 has all options side by side, without groups
    now, (params, saved, step) = draw(), training.load(tmp_path)
    old = {**saved["options"], "image_shape": saved["image_shape"]}
    monkeypatch.setattr(training, "load", lambda workdir: training.Loaded(params, old, step))
    np.testing.assert_array_equal(draw(), now)


@pytest.mark.slow  # in CI: the ladder in tests/test_hvae.py
def test_step08_trains_a_ladder_on_colour_images_of_odd_size_and_ends_on_iwae(tmp_path, colour):
    flags = f"--preset best --dataset {colour} --widths 8 8 8 --latents 2 2 3 3 3 --halvings 0 1 1 --binarize none"
    flags += " --likelihood logistic_mixture --kl-warmup 2 --warmup 1 --balance"
    summary = step08.main(step08.parse(step08_arguments(tmp_path / "a", *flags.split())))
    assert summary["steps_skipped"] == 0
    assert np.isfinite(summary["test_log_prob"])
    assert np.load(tmp_path / "a" / "samples.npy").shape == (3, 11, 9, 3)
    flags += f" --objective iwae --num-samples 2 --start-from {tmp_path / 'a'}"
    summary = step08.main(step08.parse(step08_arguments(tmp_path / "b", *flags.split())))
    assert np.isfinite(summary["iwae"])


def test_step08_says_which_numbers_do_not_fit_together():
    with pytest.raises(ValueError, match="5 latents for 4 levels"):
        step08.stages(step08.parse(["--preset", "best", "--levels-per-stage", "1", "3"]))
    with pytest.raises(SystemExit):
        step08.parse(["--level", "3", "--batchsize", "2"])


@pytest.mark.parametrize(("step", "name"), [(step07, "step07"), (step08, "step08")])
def test_presets_have_a_file_with_their_command(step, name):
    presets = importlib.import_module(f"configs.{name}").PRESETS
    assert step.parse([]) == presets["book"] == step.Config()
    for preset, config in presets.items():
        assert step.parse(["--preset", preset]) == config
        described = importlib.import_module(f"configs.{name}_{preset}").__doc__
        flag = "" if preset == "book" else f" --preset {preset}"
        assert f"    python experiments/{step.__name__}.py{flag}" in described
    with pytest.raises(SystemExit):
        step.parse(["--preset", "bset"])
