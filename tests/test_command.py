"""`gen-jax sample`: what it writes, of runs and of Stable Diffusion, and what it refuses."""

import io
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from gen_jax import cli, command, generate, infotext, paths, pretrained
from gen_jax.pretrained import components, names, safetensors
from tests import described, gcs, small_folder

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


def test_a_run_in_a_bucket_is_drawn_from_as_one_here(run, tmp_path, capsys):
    """Into a file, and into the bucket: one file, or shards."""
    with gcs.reached() as bucket:
        described.run(paths.path_of(f"{bucket.url}/runs/a"), described.model())
        draw = lambda of, out: cli.main(["sample", of, "--num", "2", "--nfe", "2", "--out", out])
        draw(str(run), str(tmp_path / "here.npy"))
        for out in (tmp_path / "there.npy", f"{bucket.url}/drawn/there.npy"):
            draw(f"{bucket.url}/runs/a", str(out))
            assert f"2 images in {out}" in capsys.readouterr().out
        draw(f"{bucket.url}/runs/a", f"{bucket.url}/drawn/there.png")
        written = {
            name: bucket.objects[f"{bucket.bucket}/drawn/there.{name}"].data for name in ("npy", "png")
        }
        for of, out in ((f"{bucket.url}/runs/a", f"{bucket.url}/drawn/many"), (run, tmp_path / "many")):
            draw(str(of), str(out))
        many = [list(generate.read(place)) for place in (f"{bucket.url}/drawn/many", tmp_path / "many")]
    np.testing.assert_array_equal(*many)
    expected = np.load(tmp_path / "here.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "there.npy"), expected)
    np.testing.assert_array_equal(np.load(io.BytesIO(written["npy"])), expected)
    assert read(io.BytesIO(written["png"]))[2].items() >= {"Steps": "2", "Model": "a"}.items()


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
    draw("--image", str(picture), "--mask", str(mask), "--strength", "0.3")
    assert (np.load(out)[:, :, :14] == 200).all()
    draw("--image", str(picture), "--strength", "0.3")
    assert np.load(out).shape == (2, 28, 28, 1)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--predicts", "v"], "predicts: only Stable Diffusion has such options"),
        (["--taesd", "nowhere"], "nowhere"),
        (["--nfe", "0"], "nfe must be at least 1 evaluation, got 0"),
        (["--num", "0"], "num must be at least 1 image, got 0"),
        (["--seed", "99999999999"], "seed must be at least 0 and at most 4,294,967,295"),
        (["--guidance", "nan"], "guidance must be a finite number"),
        (["--out", "a.jpg"], "out must end in .png or .npy, or be a directory, got a.jpg"),
        (["--out", ""], "out must end in .png or .npy"),
        (["--out", "{run}/a_file"], "out must be a file that can be written, got .*a_file"),
        (["--out", "{run}/many", "--previews"], "where a picture is changed, and for previews, got .*many"),
        (["--out", "{run}/many", "--shard", "0"], "shard must be at least 1 image, got 0"),
        (
            ["--out", "{run}/checkpoints/0/_CHECKPOINT_METADATA/a.png"],
            "out must be a file that can be written, got .*a.png: ",
        ),
        (["--out", "{run}/folder.png"], "out must be a file that can be written, got .*folder.png"),
        (["--lora", "b.safetensors:x"], "got the weight 'x'"),
        (["--strength", "0.5"], "needs the image that is to be changed"),
        (["--image", "nowhere.png"], "nowhere.png is no picture that can be read"),
        (["--clip-skip", "1"], "clip_skip: only Stable Diffusion has such options"),
        (["--prompt", "a", "--prompts", "b"], "one prompt or a file of prompts"),
    ],
)
def test_what_can_not_be_done_is_said_in_a_line(run, flags, said, capsys):
    (run / "folder.png").mkdir(exist_ok=True)
    (run / "a_file").touch()
    arguments = ["sample", str(run), "--num", "1", *(flag.replace("{run}", str(run)) for flag in flags)]
    with pytest.raises(SystemExit, match=said) as error:
        cli.main(arguments)
    assert error.value.code == 2
    assert capsys.readouterr().err == f"{error.value}\n"
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=said):
        cli.main([*arguments, "--debug"])


def test_a_damaged_picture_is_said_in_a_line(run, tmp_path):
    """Pillow's error is one of a syntax."""
    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    raw = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(raw.replace(b"IDAT", b"IDAU"))
    with pytest.raises(SystemExit, match=r"a\.png is no picture that can be read"):
        cli.main(["sample", str(run), "--image", str(tmp_path / "a.png"), "--num", "1"])


def test_a_lora_has_a_weight():
    assert command.lora_weight("a/b.safetensors:0.5") == (Path("a/b.safetensors"), 0.5)
    assert command.lora_weight("a/b.safetensors") == (Path("a/b.safetensors"), 1.0)
    with pytest.raises(ValueError, match="got the weight 'x'"):
        command.lora_weight("b.safetensors:x")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder with a small Stable Diffusion, `one.safetensors`, and a tiny autoencoder in `taesd`."""
    root, model = tmp_path_factory.mktemp("published"), small_folder.model()
    weights = small_folder.weights(model)
    pretrained.save(root / "small", model, weights)
    pretrained.save(root / "one.safetensors", model, weights, layout="single")
    config = {"encoder_block_out_channels": [4, 4], "decoder_block_out_channels": [4, 4]}
    config |= {"num_encoder_blocks": [1, 1], "num_decoder_blocks": [1, 1]}
    draw = lambda x: np.random.default_rng(0).standard_normal(x.shape, np.float32)
    params = jax.tree.map(draw, components.parameters(components.tiny(config)))
    safetensors.write(root / "tiny.safetensors", names.from_linen(params, part="taesd"))
    (root / "taesd").mkdir()
    (root / "tiny.safetensors").rename(root / "taesd" / "diffusion_pytorch_model.safetensors")
    (root / "taesd" / "config.json").write_text(json.dumps(config))
    return root


def test_stable_diffusion_is_drawn_from_one_file(published, tmp_path, capsys):
    """With all that the file does not say, and previews as large as the images."""
    out = tmp_path / "seven.png"
    flags = ["--prompt", "a large red seven", "--negative-prompt", "grey", "--height", "16", "--width", "24"]
    more = ["--config", str(published / "small"), "--predicts", "v", "--taesd", str(published / "taesd")]
    cli.main(["sample", str(published / "one.safetensors"), "--nfe", "2", "--out", str(out), *flags, *more])
    assert "1 image of 'a large red seven' in" in capsys.readouterr().out
    prompt, negative, settings = read(out)
    assert (prompt, negative) == ("a large red seven", "grey")
    assert settings.items() >= {"Steps": "2", "Sampler": "DDIM", "Size": "24x16", "Model": "one"}.items()
    assert Image.open(tmp_path / "seven.preview.png").size == Image.open(out).size


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--taesd", "small"], "small"),
        (["--prompt", "a", "--negative-prompt", "b", "--solver", "eulr"], "Did you mean euler"),
        (["--prompt", "a", "--height", "15"], "2 must divide height and width"),
        (["--variant", "fp16"], "fp16"),
    ],
)
def test_what_stable_diffusion_can_not_do_is_said_in_a_line(published, flags, said, monkeypatch):
    monkeypatch.chdir(published)
    with pytest.raises(SystemExit, match=said) as error:
        cli.main(["sample", "small", *flags])
    assert "\n" not in str(error.value)
