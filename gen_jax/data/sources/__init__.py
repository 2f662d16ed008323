"""Where data sets come from, one module for each kind.

A module has one function `find(request) -> Source | None`, which gives None for what is not its own. To add a kind, write
such a module and name it in `FINDERS`. A source without a name needs neither: any object with the methods of
`data.Source` can be given to `data.batches`.
"""

from gen_jax.data.sources import embedded, files, folder, scenes, tfds

__all__ = ["FINDERS", "scenes"]

FINDERS = (embedded.find, scenes.find, files.find, folder.find, tfds.find)
"""Tried in this order. The last one takes every name that is left."""
