"""`checks.checked`: what it lets through, what it refuses, and that compiled code is as it was."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from gen_jax import checks, normal
from gen_jax.types import Count, Positive


class Pair(NamedTuple):
    mean: Float[Array, "D"]
    scale: Annotated[Float[Array, "D"], checks.Range(0, above=True)]


@checks.checked
def distance(
    pair: Pair, x: Float[Array, "N D"], *, power: Positive = 2.0, times: Count = 1, flag: bool = False
):
    return times * (jnp.abs((x - pair.mean[None]) / pair.scale[None]) ** power).sum(1)


PAIR = Pair(jnp.zeros(2), jnp.array([1.0, 2.0]))
X = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)


@pytest.mark.parametrize(
    "x", [X, jnp.asarray(X), X.tolist(), X.astype(int), X.astype(np.float64), X.astype(np.uint8), X > 0]
)
def test_what_can_be_an_array_of_numbers_is_made_one(x):
    expected = (np.abs(np.asarray(x, float) / [1, 2]) ** 2).sum(1)
    np.testing.assert_allclose(distance(PAIR, x), expected, rtol=1e-6)


def test_numbers_of_python_are_fields_as_well():
    np.testing.assert_allclose(distance(Pair([0.0, 0.0], [1, 2]), X), [2.0, 13.0])


REFUSED = {
    r"x must be numbers of shape \[N, D\], where D = 2 of pair.mean, got an array float32 \(2, 1\)": lambda: (
        distance(PAIR, X[:, :1])
    ),
    r"x must be numbers of shape \[N, D\], where D = 2 of pair.mean, got an array float32 \(2,\)": lambda: (
        distance(PAIR, X[0])
    ),
    r"x must be numbers of shape .* of different lengths": lambda: distance(PAIR, [[1.0, 2.0], [3.0]]),
    r"x must be numbers .*, got 'abc'": lambda: distance(PAIR, "abc"),
    r"x must be numbers .*, got None": lambda: distance(PAIR, None),
    r"x must be numbers .*, got \[\], an empty list": lambda: distance(PAIR, []),
    r"x must be numbers .*, got \['1'\]: make numbers of words": lambda: distance(PAIR, ["1"]),
    r"x must be numbers .*, got range\(0, 3\): make a list": lambda: distance(PAIR, range(3)),
    r"x must be an array of numbers, got \[\], an empty list": lambda: normal.fit([]),
    r"params.std must be numbers of shape \[\.\.\.\], above 0, where \.\.\. = \(2,\) of params.mean": lambda: (
        normal.sample(jax.random.key(0), normal.Normal(jnp.zeros(2), 1.0), 2)
    ),
    r"x must be numbers .* complex64": lambda: distance(PAIR, X.astype(np.complex64)),
    r"x must be finite, got nan in 1 of 2 rows: 1": lambda: distance(PAIR, [[1.0, 2.0], [np.nan, 1.0]]),
    r"x must be finite, got inf in 1 of 2 rows: 0": lambda: distance(
        PAIR, jnp.array([[jnp.inf, 2.0], [0, 1.0]])
    ),
    r"pair must be a Pair, got 3": lambda: distance(3, X),
    r"pair\.scale must be numbers of shape \[D\], above 0, where D = 2 of pair.mean": lambda: distance(
        PAIR._replace(scale=jnp.ones(3)), X
    ),
    r"pair\.scale must be above 0, got 0 in 1 of 2 rows: 1": lambda: distance(
        Pair(PAIR.mean, jnp.array([1.0, 0])), X
    ),
    r"power must be above 0, got -1": lambda: distance(PAIR, X, power=-1.0),
    r"power must be a number, above 0, got 'two'": lambda: distance(PAIR, X, power="two"),
    r"times must be a whole number, at least 1, got 2\.5": lambda: distance(PAIR, X, times=2.5),
    r"times must be at least 1, got 0": lambda: distance(PAIR, X, times=0),
    r"times must be a whole number, at least 1, got True": lambda: distance(PAIR, X, times=True),
    r"flag must be True or False, got 1": lambda: distance(PAIR, X, flag=1),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


def test_a_traced_number_that_decides_what_is_compiled_is_told_of_static_arguments():
    said = r"times must be a whole number, at least 1, got .*a number of Python.*static_argnames='times'"
    with pytest.raises(ValueError, match=said):
        jax.jit(lambda times: distance(PAIR, X, times=times))(3)
    jax.jit(lambda power: distance(PAIR, X, power=power))(2.0)  # a number that does not decide it


def test_a_misspelt_keyword_is_offered_the_right_one():
    with pytest.raises(TypeError, match=r"distance has no argument 'powr'.* Did you mean power\?"):
        distance(PAIR, X, powr=1.0)


def test_compiled_code_checks_shapes_alone_and_is_what_it_was():
    compiled = jax.jit(distance)
    with pytest.raises(ValueError, match="where D = 2"):
        compiled(PAIR, X[:, :1])
    with jax.debug_nans(False):
        assert np.isnan(compiled(PAIR, np.float32([[1, 2], [np.nan, 1]]))[1])
    plain, held = (jax.make_jaxpr(f)(PAIR, X) for f in (distance.__wrapped__, distance))
    assert str(plain) == str(held)


def test_values_of_traced_arguments_are_checked_by_checkify():
    compiled = jax.jit(checks.checkified(distance))
    error, result = compiled(PAIR, X)
    error.throw()
    np.testing.assert_allclose(result, [2.0, 13.0])
    for pair, x, message in (
        (PAIR, np.full_like(X, np.inf), "x must be finite"),
        (PAIR._replace(scale=-PAIR.scale), X, r"pair\.scale must be above 0"),
    ):
        error, _ = compiled(pair, x)
        with pytest.raises(jax.experimental.checkify.JaxRuntimeError, match=message):
            error.throw()


def test_values_are_read_at_the_outermost_call_alone():
    @checks.checked
    def inner(x: Float[Array, "N"]):
        return x

    @checks.checked
    def outer(x: Float[Array, "N"]):
        return inner(jnp.log(x))

    with jax.debug_nans(False):
        assert np.isneginf(outer(jnp.zeros(2))).all()
    with pytest.raises(ValueError, match="x must be finite, got -inf"):
        inner(jnp.full(2, -jnp.inf))


@checks.checked
def labelled(
    label: Int[Array, "B"], mask: Bool[Array, "B"] | None, tree: PyTree[Float[Array, "B ..."]], *more: float
):
    return label


def test_labels_do_not_overflow_and_leaves_have_names():
    got = labelled(np.array([255, 3], np.uint8), None, {"a": np.zeros((2, 3))})
    assert got.dtype == jnp.int32
    assert (got + 1).tolist() == [256, 4]
    with pytest.raises(
        ValueError, match=r"tree\['a'\]\[1\] must be numbers of shape \[B, \.\.\.\], where B = 2 of label"
    ):
        labelled([0, 1], None, {"a": (np.zeros(2), np.zeros(3))})
    with pytest.raises(ValueError, match="label must be integers of shape"):
        labelled([0.5, 1.0], None, np.zeros(2))
    with pytest.raises(ValueError, match="argument 4 must be a number, got 'x'"):
        labelled([0, 1], None, np.zeros(2), "x")


@checks.checked
def drawn(key: Key[Array, ""], weights: Annotated[Float[Array, "K"], checks.Probabilities()] | None = None):
    return key


def test_keys_and_probabilities():
    drawn(jax.random.key(0), jnp.array([0.25, 0.75]))
    drawn(jax.random.key(0), None)
    for key, message in (
        (0, r"jax\.random\.key\(0\)"),
        (jax.random.PRNGKey(0), "wrap_key_data"),
        (None, "got None"),
    ):
        with pytest.raises(ValueError, match=message):
            drawn(key)
    with pytest.raises(ValueError, match=r"weights must sum to 1, but the sum is 2: divide by it"):
        drawn(jax.random.key(0), [1.0, 1.0])
    with pytest.raises(ValueError, match="weights must be at least 0, got -1 in 1 of 2 rows: 0"):
        drawn(jax.random.key(0), [-1.0, 2.0])


@checks.checked
def shaped(cov: Annotated[Float[Array, "*K D D"], checks.Covariance()]):
    return cov


def test_covariances():
    shaped(np.stack([np.eye(3), 2 * np.eye(3)]))
    with pytest.raises(ValueError, match="cov must be symmetric"):
        shaped([[1.0, 0.5], [0.0, 1.0]])
    with pytest.raises(
        ValueError, match=r"cov must be positive definite, but its least eigenvalue is -1: add to its"
    ):
        shaped([[1.0, 2.0], [2.0, 1.0]])


def test_a_class_is_held_to_its_fields():
    import dataclasses

    @checks.checked
    @dataclasses.dataclass(frozen=True)
    class Rate:
        value: Positive
        steps: Count = 3

    assert Rate(0.5).steps == 3
    with pytest.raises(ValueError, match=r"value must be above 0, got -0\.5"):
        Rate(-0.5)
    with pytest.raises(ValueError, match="steps must be a whole number"):
        dataclasses.replace(Rate(0.5), steps=2.5)


def test_values_of_an_array_of_jax_are_read_once(monkeypatch):
    read = []
    check = checks.Range.check
    monkeypatch.setattr(
        checks.Range, "check", lambda self, name, value: (read.append(name), check(self, name, value))
    )
    x, bad = jnp.asarray(X), jnp.asarray(X).at[0, 0].set(jnp.inf)
    pair = Pair(jnp.zeros(2), jnp.ones(2))
    for _ in range(3):
        distance(pair, x)
    assert sorted(read) == ["pair.mean", "pair.scale", "x"]
    for _ in range(2):  # what is wrong stays wrong, and numpy may change
        with pytest.raises(ValueError, match="x must be finite"):
            distance(pair, bad)
        distance(pair, X)
    assert read.count("x") == 5


@checks.checked
def applied(params: PyTree, x: Float[Array, "N D"]):
    return nn.Dense(3).apply(params, x)


def test_what_flax_says_of_shapes_names_the_arguments():
    params = nn.Dense(3).init(jax.random.key(0), X)
    assert applied(params, X).shape == (2, 3)
    said = (
        r"^params or x does not fit the network: its parameter /kernel has the shape \(2, 3\), and x of shape \(2, 1\) "
        r"asks for \(1, 3\)\. Give data, such as images, of the size that the parameters were made for"
    )
    with pytest.raises(ValueError, match=said):
        applied(params, X[:, :1])
    with pytest.raises(ValueError, match=r"params or x does not fit the network: (?!.*https).*kernel"):
        applied({"params": {"bias": jnp.zeros(3)}}, X)
    for wrong in (None, "params"):
        with pytest.raises(ValueError, match="params must be a tree of arrays"):
            applied(wrong, X)
