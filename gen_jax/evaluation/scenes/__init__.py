"""A judge of captioned scenes: what an image shows, object by object, against what its caption asked for.

    judge = scenes.train()                                   # once, a minute on two cores; then from the cache
    report = scenes.score(judge, images, captions)           # uint8 [N, 48, 48, 3] and N captions
    print(scenes.table(report, scenes.ceiling(judge, captions)))
    scenes.captions(scenes.read(judge, images))              # what the images show, as captions

The judge reads the digit: a classifier that was trained on training digits. Colour, size and place are measured. The
ceiling is what it says of real scenes with the same captions, drawn with test digits: a model that is as good as data has
no more.
"""

from gen_jax.evaluation.scenes.judge import Judge, accuracy, train
from gen_jax.evaluation.scenes.reading import CELLS, Read, captions, read
from gen_jax.evaluation.scenes.scoring import Report, Scores, Share, as_dict, ceiling, score, share, table

__all__ = [
    "CELLS",
    "Judge",
    "Read",
    "Report",
    "Scores",
    "Share",
    "accuracy",
    "as_dict",
    "captions",
    "ceiling",
    "read",
    "score",
    "share",
    "table",
    "train",
]
