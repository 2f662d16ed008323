"""Files of LoRA: for each matrix that it changes, by its name in kohya's layout, what is added."""

import jax
import numpy as np
import pytest

from gen_jax import pretrained
from gen_jax.pretrained import lora as files
from gen_jax.pretrained import lora_writing, names, single_file
from gen_jax.training import lora
from tests import tiny_sd
from tests.marks import slow
from tests.pretrained import mutations


def matrices(network, xl):
    """The weights of a U-Net by the names that kohya's tools give them."""
    found = names.from_linen(network, part="unet", linear=xl)
    if xl:
        joined = single_file.join({"unet": found}, "sdxl")
        found = {name.removeprefix("model.diffusion_model."): joined[name] for name in joined}
    return {name.removesuffix(".weight").replace(".", "_"): np.asarray(x) for name, x in found.items()}


@tiny_sd.needs_fixtures
@pytest.mark.parametrize("name", slow(["tiny-sd15", "tiny-sdxl"], but=("tiny-sdxl",)))
def test_write_has_what_is_added_to_each_matrix(name, tmp_path):
    xl, rng = name == "tiny-sdxl", np.random.default_rng(0)
    _, weights = pretrained.load(tiny_sd.ROOT / name)
    low = lora.init(jax.random.key(0), weights["network"], 3)
    low = jax.tree.map(lambda x: x + rng.normal(size=x.shape).astype(np.float32), low)
    lora_writing.write(tmp_path / "lora.safetensors", low, weights["network"], alpha=1.5, xl=xl)
    found = tiny_sd.tensors(tmp_path / "lora.safetensors")
    before = matrices(weights["network"], xl)
    after = matrices(lora.merge(weights["network"], low, 0.5), xl)
    changed = {name for name, x in before.items() if not np.array_equal(x, after[name])}
    sides = "lora_down.weight", "lora_up.weight", "alpha"
    assert set(found) == {f"lora_unet_{name}.{side}" for name in changed for side in sides}
    assert any("input_blocks" in name for name in changed) == xl
    for name in changed:
        down, up, alpha = (found[f"lora_unet_{name}.{side}"] for side in sides)
        np.testing.assert_allclose(after[name] - before[name], alpha / 3 * up @ down, atol=2e-5)


@pytest.mark.parametrize("xl", [False, True])
def test_what_is_trained_and_written_is_what_is_read(xl, tmp_path):
    """`training.lora.merge` of the factors and `pretrained.lora.merge` of their file give the same weights."""
    m, rng = mutations.model(xl=xl), np.random.default_rng(0)
    network = mutations.zeros(m)["network"]
    low = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32), lora.init(jax.random.key(0), network, 3)
    )
    lora_writing.write(tmp_path / "lora.safetensors", low, network, alpha=1.5, xl=xl)
    read = files.load(tmp_path / "lora.safetensors", m)
    ours, theirs = lora.merge(network, low, 0.5), files.merge({"network": network}, [(read, 1.0)])
    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    jax.tree.map(compare, ours, theirs["network"])
    changed = [np.any(x) for x in jax.tree.leaves(ours)]
    assert 0 < sum(changed) < len(changed)


@tiny_sd.needs_fixtures
def test_write_refuses_a_lora_of_another_network(tmp_path):
    _, weights = pretrained.load(tiny_sd.ROOT / "tiny-sd15")
    low = {"params": {"elsewhere": {"kernel": {"down": np.ones((2, 1)), "up": np.ones((1, 2))}}}}
    with pytest.raises(ValueError, match="elsewhere/kernel is no parameter of this network"):
        lora_writing.write(tmp_path / "lora.safetensors", low, weights["network"], alpha=1.0, xl=False)
