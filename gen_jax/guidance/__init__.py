"""Guidance: maps from denoisers to a denoiser, which samplers take like any other.

    denoise = guidance.classifier_free(conditional, unconditional, weight=2.0)

The weight is the book's: 0 is unconditional, 1 is conditional, more goes further the same way. It may be a number, one a
sample, traced by jit, or a function of the time, and each of these is one way to write what has a name of its own:

    two estimates                          classifier_free(conditional, unconditional, w)
    the same in one call of the network    classifier_free_batched(denoise, label, null, w)
    negative condition                     classifier_free(conditional, of_the_negative, w)
    autoguidance, by a weaker model        classifier_free(denoise, weaker, w)
    several conditions at once             linear([u, a, b], [1 - w_a - w_b, w_a, w_b])
    the gradient of a classifier           classifier(denoise, log_prob, process, w)
    in an interval of times only           weight = interval(w, process, low, high)
    CFG++                                  weight = plus_plus(scale, process, times)
"""

from gen_jax.guidance.classifier import Classify, classifier, classifier_loss, log_class
from gen_jax.guidance.combine import classifier_free, classifier_free_batched, linear
from gen_jax.guidance.weights import Weight, interval, plus_plus

__all__ = [
    "Classify",
    "Weight",
    "classifier",
    "classifier_free",
    "classifier_free_batched",
    "classifier_loss",
    "interval",
    "linear",
    "log_class",
    "plus_plus",
]
