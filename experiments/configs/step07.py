"""The presets of step 7 by name; the first is the default."""

from configs import step07_best, step07_book, step07_iwae

PRESETS = {module.CONFIG.preset: module.CONFIG for module in (step07_book, step07_best, step07_iwae)}
