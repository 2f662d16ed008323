"""How flags are read, beyond what tyro knows: paths of buckets, of which a Path would eat a slash."""

from pathlib import Path, PurePath

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

registry = ConstructorRegistry()
"""For `tyro.cli`."""


@registry.primitive_rule
def _path(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[PurePath] | None:
    if info.type not in (Path, PurePath):
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: _read(words[0]),
        is_instance=lambda x: isinstance(x, PurePath),
        str_from_instance=lambda path: [str(path)],
    )


def _read(word: str) -> PurePath:
    if ":/" not in word:
        return Path(word)
    from gen_jax import paths  # imports JAX, which --help does not need

    return paths.path_of(word)
