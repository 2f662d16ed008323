"""The tensors of a part of Stable Diffusion by diffusers' names, and its parameters here, each made of the other.

    net = unet.sd15.build()
    shapes = jax.eval_shape(net.init, key, x, t)
    params = names.to_linen(tensors, shapes, part="unet", dtype="bfloat16")
    tensors = names.from_linen(params, part="unet", linear=False)             # {"conv_in.weight": [O, I, 3, 3], ...}

`TABLE` is all that is known of names. The parts are "unet", "vae" (`AutoencoderKL`), "text" (`CLIPText`) and "taesd"
(`AutoencoderTiny`).
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, DTypeLike, PyTree

__all__ = [
    "TABLE",
    "Entry",
    "Part",
    "Row",
    "entries",
    "flat",
    "from_linen",
    "modern",
    "shapes_of",
    "some",
    "to_linen",
]

Part = Literal["unet", "vae", "text", "taesd"]
Kind = Literal["convolution", "matrix", "pointwise", "projection", "heads", "joined", "vector", "embedding"]
"""How torch has a weight, and linen:

    convolution   [O, I, h, w]                    [h, w, I, O]
    matrix        [O, I]                          [I, O]
    pointwise     [O, I, 1, 1]                    [I, O]
    projection    [O, I, 1, 1] or [O, I]          [I, O]
    heads         [H d, I]                        [I, H, d], with a bias [H d] and [H, d]
    joined        [O, H d]                        [H, d, O]
    vector        [C]                             [C]
    embedding     [n, C]                          [n, C]
"""


class Row(NamedTuple):
    """A name here, diffusers' name, and the kind of its weight; without a kind further rows say what is inside."""

    ours: str
    theirs: str
    kind: Kind | None = None


WORDS = {
    "n": {"0": "1", "1": "2"},
    "b": {"self": "1", "cross": "2", "mlp": "3"},
    "q": {"query": "q", "key": "k", "value": "v"},
    "p": {"encoder": "encoder", "decoder": "decoder"},
    "w": {word: word for word in ("in", "out", "token", "position", "q", "k", "v")},
}
"""What a letter of the table stands for, and for what on the other side. The others are numbers; `m` counts the levels
from the coarsest, `l` from the finest."""

_BLOCK = (
    Row("GroupNorm_{n}", "norm{n}", "vector"),
    Row("Conv_{n}", "conv{n}", "convolution"),
    Row("Dense_0", "time_emb_proj", "matrix"),
    Row("Dense_1", "conv_shortcut", "pointwise"),
)
_LEVELS = (
    Row("stem", "conv_in", "convolution"),
    Row("out_norm", "conv_norm_out", "vector"),
    Row("out", "conv_out", "convolution"),
    Row("down_{l}_{i}", "down_blocks.{l}.resnets.{i}"),
    Row("down_{l}", "down_blocks.{l}.downsamplers.0.conv", "convolution"),
    Row("up_{l}_{i}", "up_blocks.{m}.resnets.{i}"),
    Row("up_{l}", "up_blocks.{m}.upsamplers.0.conv", "convolution"),
    Row("middle_{i}", "mid_block.resnets.{i}"),
    *_BLOCK,
)
TABLE: dict[Part, tuple[Row, ...]] = {
    "unet": (
        Row("time_{n}", "time_embedding.linear_{n}", "matrix"),
        Row("guidance", "time_embedding.cond_proj", "matrix"),
        Row("cond_{n}", "add_embedding.linear_{n}", "matrix"),
        Row("down_{l}_{i}_transformer", "down_blocks.{l}.attentions.{i}"),
        Row("up_{l}_{i}_transformer", "up_blocks.{m}.attentions.{i}"),
        Row("middle_transformer", "mid_block.attentions.0"),
        Row("norm", "norm", "vector"),
        Row("proj_{w}", "proj_{w}", "projection"),
        Row("block_{i}", "transformer_blocks.{i}"),
        Row("mlp_in", "ff.net.0.proj", "matrix"),
        Row("mlp_out", "ff.net.2", "matrix"),
        Row("{b}_norm", "norm{b}", "vector"),
        Row("{b}_{q}", "attn{b}.to_{q}", "heads"),
        Row("{b}_out", "attn{b}.to_out.0", "joined"),
        *_LEVELS,
    ),
    "vae": (
        Row("{p}", "{p}"),
        Row("quant", "quant_conv", "pointwise"),
        Row("post_quant", "post_quant_conv", "pointwise"),
        Row("middle_attention", "mid_block.attentions.0"),
        Row("self_norm", "group_norm", "vector"),
        Row("self_{q}", "to_{q}", "heads"),
        Row("self_out", "to_out.0", "joined"),
        *_LEVELS,
    ),
    "text": (
        Row("{w}_embedding", "text_model.embeddings.{w}_embedding", "embedding"),
        Row("layers_{i}", "text_model.encoder.layers.{i}"),
        Row("layer_norm{i}", "layer_norm{i}", "vector"),
        Row("{w}_proj", "self_attn.{w}_proj", "matrix"),
        Row("fc{i}", "mlp.fc{i}", "matrix"),
        Row("final_layer_norm", "text_model.final_layer_norm", "vector"),
        Row("text_projection", "text_projection", "matrix"),
    ),
    "taesd": (
        Row("{p}", "{p}"),
        Row("layers_{i}", "layers.{i}", "convolution"),
        Row("conv_{i}", "conv.{i}", "convolution"),
    ),
}
"""The first row that fits counts. A parameter has a path of names here, such as `down_0_1/Conv_0/kernel`. Each name but
the last is that of a row; theirs in a line, then "bias" or "weight", are diffusers' name,
`down_blocks.0.resnets.1.conv1.weight`."""

