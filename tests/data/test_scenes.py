"""Captioned scenes: every pixel by another renderer, the law of what they show, the words for it, what is held out."""

import itertools
import re
import time
from collections import Counter

import jax
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gen_jax import data
from gen_jax.data.sources import scenes
from gen_jax.data.sources.scenes import Object, Scene, Scenes

KEY = jax.random.key(0)
RGB = {
    "red": (230, 40, 40),
    "green": (40, 190, 60),
    "blue": (60, 90, 240),
    "yellow": (235, 210, 40),
    "purple": (160, 60, 200),
    "white": (240, 240, 240),
}
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
PLACES = {  # rows and columns of the centres
    "above": [(12, 24), (36, 24)],
    "below": [(36, 24), (12, 24)],
    "left of": [(24, 12), (24, 36)],
    "right of": [(24, 36), (24, 12)],
    "": [(24, 24)],
}
HELD_OUT = re.compile(
    r"purple seven|green two|yellow nine|blue \w+ left of a \w+ red|red \w+ right of a \w+ blue"
)

nouns = st.tuples(st.integers(0, 9), st.sampled_from(sorted(RGB)), st.sampled_from(["small", "large"]))
any_scene = st.tuples(nouns) | st.tuples(nouns, nouns, st.sampled_from([name for name in PLACES if name]))
"""What `scene` takes; built outside, as beartype draws random numbers."""


def scene(parts):
    objects = tuple(Object(*part) for part in parts if isinstance(part, tuple))
    return Scene(objects, parts[2] if len(objects) == 2 else None)


def by_pillow(digit, colour, side):
    """A digit [28, 28] as a coloured square, one pixel at a time."""
    grey = Image.fromarray(digit).resize((side, side), Image.Resampling.LANCZOS)
    square = np.zeros((side, side, 3), np.uint8)
    for row, column in itertools.product(range(side), range(side)):
        square[row, column] = [round(grey.getpixel((column, row)) / 255 * channel) for channel in RGB[colour]]
    return square


def squares(text):
    """The objects of a caption: digit, colour, side, and rows and columns of its square."""
    nouns = re.split(" (above|below|left of|right of) ", text)
    for noun, (row, column) in zip(nouns[::2], PLACES[nouns[1] if len(nouns) > 1 else ""], strict=True):
        _, size, colour, word = noun.split()
        half = {"small": 8, "large": 12}[size]
        yield (
            WORDS.index(word),
            colour,
            2 * half,
            np.s_[row - half : row + half, column - half : column + half],
        )


@pytest.mark.parametrize(("split", "of"), [("test", "test"), ("held_out", "test"), ("train", "train")])
def test_every_pixel_is_that_of_a_digit_of_the_split(split, of):
    mnist = data.load("mnist", split=of)
    for example in Scenes(split).__getitems__(range(2 if of == "train" else 6)):
        rest = example["image"].copy()
        assert rest.shape == (48, 48, 3)
        for digit, colour, side, where in squares(example["text"]):
            # the one picture that it may be: the nearest after a resize that is not ours
            candidates = mnist["image"][mnist["label"] == digit][..., 0]
            resized = np.stack(
                [
                    np.asarray(Image.fromarray(x).resize((side, side), Image.Resampling.LANCZOS))
                    for x in candidates
                ]
            )
            grey = rest[where].max(-1) * (255 / max(RGB[colour]))
            nearest = np.abs(resized - grey).sum((1, 2)).argmin()
            np.testing.assert_array_equal(rest[where], by_pillow(candidates[nearest], colour, side))
            rest[where] = 0
        assert not rest.any()


def test_render_takes_any_scene():
    texts = ["a large white one above a large white eight", "a small purple seven"]
    for text, image in zip(texts, scenes.render([scenes.parse(text) for text in texts], seed=3), strict=True):
        for _, colour, _, where in squares(text):
            brightest = image[where].reshape(-1, 3)[image[where].max(-1).argmax()]
            np.testing.assert_allclose(
                brightest / brightest.max(), np.array(RGB[colour]) / max(RGB[colour]), atol=0.01
            )


@pytest.mark.parametrize("split", ["train", "test", "held_out"])
def test_render_of_the_scenes_of_a_source_gives_its_images(split):
    source = Scenes(split, seed=5)
    images = scenes.render(source.scenes(range(300)), split=split, seed=5)
    np.testing.assert_array_equal(images, [example["image"] for example in source.__getitems__(range(300))])


def p_value(values, categories):
    """Of the hypothesis that all categories are as frequent; any value that is none of them is an error."""
    counts = Counter(values)
    assert set(counts) <= set(categories)
    return scipy.stats.chisquare([counts[c] for c in categories]).pvalue


