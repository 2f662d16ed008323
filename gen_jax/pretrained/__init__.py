"""Trained models from disk: `m, weights = pretrained.load("checkpoints/step10_conditional")`."""

from gen_jax.pretrained.runs import AUTOENCODER, Run, load, load_autoencoder, load_run

__all__ = ["AUTOENCODER", "Run", "load", "load_autoencoder", "load_run"]
