"""What a network is told besides `x_t` and `t`: nothing, labels, or a text.

A condition is a part of `gen_jax.model.Model`. It says what the network gets, what "nothing" is, how a part of the
examples loses its condition in training, and how conditions of samples are chosen.

    Nothing                  net(params, x_t, t)
    Labels(num_classes)      net(params, x_t, t, label), label `num_classes` standing for "no label"
    Text(readers)            net(params, x_t, t, vector, context), those of the empty text standing for "no text"
"""

from gen_jax.conditioning.labels import Labels, check_labels, drop
from gen_jax.conditioning.nothing import Nothing
from gen_jax.conditioning.protocol import Condition, Index, Label, Prompt
from gen_jax.conditioning.text import Asked, Reader, Text

__all__ = [
    "Asked",
    "Condition",
    "Index",
    "Label",
    "Labels",
    "Nothing",
    "Prompt",
    "Reader",
    "Text",
    "check_labels",
    "drop",
]
