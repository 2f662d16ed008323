"""Wrong options of every experiment: a sentence and exit code 2, before anything is trained."""

import dataclasses
import importlib
import math
import typing

import pytest

from gen_jax import launch, training
from gen_jax.launch.options import GROUPS

EXPERIMENTS = (
    *("step01_normal", "step02_maximum_likelihood", "step03_multivariate_normal", "step04_gaussian_mixture"),
    *(
        "step05_em",
        "step06_neural_network",
        "step07_vae",
        "step08_hvae",
        "step09_diffusion",
        "samplers_compare",
    ),
    *("step10_conditional", "step10_latent_diffusion", "step10_text_to_image", "step10_inpainting"),
    *("step10_classifier_guidance", "step10_classifier_free_guidance", "finetune_stable_diffusion"),
)
ANY_NUMBER = {"guidance", "label", "at_most", "more_than", "times_mean", "least_log_snr", "weights"}
"""Options for which -1 is as good as 1, or which the data decide."""
LATER = {"image_size", "label", "interval"}
"""Options that are looked at with the data and the model, below."""


def numbers(config):
    """`(owner, name, type)` of the options that are numbers, or several."""
    for field in dataclasses.fields(config):
        value, kind = getattr(config, field.name), str(typing.get_type_hints(type(config))[field.name])
        if isinstance(value, GROUPS):
            yield from numbers(value)
        elif (
            not dataclasses.is_dataclass(value)
            and ("int" in kind or "float" in kind)
            and "Literal" not in kind
        ):
            yield config, field.name, kind


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_option_takes_a_number_that_is_none(name):
    found = list(numbers(importlib.import_module(name).parse([])))
    assert len(found) > 1
    accepted = []
    for config, option, kind in found:
        several = "tuple" in kind
        bad = [math.nan, math.inf] if "float" in kind else []
        bad += [] if option in ANY_NUMBER else [-1.0 if "float" in kind else -1]
        for value in [] if option in LATER else bad:
            try:
                dataclasses.replace(config, **{option: (value,) if several else value})
            except ValueError:
                continue
            accepted.append((option, value))
    assert accepted == []


def run(name, capsys, monkeypatch, *flags):
    """What an experiment says, and its exit code; that it trains is an error."""
    monkeypatch.setattr("sys.argv", [f"{name}.py", *flags])
    monkeypatch.setattr(training, "fit", lambda *args, **options: pytest.fail("it trains"))
    with pytest.raises(SystemExit) as ended:
        launch.run(str(launch.ROOT / "experiments" / f"{name}.py"))
    said = capsys.readouterr()
    return ended.value.code, " ".join(said.err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("name", "flags", "said"),
    [
        ("step01_normal", "--seed 99999999999999999999", "seed must be at least 0 and at most 4,294,967,295"),
        (
            "step01_normal",
            "--num-samples 99999999999999999999",
            "--num-samples must be at most 4,294,967,295",
        ),
        ("step02_maximum_likelihood", "--data nowhere.txt", "nowhere.txt"),
        *((name, "--workdir /proc/zz", "cannot write to workdir /proc/zz") for name in EXPERIMENTS[:6]),
        ("step05_em", "--num-components 0", "num_components must be at least 1, got 0"),
        (
            "step07_vae",
            "--preset bset",
            "--preset must be one of book, best, iwae; got bset. Did you mean best",
        ),
        ("step07_vae", "--num 0", "num must be at least 1, got 0"),
        ("step07_vae", "--labels --label 77", "labels must be from 0 to 9, got 77"),
        ("step07_vae", "--network conv --channels", "--channels takes a number for each halving"),
        ("step07_vae", "--start-from nowhere", "the path nowhere does not exist"),
        ("step08_hvae", "--levels 3", "levels must be from 0 to 2, got 3"),
        ("step08_hvae", "--temperature nan", "temperature must be at least 0"),
        ("step09_diffusion", "--workdir=", "--workdir must be a path, got an empty one"),
        ("step09_diffusion", "--workdir {empty}", "--workdir must be a path, got an empty one"),
        (
            "step09_diffusion",
            "--workdir gs://bucket/run --steps-per-call 0",
            "steps_per_call must be at least 1",
        ),
        ("step09_diffusion", "--nfe 2000", "2000 even steps to t = 0 ask the denoiser at t = 0"),
        ("step09_diffusion", "--num 0", "--num must be at least 1 sample, got 0"),
        ("step09_diffusion", "--solver eulr", "Did you mean euler"),
        ("step09_diffusion", "--batch-size 70001", "batch_size must be at most 60,000"),
        ("step09_diffusion", "--microbatches 7", "microbatches must divide batch_size 64, got 7"),
        ("step09_diffusion", "--dataset nowhere.npz", "nowhere.npz"),
        ("step09_diffusion", "--dataset=", "dataset must be a name or a path, got an empty one"),
        ("step09_diffusion", "--nunber 3", "Unrecognized options: --nunber"),
        ("step09_diffusion", "--sample-only --workdir nowhere", "the path nowhere does not exist"),
        ("step10_conditional", "--label eight", "a label of this model is a number from 0 to 9"),
        ("step10_conditional", "--negative-prompt fog", "this model knows labels"),
        (
            "step10_latent_diffusion",
            "--autoencoder nowhere",
            "expected the directory of a trained autoencoder",
        ),
        ("step10_latent_diffusion", "--batch-size 70001", "batch_size must be at most 60,000"),
        ("step10_text_to_image", "--num 0", "num must be at least 1 caption, got 0"),
        ("step10_inpainting", "--checkpoint nowhere", "the path nowhere does not exist"),
        ("samplers_compare", "--evaluations 0", "evaluations[0] must be at least 1, got 0"),
        ("step10_classifier_guidance", "--checkpoint nowhere", "the path nowhere does not exist"),
        ("step10_classifier_free_guidance", "--rescale 2", "rescale must be at least 0 and at most 1"),
        ("finetune_stable_diffusion", "--lora-rank 0", "lora_rank must be at least 1, got 0"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence_before_anything_is_trained(
    name, flags, said, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    where = [] if "--workdir" in flags else ["--workdir", "run"]
    code, found = run(
        name, capsys, monkeypatch, *(word if word != "{empty}" else "" for word in flags.split()), *where
    )
    assert (code, "Traceback" in found) == (2, False)
    assert said in found
    assert len(found) < 700


def test_debug_shows_where(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "sys.argv", ["step09_diffusion.py", "--num", "0", "--workdir", str(tmp_path), "--debug"]
    )
    with pytest.raises(ValueError, match="--num must be at least 1"):
        launch.run(str(launch.ROOT / "experiments" / "step09_diffusion.py"))
