"""What a network is told besides `x_t` and `t`: nothing, labels, or a text.

A condition is a part of `gen_jax.model.Model`. It says what the network gets, what "nothing" is, how a part of the
examples loses its condition in training, and how conditions of samples are chosen.

    Nothing                  net(params, x_t, t)
    Labels(num_classes)      net(params, x_t, t, label), label `num_classes` standing for "no label"
    Text(tokenizer, encoder) net(params, x_t, t, None, context), the context of the empty text standing for "no text"
"""

from gen_jax.conditioning.labels import Labels, check_labels, drop
from gen_jax.conditioning.nothing import Nothing
from gen_jax.conditioning.protocol import Condition, Index, Label, Prompt
from gen_jax.conditioning.text import Text

__all__ = ["Condition", "Index", "Label", "Labels", "Nothing", "Prompt", "Text", "check_labels", "drop"]
