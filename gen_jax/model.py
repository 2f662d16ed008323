"""`Model`: the complete description of a trained diffusion model, and its form on disk.

    m = model.Model(network, process, "v", conditioning.Labels(10), codec.Pixels((28, 28, 1)))
    text = model.to_json(m)              # every field of every part, and a format number
    m == model.from_json(text)

A description is read back from a closed table of types (`TYPES`), so that a file of a stranger runs no code: an unknown
type, an unknown field or a value of another type is a ValueError that says where it stands. Because every field is
written, a run does not change when a default or a preset of this package does. A field that a file does not have, since
it is newer than the file, takes its default, which therefore has to mean what was done before there was the field.
"""

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from gen_jax import checks, samplers
from gen_jax.codec import Codec, Latents, Pixels
from gen_jax.conditioning import Condition, Labels, Nothing, Reader, Text
from gen_jax.diffusion import process
from gen_jax.diffusion.prediction import check_predicts
from gen_jax.diffusion.process import Process
from gen_jax.networks.autoencoder_kl import AutoencoderKLConfig
from gen_jax.networks.text import CLIPTextConfig
from gen_jax.networks.unet import UNetConfig
from gen_jax.text import Tokenizer
from gen_jax.types import Count, Predicts, Size, SolverName

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
FORMAT = 2
"""Of a description on disk. Format 1 named a preset instead of writing its fields (`gen_jax.pretrained.migration`)."""


@runtime_checkable
class Network(Protocol):
    """A network without its parameters; what a linen module is."""

    @property
    def init(self) -> Callable[..., PyTree]:
        """`init(key, x_t, t) -> params`."""
        ...

    @property
    def apply(self) -> Callable[..., PyTree]:
        """`apply(params, x_t [B, ...], t [B]) -> array like x_t`, with `cond` in the end where there is a condition."""
        ...


@runtime_checkable
class NetworkConfig(Protocol):
    """A frozen dataclass of everything that shapes a network."""

    def build(self) -> Network:
        """The network of this configuration."""
        ...


@checks.checked
@dataclass(frozen=True)
class Sampling:
    """How the makers of a model draw from it, where nothing else is asked for.

    Args:
        solver: a name of `samplers.named`, or with a `schedule` one of its own ("lcm"); None is what is recommended for
            this number of evaluations (`samplers.recommended`).
        nfe: how often the denoiser is evaluated for a sample; with a `schedule`, how many steps its grid has.
        guidance: weight of guidance, by the condition (classifier-free), or for an unconditional model by a weaker one
            (autoguidance); 1 is none.
        guide_step: for an unconditional model, the step in training whose parameters are the weaker model: those of the
            first checkpoint at or after it. None: there is no weaker model.
        schedule: the grids of diffusers, for a model that was published with them: every solver that is asked for by
            name takes its grid from there. None: the grids of `samplers.named`. The solver None has its own either way.

    Raises:
        ValueError: an unknown solver, fewer than 1 evaluation, or a weight that is not finite.
    """

    solver: str | None = None
    nfe: Count = 20
    guidance: float = 1.0
    guide_step: Size | None = None
    schedule: samplers.Schedule | None = None

    def __post_init__(self) -> None:
        self.chosen(None, None)

    @checks.checked
    def plan(
        self, proc: Process, predicts: Predicts, solver: SolverName | None = None, nfe: int | None = None
    ) -> samplers.Plan:
        """The steps of a solver by name, for a number of evaluations (steps, with a schedule); else as is said here."""
        solver, nfe = self.chosen(solver, nfe)
        check_predicts(predicts)
        if self.schedule is None or solver is None:
            return samplers.named.plan(proc, solver, nfe)
        return self.schedule.plan(proc, solver, nfe, predicts=predicts)

    @checks.checked
    def chosen(self, solver: SolverName | None, nfe: int | None) -> tuple[str | None, int]:
        """A solver and a number of evaluations, as they are given, or as is said here where they are None."""
        nfe = self.nfe if nfe is None else checks.whole("nfe", nfe, "evaluation")
        solver = self.solver if solver is None else solver
        if solver is not None:
            (samplers.named if self.schedule is None else samplers.schedule).find(solver)
        return solver, nfe

    @checks.checked
    def deviation(self, proc: Process, solver: SolverName | None = None, nfe: int | None = None) -> float:
        """What standard normal noise is multiplied by, to start from: `Schedule.deviation`; 1 without a schedule."""
        solver, nfe = self.chosen(solver, nfe)
        if self.schedule is None or solver is None:
            return 1.0
        return self.schedule.deviation(proc, solver, nfe)

    @checks.checked
    def rounds(self, solver: SolverName | None = None) -> bool:
        """Whether the network is asked at whole times alone, `Schedule.rounds`."""
        solver, _ = self.chosen(solver, None)
        return self.schedule is not None and solver is not None and self.schedule.rounds(solver)


