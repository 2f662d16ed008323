"""Splits by name, and slices and sums of them as TFDS writes these: "train", "train[:10%]", "train+test"."""

from collections.abc import Mapping


def select(name: str, split: str, sizes: Mapping[str, int]) -> list[tuple[str, slice]]:
    """The rows of a split: slices of the splits that there are, `sizes` with the number of examples of each.

    `ValueError` for a split that is not there, which lists those that are, and for an empty one.
    """
    # A split as it is needs no TFDS.
    parts = [(split, slice(0, sizes[split]))] if split in sizes else _parse(name, split, sizes)
    if not any(rows.stop > rows.start for _, rows in parts):
        raise empty(name, split)
    return parts


def _parse(name: str, split: str, sizes: Mapping[str, int]) -> list[tuple[str, slice]]:
    import tensorflow_datasets as tfds

    try:
        infos = {n: tfds.core.SplitInfo(name=n, shard_lengths=[k], num_bytes=0) for n, k in sizes.items()}
        absolute = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
        ends = [slice(part.from_, part.to).indices(sizes[part.splitname])[:2] for part in absolute]
        return [(part.splitname, slice(*rows)) for part, rows in zip(absolute, ends, strict=True)]
    except ValueError as error:
        raise wrong(name, split, sizes, error) from None


class NoSplit(ValueError):
    """A data set has no split of this name, or of a name in this expression."""


def wrong(name: str, split: str, sizes: Mapping[str, int], why: object) -> NoSplit:
    """The error for a split that a data set does not have."""
    there = ", ".join(f'"{s}" ({n:,} examples)' for s, n in sizes.items())
    return NoSplit(
        f'no split "{split}" in "{name}": it has {there}, and slices and sums of these: "train[:10%]", '
        f'"train+test". ({why})'
    )


def empty(name: str, split: str) -> ValueError:
    """The error for a split without examples."""
    return ValueError(f'split "{split}" of "{name}" is empty: expected at least one example.')
