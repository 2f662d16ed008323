"""Guidance: functions from denoisers to a denoiser, for use with any sampler.

    denoise = guidance.classifier_free(conditional, unconditional, weight=2.0)

The weight is the book's: 0 is unconditional, 1 is conditional, larger values extrapolate. It is a number, one number per
sample, or a function of the time, and may be traced. The methods of the literature:

    two evaluations                        classifier_free(conditional, unconditional, w)
    both in one call of the network        classifier_free_batched(denoise, label, null, w)
    negative prompt                        classifier_free(conditional, negative, w)
    autoguidance by a weaker model         classifier_free(denoise, weaker, w)
    composition of conditions              linear([u, a, b], [1 - w_a - w_b, w_a, w_b])
    classifier guidance                    classifier(denoise, log_prob, process, w)
    limited interval                       weight = interval(w, process, low, high)
    CFG++                                  weight = cfg_plus_plus(scale, process, times)
"""

from gen_jax.guidance.classifier import Classify, classifier, classifier_loss, log_class
from gen_jax.guidance.combine import classifier_free, classifier_free_batched, linear
from gen_jax.guidance.weights import Weight, cfg_plus_plus, interval

__all__ = [
    "Classify",
    "Weight",
    "cfg_plus_plus",
    "classifier",
    "classifier_free",
    "classifier_free_batched",
    "classifier_loss",
    "interval",
    "linear",
    "log_class",
]