@checks.checked
@dataclass(frozen=True)
class Model:
    """All that is known of a diffusion model but its weights.

    Args:
        network: configuration of the network, which builds it.
        process: how noise was added.
        predicts: what the network says, see `diffusion.prediction`.
        condition: what it is told.
        codec: what lies between data and `x_0`.
        sampling: how to draw, unless told otherwise.
        beside: channels that the network sees besides those of `x_t`, such as the mask and the rest of the picture of a
            network for inpainting.

    Raises:
        ValueError: an unknown prediction, or a schedule of discrete times for a process that is not `DDPM`.
    """

    network: NetworkConfig
    process: Process
    predicts: Predicts
    condition: Condition
    codec: Codec
    sampling: Sampling = Sampling()
    beside: Size = 0

    def __post_init__(self) -> None:
        check_predicts(self.predicts)
        if self.sampling.schedule is not None and not isinstance(self.process, process.DDPM):
            raise ValueError(
                f"a schedule needs a discrete process, DDPM; got {self.process}: leave out sampling.schedule."
            )

    @checks.checked
    def init(self, key: Key[Array, ""]) -> PyTree:
        """New parameters of all that is learned, see `parts`."""
        *sides, channels = self.codec.shape
        x, t = jnp.zeros((1, *sides, channels + self.beside)), jnp.zeros(1)
        network = self.network.build().init(key, x, t)
        text = self.condition.init(jax.random.fold_in(key, 1))
        return network if text is None else {"network": network, "text": text}

    @checks.checked
    def parts(self, params: PyTree) -> dict[str, PyTree]:
        """The trees of weights in what is learned: `{"network": ...}`, and "text" where the condition is learned too.

        `params` are those of `init`: the tree of the network alone, or a dict of the two.
        """
        return dict(params) if _is_learned(typing.cast(Hashable, self.condition)) else {"network": params}

    @checks.checked
    def at(self, height: Count, width: Count) -> "Model":
        """The same for images of so many pixels, which a network of convolutions draws as well.

        What the network is told of sizes is of this size then. ValueError where the autoencoder can not make it, and for
        a codec of one's own.
        """
        if not isinstance(self.codec, Pixels | Latents):
            raise ValueError(f"a {type(self.codec).__name__} has the size that it has: make another codec.")
        condition = self.condition
        if isinstance(condition, Text):
            condition = condition.at(height, width)
        return dataclasses.replace(self, codec=self.codec.at(height, width), condition=condition)

    def undrawn(self) -> "Model":
        """The same with the default sampling: programs and parameters do not depend on how a model is drawn from."""
        return dataclasses.replace(self, sampling=Sampling())


@functools.lru_cache(maxsize=16)
def _is_learned(condition: Condition) -> bool:
    """Whether it has parameters."""
    return jax.eval_shape(condition.init, jax.random.key(0)) is not None


TYPES: tuple[type, ...] = (
    *(Model, Sampling, samplers.Schedule, Nothing, Labels, Text, Reader, Pixels, Latents),
    *(UNetConfig, AutoencoderKLConfig, CLIPTextConfig, Tokenizer),
    *(process.DDPM, process.VP, process.SubVP, process.VE, process.EDM, process.FlowMatching),
)
"""What a description may be made of."""


@checks.checked
def to_dict(value: object, types: Sequence[type] = ()) -> "dict[str, Json]":
    """A model as what JSON can hold: `{"type": "Model", "network": {"type": "UNetConfig", ...}, ...}`.

    `types` are configurations of one's own networks, besides `TYPES`. ValueError for a part that is none of them.
    """
    _check_types(types)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise ValueError(f"value must be a Model, or a part of one, got {checks.came(value)}.")
    known = (*TYPES, *types)

    def plain(value: object, where: str) -> Json:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            if type(value) not in known:
                raise ValueError(
                    f"{where} is a {type(value).__name__}, which can not be described: expected one of {_names(known)}. "
                    "Give types=(...) for a class of your own, a frozen dataclass of numbers, strings and tuples."
                )
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            return {"type": type(value).__name__} | {
                name: plain(x, f"{where}.{name}") for name, x in fields.items()
            }
        if isinstance(value, tuple | list):
            return [plain(x, f"{where}[{i}]") for i, x in enumerate(value)]
        if value is None or isinstance(value, bool | int | str) or _finite(value):
            return typing.cast(Json, value)
        raise ValueError(f"{where} is {value!r}: expected a finite number or a string.")

    return typing.cast("dict[str, Json]", plain(value, type(value).__name__.lower()))


