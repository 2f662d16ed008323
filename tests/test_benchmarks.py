"""Every benchmark starts; what they share: the store of their findings, and how they read programs."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from gen_jax import keys
from gen_jax.networks import unet
from tests.marks import slow
from tests.pretrained import mutations

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPTS = {path.stem: ast.parse(path.read_text()) for path in sorted(BENCHMARKS.glob("*.py"))}


def module(name: str) -> ModuleType:
    """Of benchmarks/, which is not a package."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def imported(name: str) -> set[str]:
    """The packages that a script imports, inside functions as well, itself or through another script."""
    found = set()
    for node in ast.walk(SCRIPTS[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    ours = {other for other in found if other in SCRIPTS}
    return (found - ours).union(*(imported(other) for other in ours))


def missing(name: str) -> set[str]:
    """The packages that it needs and this environment does not have; the experiments are no packages."""
    experiments = {path.stem for path in (BENCHMARKS.parent / "experiments").glob("*.py")}
    return {package for package in imported(name) - experiments if importlib.util.find_spec(package) is None}


SMOKE = """
import contextlib, io, os, runpy, sys, traceback
sys.path[0] = os.path.dirname(sys.argv[1])
for path in sys.argv[1:]:
    out, code, sys.argv = io.StringIO(), 0, [path, "--help"]
    with contextlib.redirect_stdout(out), contextlib.suppress(Exception):
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            code = end.code
        except Exception:
            code = 1
            traceback.print_exc()
    print(path, code or 0, "usage" in out.getvalue(), flush=True)
"""


def smoke(*names):
    """Whether each answers `--help`; a module without a command is imported. In one process."""
    paths = [str(BENCHMARKS / f"{name}.py") for name in names]
    done = subprocess.run([sys.executable, "-c", SMOKE, *paths], capture_output=True, text=True, timeout=300)
    said = [line.rsplit(" ", 2) for line in done.stdout.splitlines()]
    assert [(path, code) for path, code, _ in said] == [(path, "0") for path in paths], done.stderr[-2000:]
    for name, (_, _, usage) in zip(names, said, strict=True):
        assert usage == str(isinstance(SCRIPTS[name].body[-1], ast.If)), name


def test_smoke():
    able = [name for name in SCRIPTS if not missing(name)]
    assert len(able) > 20
    smoke(*able)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_smoke_in_a_process_of_its_own(name):
    if absent := missing(name):
        pytest.skip(f"{name}.py needs {', '.join(sorted(absent))}: pip install .[bench]")
    smoke(name)


def test_packages_of_a_script_are_found_through_others():
    assert {"torch", "diffusers", "gen_jax", "numpy"} <= imported("best_per_nfe")
    assert "torch" in missing("sampling") or importlib.util.find_spec("torch")
    assert "pages" not in imported("sampling")
    assert imported("pages") <= set(sys.stdlib_module_names), "any environment will do for it"


pages, hlo = module("pages"), module("hlo")


def test_every_benchmark_is_listed():
    assert pages.scripts() in (BENCHMARKS / "README.md").read_text(), "python benchmarks/pages.py"


def test_what_is_kept_is_found_once(tmp_path):
    path, calls = tmp_path / "kept.json", []

    def find():
        calls.append(None)
        return {"distance": 1.5}

    of = {"minutes": 4.0, "marks": (0.5, 1.0)}
    for _ in range(2):  # the second time from the file
        kept = pages.Kept(path, of)
        assert [kept("one", find), kept("one", find)] == [{"distance": 1.5}] * 2
    assert len(calls) == 1
    with pytest.raises(ValueError, match=r"not of .*5.0.*remove it"):
        pages.Kept(path, of | {"minutes": 5.0})


def test_the_table_of_a_page_is_read_as_it_was_written(tmp_path):
    path, rows = tmp_path / "page.md", [["vae", "", "0.5"], ["a, b", "x 1; y 2", ""]]
    assert pages.table_of(path) == []
    path.write_text(f"# A page\n\nof words.\n\n{pages.markdown([['name', 'said', 'n'], *rows])}\n")
    assert pages.table_of(path) == rows


X, W = jnp.ones((64, 128)), jnp.ones((128, 128))


def looped(x, w):
    """The product in a loop's body."""
    return jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), x, None, 5)[0]


@pytest.mark.parametrize(
    ("f", "args", "rtol"),
    [
        pytest.param(lambda x: x + 1, (X,), 0, id="elementwise"),
        pytest.param(lambda x, w: jnp.tanh(x @ w).sum(0), (X, W), 0, id="product"),
        pytest.param(looped, (X, W), 1e-3, id="loop"),  # XLA counts some scalars of the loop besides
    ],
)
def test_traffic_without_memory_on_the_chip_is_what_xla_counts(f, args, rtol):
    compiled = jax.jit(f).lower(*args).compile()
    wanted = compiled.cost_analysis()["bytes accessed"]
    assert hlo.traffic(compiled.as_text()) == pytest.approx(wanted, rel=rtol)