def test_law_of_test_scenes_is_uniform_and_independent():
    drawn = Scenes("test", 10**6, seed=1).scenes(range(10_000))
    assert p_value([len(s.objects) for s in drawn], [1, 2]) > 1e-4
    nouns = list(itertools.product(range(10), RGB, ["small", "large"]))
    of = lambda x: (x.digit, x.colour, x.size)
    assert p_value([of(s.objects[0]) for s in drawn if not s.relation], nouns) > 1e-4
    two = [s for s in drawn if s.relation]
    for j in range(2):  # digit, colour and size of an object with the relation: independent of each other
        seen = [(*of(s.objects[j]), s.relation) for s in two]
        every = list(
            itertools.product(range(10), RGB, ["small", "large"], ["above", "below", "left of", "right of"])
        )
        assert p_value(seen, every) > 1e-4
    for field, values in (("digit", range(10)), ("colour", RGB), ("size", ["small", "large"])):
        pairs = [tuple(getattr(x, field) for x in s.objects) for s in two]
        assert p_value(pairs, list(itertools.product(values, values))) > 1e-4


def test_law_of_pictures_is_uniform():
    images = scenes.render([scenes.parse("a small white five")] * 6000, seed=2)
    counts = Counter(image[16:32, 16:32].tobytes() for image in images)
    pictures = int((data.load("mnist", split="test")["label"] == 5).sum())
    assert len(counts) <= pictures
    frequencies = [*counts.values(), *[0] * (pictures - len(counts))]
    assert scipy.stats.chisquare(frequencies).pvalue > 1e-4


def test_training_scenes_have_no_held_out_combination_and_else_the_same_law():
    drawn = Scenes("train").scenes(range(10_000))
    assert not any(HELD_OUT.search(scenes.caption(s)) for s in drawn)
    assert p_value([len(s.objects) for s in drawn], [1, 2]) > 1e-4
    allowed = [
        noun
        for noun in itertools.product(range(10), RGB, ["small", "large"])
        if not HELD_OUT.search(f"{noun[1]} {WORDS[noun[0]]}")
    ]
    seen = [(x.digit, x.colour, x.size) for s in drawn if not s.relation for x in s.objects]
    assert p_value(seen, allowed) > 1e-4
    pairs = Counter((s.relation, *(x.colour for x in s.objects)) for s in drawn if s.relation)
    assert len(pairs) == 4 * 36 - 2


def test_held_out_split_has_nothing_else_and_all_of_it():
    drawn = Scenes("held_out").scenes(range(1000))
    found = [HELD_OUT.search(scenes.caption(s)) for s in drawn]
    assert all(found)
    kinds = Counter(re.sub(r"(blue|red) \w+ (\w+) of a \w+ ", r"\1 \2 ", match[0]) for match in found)
    assert set(kinds) == {"purple seven", "green two", "yellow nine", "blue left red", "red right blue"}
    share = np.mean([bool(HELD_OUT.search(scenes.caption(s))) for s in Scenes("test").scenes(range(8000))])
    # With two objects: 1 - (1 - 3/60)^2 by digit and colour, or 1/2 1/36 as a pair; never both.
    assert share == pytest.approx((0.05 + 0.0975 + 1 / 72) / 2, abs=0.012)


@given(any_scene)
def test_parse_is_the_inverse_of_caption(parts):
    text = scenes.caption(scene(parts))
    assert scenes.parse(text) == scene(parts)
    assert scenes.parse(f"  {text.upper()} ".replace(" ", "\n ")) == scene(parts)


@given(any_scene)
def test_held_out_is_what_the_caption_says(parts):
    built = scene(parts)
    text = scenes.caption(built)
    assert scenes.is_held_out(built) == bool(HELD_OUT.search(text))
    alone = [bool(HELD_OUT.search(scenes.caption(Scene((x,))))) for x in built.objects]
    pair = bool(re.search(r"blue \w+ left of a \w+ red|red \w+ right of a \w+ blue", text))
    assert scenes.held_out_objects(built) == tuple(pair or x for x in alone)