_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""The autoencoder's attention in files before 2023."""


class Entry(NamedTuple):
    """Where a tensor is in the parameters, and what it is there."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    kind: Kind

    @property
    def name(self) -> str:
        """Of the parameter in `flat`."""
        return "/".join(self.path)

    def theirs(self, linear: bool = True) -> tuple[int, ...]:
        """The shape of torch's tensor; with `linear`, projections are matrices."""
        if self.path[-1] != "kernel":
            return self.shape if self.kind == "embedding" else (math.prod(self.shape),)
        if self.kind == "convolution":
            return tuple(self.shape[i] for i in (3, 2, 0, 1))
        reads = math.prod(self.shape[:2]) if self.kind == "joined" else self.shape[0]
        ones = (1, 1) if self.kind == "pointwise" or (self.kind == "projection" and not linear) else ()
        return (math.prod(self.shape) // reads, reads, *ones)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape is one, where a matrix may be a convolution of one pixel."""
        if self.path[-1] != "kernel" or self.kind == "convolution":
            return shape == self.theirs()
        return shape[:2] == self.theirs()[:2] and shape[2:] in ((), (1, 1))

    def to_linen(self, tensor: np.ndarray) -> np.ndarray:
        """A tensor of torch in the order of linen, a view where it can be."""
        if self.path[-1] == "kernel":
            whole = self.kind == "convolution"
            tensor = tensor.transpose(2, 3, 1, 0) if whole else tensor.reshape(tensor.shape[:2]).T
        return tensor.reshape(self.shape)

    def from_linen(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The inverse: a tensor of this `shape`."""
        if self.path[-1] == "kernel":
            if self.kind == "convolution":
                return array.transpose(3, 2, 0, 1)
            array = array.reshape(shape[1], shape[0]).T
        return array.reshape(shape)


def to_linen(
    tensors: Mapping[str, np.ndarray],
    shapes: PyTree,
    *,
    part: Part,
    dtype: DTypeLike | None = None,
    put: Callable[[np.ndarray], Array] = jnp.asarray,
) -> PyTree:
    """Parameters out of a part's tensors, one by one: no more than one is held besides the result.

    Args:
        tensors: by diffusers' names, new or old (see `modern`); read when they are needed.
        shapes: those of the parameters, `{"params": ...}`, as `jax.eval_shape` of `init` gives them.
        part: which rows of the table.
        dtype: of the result; None is as the tensors have it.
        put: puts an array where it is to be, by default on JAX's default device.

    Raises:
        ValueError: tensors are missing or left over, have other shapes, or are not of floating point; it names them.
    """
    wanted, theirs = entries(shapes, part), shapes_of(tensors)
    found = _check(wanted, theirs, part)

    def read(name: str, entry: Entry) -> Array:
        tensor = np.asarray(tensors[found[name]])
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise ValueError(
                f"{part}: {found[name]} is of the type {tensor.dtype}; expected floating-point numbers: take a "
                "file in float32, float16, bfloat16 or float8; quantised ones are not read."
            )
        if dtype is not None:  # in order, which is three times as fast as across
            tensor = tensor.astype(jnp.dtype(dtype), copy=False)
        return put(_in_order(entry.to_linen(tensor)))

    return {"params": traverse_util.unflatten_dict({e.path: read(name, e) for name, e in wanted.items()})}


def from_linen(
    params: PyTree, *, part: Part, linear: bool = True, like: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, np.ndarray]:
    """The tensors of a part's parameters by diffusers' names, the inverse of `to_linen`; views where they can be.

    Args:
        params: `{"params": ...}`, on any device.
        part: which rows of the table.
        linear: the transformers of a U-Net have matrices around them, as in Stable Diffusion 2 and XL; without, those of
            version 1 have convolutions of one pixel.
        like: names and shapes of a file, which the result then has.

    Raises:
        ValueError: a parameter has no name there, or they are not those of the file.
    """
    wanted = entries(params, part)
    shapes = {name: entry.theirs(linear) for name, entry in wanted.items()} if like is None else like
    found = _check(wanted, shapes, part)
    leaves = traverse_util.flatten_dict(params["params"])
    return {
        found[name]: e.from_linen(np.asarray(leaves[e.path]), tuple(shapes[found[name]]))
        for name, e in wanted.items()
    }


def entries(shapes: PyTree, part: Part) -> dict[str, Entry]:
    """What each tensor of a part is, by diffusers' names. ValueError for a parameter that has none."""
    leaves = traverse_util.flatten_dict(shapes["params"])
    levels = 1 + max(
        (int(n) for path in leaves for n in re.findall(r"down_(\d+)_", "/".join(path))), default=0
    )
    found = {}
    for path, leaf in leaves.items():
        steps = [_step(name, part, levels) for name in path[:-1]]
        kind = steps[-1][1] if steps and all(name for name, _ in steps) else None
        if kind is None:
            raise ValueError(
                f"{part}: diffusers has no tensor for {'/'.join(path)}. Is the network one of Stable Diffusion's?"
            )
        last = "bias" if path[-1] == "bias" else "weight"
        found[".".join([*(name for name, _ in steps), last])] = Entry(path, tuple(leaf.shape), kind)
    return found


def flat(params: PyTree) -> dict[str, Array | np.ndarray]:
    """The leaves of `{"params": ...}` by their paths, `{"down_0_0/Conv_0/kernel": ...}`."""
    found: dict[str, Array | np.ndarray] = traverse_util.flatten_dict(params["params"], sep="/")
    return found


def modern(name: str, part: Part) -> str | None:
    """The name that diffusers gives a tensor today; None for a tensor that is no parameter.

    Files before 2023 name the layers of the autoencoder's attention otherwise. Text encoders come with and without
    "text_model." in front, and some with a list of the positions.
    """
    if part == "vae" and ".attentions." in name:
        head, module, leaf = name.rsplit(".", 2)
        return f"{head}.{_OLD.get(module, module)}.{leaf}"
    if part == "text" and not name.startswith(("text_model.", "text_projection.")):
        name = f"text_model.{name}"
    return None if name.endswith(".position_ids") else name


def shapes_of(tensors: Mapping[str, np.ndarray]) -> Mapping[str, tuple[int, ...]]:
    """The shapes of tensors by name, without reading those of a file."""
    known = getattr(tensors, "shapes", None)
    return {name: np.shape(x) for name, x in tensors.items()} if known is None else known


def _in_order(array: np.ndarray) -> np.ndarray:
    """A copy with its axes in order, made by parts that stay in the cache: three times as fast as at once."""
    if array.flags.c_contiguous:
        return np.array(array)
    copy, width = np.empty(array.shape, array.dtype), 64
    for start in range(0, array.shape[-1], width):
        copy[..., start : start + width] = array[..., start : start + width]
    return copy


def _step(name: str, part: Part, levels: int) -> tuple[str, Kind | None]:
    """diffusers' name for one of a path, and its kind; an empty name where there is none."""
    for pattern, row in _PATTERNS[part]:
        if match := pattern.fullmatch(name):
            values = {letter: WORDS.get(letter, {}).get(x, x) for letter, x in match.groupdict().items()}
            return row.theirs.format(m=levels - 1 - int(values.get("l", 0)), **values), row.kind
    return "", None


def _pattern(ours: str) -> re.Pattern[str]:
    """That of a name in the table."""
    group = lambda letter: f"(?P<{letter}>{'|'.join(WORDS[letter]) if letter in WORDS else '[0-9]+'})"
    return re.compile(re.sub(r"\{(\w)\}", lambda match: group(match[1]), ours))


_PATTERNS = {part: [(_pattern(row.ours), row) for row in rows] for part, rows in TABLE.items()}


def _check(wanted: Mapping[str, Entry], theirs: Mapping[str, tuple[int, ...]], part: Part) -> dict[str, str]:
    """The names of the tensors by their modern ones. ValueError if they are not those that are wanted."""
    found: dict[str, str] = {}
    left_over = []
    for name in theirs:
        now = modern(name, part)
        if now is not None and (now not in wanted or now in found):
            left_over.append(name)
        elif now is not None:
            found[now] = name
    missing = [name for name in wanted if name not in found]
    if missing or left_over:
        said = [
            f"{what}: {some(names)}"
            for what, names in (("missing", missing), ("left over", left_over))
            if names
        ]
        raise ValueError(
            f"{part}: the tensors are not those of this network. {'; '.join(said)}. Take the configuration that belongs "
            "to them."
        )
    wrong = [name for name, entry in wanted.items() if not entry.fits(tuple(theirs[found[name]]))]
    if wrong:
        both = f"{found[wrong[0]]} has the shape {tuple(theirs[found[wrong[0]]])}, expected {wanted[wrong[0]].theirs()}"
        others = f"; so have {some(wrong[1:])}" if wrong[1:] else ""
        raise ValueError(f"{part}: {both}{others}. Take the configuration that belongs to the tensors.")
    return found


def some(names: Sequence[str]) -> str:
    """Five of them, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
