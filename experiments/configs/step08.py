"""The presets of step 8 by name; the first is the default."""

from configs import step08_best, step08_book

PRESETS = {module.CONFIG.preset: module.CONFIG for module in (step08_book, step08_best)}
