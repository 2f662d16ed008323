"""Trained models from disk: `m, weights = pretrained.load("checkpoints/step10_conditional")`."""

from gen_jax.pretrained.runs import Run, load, load_run

__all__ = ["Run", "load", "load_run"]
