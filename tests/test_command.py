"""`gen-jax sample`: what it writes, of runs and of Stable Diffusion, and what it refuses."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gen_jax import cli, command, infotext
from tests import described, tiny_sd

PARAMETER = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
"""As AUTOMATIC1111's web UI reads the last line."""


def read(path):
    """Prompt, negative prompt and settings in a PNG file, by the web UI's rules."""
    *lines, last = Image.open(path).text["parameters"].split("\n")
    settings = dict(PARAMETER.findall(last))
    negative = [line for line in lines if line.startswith("Negative prompt: ")]
    prompt = "\n".join(line for line in lines if line not in negative)
    return prompt, negative[0].partition(": ")[2] if negative else "", settings


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return described.run(tmp_path_factory.mktemp("run"), described.model())


def test_settings_are_read_as_web_uis_do(tmp_path):
    said = {
        "Steps": 20,
        "Sampler": "DPM++ 2M",
        "Size": "512x768",
        "LoRA": "a.safetensors:0.5, b",
        "Label": None,
    }
    text = infotext.write("Ein Löwe,\n(sitting:1.2)", "fog, rain", said)
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    from gen_jax import plots

    plots.save_image(tmp_path / "it.png", np.zeros((4, 4, 3), np.uint8), {infotext.KEY: text})
    prompt, negative, settings = read(tmp_path / "it.png")
    assert prompt == "Ein Löwe,\n(sitting:1.2)"
    assert negative == "fog, rain"
    assert settings == {
        "Steps": "20",
        "Sampler": "DPM++ 2M",
        "Size": "512x768",
        "LoRA": '"a.safetensors:0.5, b"',
    }


def test_a_picture_of_a_run_says_how_it_was_made(run, tmp_path, capsys):
    out = tmp_path / "two.png"
    flags = ["--num", "2", "--seed", "7", "--nfe", "2", "--solver", "ddim", "--previews"]
    cli.main(["sample", str(run), "--out", str(out), *flags])
    assert "2 images in" in capsys.readouterr().out
    _, _, settings = read(out)
    assert settings.items() >= {"Steps": "2", "Sampler": "DDIM", "Seed": "7", "Size": "28x28"}.items()
    assert Image.open(tmp_path / "two.preview.png").size == Image.open(out).size


def test_a_picture_is_changed_in_a_part_or_as_a_whole(run, tmp_path):
    picture, mask, out = (tmp_path / name for name in ("a.png", "mask.png", "out.npy"))
    Image.fromarray(np.full((28, 28), 200, np.uint8)).save(picture)
    white = np.zeros((28, 28), np.uint8)
    white[:, 14:] = 255
    Image.fromarray(white).save(mask)
    draw = lambda *flags: cli.main(
        ["sample", str(run), "--num", "2", "--nfe", "2", "--out", str(out), *flags]
    )
    draw("--image", str(picture), "--mask", str(mask))
    filled = np.load(out)
    assert (filled[:, :, :14] == 200).all()
    assert (filled[:, :, 14:] != 200).any()
    draw("--image", str(picture), "--strength", "0.3")
    assert np.load(out).shape == (2, 28, 28, 1)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--image", "a.png", "--mask", "b.png", "--strength", "1"], "is of image to image"),
        (["--lora", "b.safetensors:x"], "got the weight 'x'"),
        (["--strength", "0.5"], "needs the image that is to be changed"),
        (["--image", "nowhere.png"], "nowhere.png is no picture that can be read"),
        (["--clip-skip", "1"], "clip_skip: only Stable Diffusion has such options"),
        (["--prompt", "a", "--prompts", "b"], "one prompt or a file of prompts"),
    ],
)
def test_what_can_not_be_done_is_said_in_a_line(run, flags, said):
    with pytest.raises(SystemExit, match=said) as error:
        cli.main(["sample", str(run), "--num", "1", *flags])
    assert "\n" not in str(error.value)


def test_a_lora_has_a_weight():
    assert command.lora_weight("a/b.safetensors:0.5") == (Path("a/b.safetensors"), 0.5)
    assert command.lora_weight("a/b.safetensors") == (Path("a/b.safetensors"), 1.0)
    with pytest.raises(ValueError, match="got the weight 'x'"):
        command.lora_weight("b.safetensors:x")


@tiny_sd.needs_fixtures
def test_stable_diffusion_is_drawn_from_its_folder(tmp_path):
    out = tmp_path / "lighthouse.png"
    flags = ["--prompt", "a large red seven", "--negative-prompt", "grey", "--height", "32", "--width", "48"]
    cli.main(["sample", str(tiny_sd.ROOT / "tiny-sd15"), "--nfe", "2", "--out", str(out), *flags])
    prompt, negative, settings = read(out)
    assert (prompt, negative) == ("a large red seven", "grey")
    assert settings["Size"] == "48x32"
    assert settings["Model"] == "tiny-sd15"