@checks.checked
def from_dict(found: object, types: Sequence[type] = ()) -> Model:
    """The inverse of `to_dict`. ValueError, which says where, for anything that is not as it should be."""
    _check_types(types)
    if not isinstance(found, Mapping):
        raise ValueError(
            f"model: expected Model, got {checks.came(found)}: found must be a dict, as to_dict makes it."
        )
    try:
        value = _read(found, Model, "model", {t.__name__: t for t in (*TYPES, *types)})
    except RecursionError:
        raise ValueError("model: it is nested too deeply.") from None
    return typing.cast(Model, value)


@checks.checked
def to_json(model: Model, types: Sequence[type] = ()) -> str:
    """A model as text, with the format number."""
    return json.dumps({"format": FORMAT, "model": to_dict(model, types)}, indent=2)


@checks.checked
def from_json(text: str, types: Sequence[type] = ()) -> Model:
    """The inverse of `to_json`; other keys beside "format" and "model" are left to others."""
    try:
        found = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"expected a description in JSON as text: {error}.") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        got = found.get("format") if isinstance(found, dict) else type(found).__name__
        raise ValueError(
            f"expected a description of format {FORMAT}, got {got!r}; a newer gen_jax may read it."
        )
    return from_dict(found.get("model"), types)


def _check_types(types: Sequence[object]) -> None:
    """ValueError unless they are classes."""
    for each in types:
        if not isinstance(each, type):
            raise ValueError(f"types must be classes, configurations of networks, got {checks.came(each)}.")


def _read(found: object, expected: object, where: str, known: Mapping[str, type]) -> object:
    """`found` as a value of the type `expected`."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        if type(found) in arguments:
            return found
        (expected, *_) = (a for a in arguments if a is not type(None))
        return _read(found, expected, where, known)
    if isinstance(found, dict) and isinstance(expected, type):
        return _read_dataclass(found, expected, where, known)
    if origin is tuple and isinstance(found, list):
        each = [arguments[0]] * len(found) if arguments[-1] is ... else list(arguments)
        if len(each) == len(found):
            return tuple(
                _read(x, a, f"{where}[{i}]", known) for i, (x, a) in enumerate(zip(found, each, strict=True))
            )
    if origin is Literal and found in arguments:
        return found
    if expected is float and _finite(found):
        return float(typing.cast(float, found))
    if expected in (bool, int, str) and type(found) is expected:
        return found
    raise ValueError(f"{where}: expected {_name(expected)}, got {found!r}.")


def _read_dataclass(
    found: Mapping[str, object], expected: type, where: str, known: Mapping[str, type]
) -> object:
    name = found.get("type")
    made = known.get(name) if isinstance(name, str) else None
    if made is None:
        raise ValueError(
            f"{where}: unknown type {name!r}; expected one of {_names(known.values())}. Give types=(...) for a class of "
            f"your own.{checks.nearest(name, known)}"
        )
    hints, fields = typing.get_type_hints(made), {f.name for f in dataclasses.fields(made)}
    if unknown := sorted(set(found) - {"type"} - fields):
        missing = fields - set(found)
        said = ", ".join(f"{field!r}.{checks.nearest(field, missing)}" for field in unknown)
        raise ValueError(f"{where}: {name} has no field {said}")
    values = {k: _read(x, hints[k], f"{where}.{k}", known) for k, x in found.items() if k != "type"}
    try:
        value = typing.cast(Callable[..., object], made)(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
    if not isinstance(value, expected):
        raise ValueError(f"{where}: expected {_name(expected)}, got {name}.")
    return value


def _finite(value: object) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)


def _name(expected: object) -> str:
    return expected.__name__ if isinstance(expected, type) else str(expected).replace("typing.", "")


def _names(known: Iterable[type]) -> str:
    return ", ".join(sorted(t.__name__ for t in known))