PROGRAM = """HloModule jit_f, is_scheduled=true

%fused_computation (p: bf16[8,128]) -> bf16[8,128] {
  %p = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %tanh = bf16[8,128]{1,0:T(8,128)(2,1)} tanh(%p)
}

ENTRY %main (x: bf16[8,128], w: f32[4,128]) -> bf16[8,128] {
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0), sharding={replicated}
  %w = f32[4,128]{1,0:T(4,128)} parameter(1)
  %copy-start = (bf16[8,128]{1,0:T(8,128)S(1)}, bf16[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %copy-done = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  %slice-start = ((f32[4,128]{1,0}), f32[1,128]{1,0:T(1,128)S(1)}, s32[]{:S(2)}) slice-start(%w), slice={[0:1], [0:128]}
  %slice-done = f32[1,128]{1,0:T(1,128)S(1)} slice-done(%slice-start)
  %f.1 = (bf16[8,128]{1,0:S(1)}, f32[128]{0:T(128)}) fusion(%copy-done, %slice-done), calls=%fused_computation
  %part = f32[128]{0:T(128)} get-tuple-element(%f.1), index=1
  %sums = f32[128]{0:T(128)} all-reduce(%part), to_apply=%add
  ROOT %f.2 = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%copy-done, %sums), kind=kLoop, calls=%fused_computation
}
"""
"""As XLA writes it for a TPU, whose S(1) is on the chip."""


def test_what_stays_on_the_chip_is_no_traffic():
    x, row, sums = 2 * 8 * 128, 4 * 128, 4 * 128
    copied, reduced = x + row, 2 * sums
    assert hlo.traffic(PROGRAM) == copied + sums + reduced + (sums + x)
    assert hlo.collectives(PROGRAM) == {"all-reduce": (1, sums)}


GATHERS = """
  %begin = bf16[64,8]{1,0} all-gather(%a), channel_id=2, frontend_attributes={chain_id="0"}, metadata={}
  %go_on = bf16[64,8]{1,0} all-gather(%b), channel_id=2, frontend_attributes={chain_id="0"}, metadata={}
  %end = bf16[64,8]{1,0} all-gather(%c), channel_id=2, frontend_attributes={chain_id="0"}, metadata={}
  %other = bf16[64,8]{1,0} all-gather(%d), channel_id=3, frontend_attributes={chain_id="1"}, metadata={}
  %alone = bf16[64,8]{1,0} all-gather(%e), channel_id=1, metadata={op_name="f"}
  %again = bf16[64,8]{1,0} all-gather(%f), channel_id=1, metadata={op_name="g"}
"""


def test_a_chain_that_is_named_three_times_is_one_collective():
    assert hlo.collectives(GATHERS) == {"all-gather": (4, 4 * 2 * 64 * 8)}


SCATTER = """
%all-reduce-scatter.1 (input.1: bf16[64,8]) -> bf16[16,8] {
  %input.1 = bf16[64,8]{1,0} parameter(0)
  %all-reduce.3 = bf16[64,8]{1,0} all-reduce(%input.1), channel_id=13, to_apply=%add
  ROOT %slice = bf16[16,8]{1,0} dynamic-slice(%all-reduce.3, %i, %j), dynamic_slice_sizes={16,8}
}

ENTRY %main (a: bf16[64,8]) -> bf16[16,8] {
  %a = bf16[64,8]{1,0} parameter(0)
  ROOT %fusion = bf16[16,8]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_an_all_reduce_of_which_a_slice_is_kept_is_a_reduce_scatter():
    assert hlo.collectives(SCATTER) == {"reduce-scatter": (1, 2 * 16 * 8)}


def test_the_samplers_program_for_a_slice_moves_nothing_between_its_devices(monkeypatch):
    """Of a network as small as can be, on this machine's devices: of rows alone, and they stay where they are."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    tpu = module("tpu_programs")
    small = unet.UNetConfig(channels=(8,), embedding=16, groups=8).build()
    monkeypatch.setattr(tpu, "network", lambda name, case: small)
    mesh = Mesh(np.array(jax.devices()), (keys.AXIS,))
    text = tpu.sampler_step(tpu.Case("sampler", 2), mesh).compile().as_text()
    assert mesh.size > 1
    assert hlo.collectives(text) == {}


@pytest.mark.parametrize(
    "name", slow(["sdxl call", "sdxl sampling", "sdxl fine-tuning"], but=("sdxl sampling",))
)
def test_programs_of_stable_diffusion_are_lowered_from_shapes(name, monkeypatch):
    """Of a network as small as can be, on this machine's devices."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    tpu = module("tpu_stable_diffusion")
    monkeypatch.setattr(tpu, "model_of", lambda name, dtype: mutations.model(xl=True))
    mesh = Mesh(np.array(jax.devices()), (keys.AXIS,))
    case = tpu.Case(name, 1, shard="fsdp", remat=True, dtype="float32")
    text = tpu.PROGRAMS[name](case, mesh).as_text()
    inputs = text[: text.index("->")]
    assert f"tensor<{mesh.size}x8x8x4xf32>" in inputs or "sampling" in name
    assert inputs.count("tensor<3x3x8x8xf32>") >= 2
