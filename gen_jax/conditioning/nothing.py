"""No condition."""

from dataclasses import dataclass

from jaxtyping import Array, Key, PyTree

from gen_jax import checks
from gen_jax.codec import Batch
from gen_jax.conditioning.protocol import NO_WORDS, Index, Label, Prompt
from gen_jax.types import Size


@checks.checked
@dataclass(frozen=True)
class Nothing:
    """An unconditional model."""

    @property
    def guides(self) -> bool:
        """False: there is no condition to be guided by."""
        return False

    @checks.checked
    def init(self, key: Key[Array, ""]) -> None:
        """None."""

    @checks.checked
    def prepare(self, batch: Batch) -> Batch:
        """Nothing of it."""
        return {}

    @checks.checked
    def of_batch(self, key: Key[Array, ""], batch: Batch) -> None:
        """None."""

    @checks.checked
    def null(self, n: Size, like: PyTree = None) -> None:
        """None."""

    @checks.checked
    def choose(
        self,
        key: Key[Array, ""],
        index: Index,
        label: Label | None = None,
        prompt: Prompt | None = None,
    ) -> None:
        """None; ValueError where a label or a prompt is asked for."""
        if label is not None:
            raise ValueError(
                f"label {label} asks for a class, but this model is unconditional. Train one whose condition is "
                "Labels, as experiments/step10_conditional.py does."
            )
        if prompt is not None:
            raise ValueError(f"prompt {prompt!r} asks for words, but this model is unconditional. {NO_WORDS}")

    @checks.checked
    def tell(self, params: PyTree | None, cond: PyTree | None) -> tuple[()]:
        """Nothing."""
        return ()