def test_captions_are_as_they_are_said_to_be():
    assert scenes.caption(Scene((Object(0, "green", "small"),))) == "a small green zero"
    two = Scene((Object(7, "red", "large"), Object(3, "blue", "small")), "above")
    assert scenes.caption(two) == "a large red seven above a small blue three"
    every = {scenes.caption(s) for s in Scenes("test").scenes(range(1000))}
    assert len({word for text in every for word in text.split()}) == 24


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it has 0 words"),
        ("a large red seven above", "it has 5 words"),
        ("a large red seven over a small blue three", "'over' is none of above, below, left of, right of"),
        ("a large red seven left a small blue three", "'left' is none of"),
        ("a big red seven", "'big' is none of small, large"),
        ("a small pink seven", "'pink' is none of red, green,"),
        ("a small red ten", "'ten' is none of zero, one,"),
        ("the small red one", "'the' is none of a"),
        ("a small red one above a small red 2", "'2' is none of zero"),
    ],
)
def test_parse_says_what_is_wrong(text, why):
    with pytest.raises(ValueError, match=f"(?s)not a caption of a scene: {why}.*a small green zero"):
        scenes.parse(text)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Object(10, "red", "small"), "digit must be one of .*, got 10"),
        (lambda: Object(1, "pink", "small"), "colour must be one of 'red', .*, got 'pink'"),
        (lambda: Object(1, "red", "huge"), "size must be one of 'small', 'large', got 'huge'"),
        (lambda: Scene((Object(1, "red", "small"),), "above"), "got 1 with the relation 'above'"),
        (lambda: Scene((Object(1, "red", "small"),) * 2), "got 2 with the relation None"),
        (lambda: Scene((Object(1, "red", "small"),) * 2, "over"), "relation must be one of 'above'"),
        (lambda: Scenes("valid"), "split must be one of 'train', 'test', 'held_out', got 'valid'"),
        (lambda: Scenes("test", 0), "num_examples must be at least 1, got 0"),
        (lambda: Scenes("test", seed=-1), "seed must be at least 0"),
        (lambda: data.source("scenes", split="validation"), 'no split "validation" in "scenes"'),
    ],
)
def test_bad_input_is_named(make, why):
    with pytest.raises(ValueError, match=why):
        make()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=6))
def test_example_depends_on_its_row_alone(rows):
    source = Scenes("train", 10**9 + 1, seed=4)
    for row, together in zip(rows, source.__getitems__(rows), strict=True):
        np.testing.assert_array_equal(source[row]["image"], together["image"])
        assert source[row]["text"] == together["text"] == scenes.caption(source.scenes([row])[0])


def test_length_changes_nothing_and_seed_and_split_do():
    texts = lambda source: [example["text"] for example in source.__getitems__(range(20))]
    assert texts(Scenes("test", 20)) == texts(Scenes("test", 10**6))
    assert len({tuple(texts(s)) for s in (Scenes("test"), Scenes("test", seed=1), Scenes("train"))}) == 3
    with pytest.raises(IndexError, match="from 0 to 19, got 3 to 20"):
        Scenes("test", 20).__getitems__([3, 20])


def test_data_knows_scenes_by_name():
    assert data.info("scenes") == data.Info("scenes", 60_000, (48, 48, 3), None, has_text=True)
    arrays = data.load("scenes", split="test[:40]")
    assert (arrays["image"].shape, arrays["image"].dtype) == ((40, 48, 48, 3), np.uint8)
    assert arrays["text"].tolist() == [Scenes("test")[i]["text"] for i in range(40)]
    mixed = data.source("scenes", split="test[5:8]+train[-2:]+test[:1]")
    expected = [Scenes("test")[i] for i in (5, 6, 7)] + [Scenes("train")[i] for i in (59_998, 59_999)]
    expected.append(Scenes("test")[0])
    loaded = data.load(mixed)
    assert len(mixed) == mixed.info().num_examples == 6
    assert loaded["text"].tolist() == [example["text"] for example in expected]
    np.testing.assert_array_equal(loaded["image"], [example["image"] for example in expected])
    np.testing.assert_array_equal(mixed[4]["image"], expected[4]["image"])
    small = data.source("scenes", split="held_out", image_size=24, channels=1)
    assert small[0]["image"].shape == (24, 24, 1)


def test_endless_scenes_stream():
    source = Scenes("train", 10**8)
    lengths = lambda batch: {"image": batch["image"], "length": np.array([len(t) for t in batch["text"]])}
    stream = data.batches(source, 4, key=KEY, transform=lengths)
    assert isinstance(stream, data.Stream)
    batch = next(stream)
    stream.close()
    assert batch["image"].shape == (4, 48, 48, 3)
    assert batch["length"].min() >= len("a small red one")


def test_thousands_of_scenes_take_less_than_a_second():
    source = Scenes("train")
    source[0]  # the digits are resized once
    seconds = []
    for _ in range(3):
        start = time.process_time()
        source.__getitems__(range(2000))
        seconds.append(time.process_time() - start)
    assert min(seconds) < 1
