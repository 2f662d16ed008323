"""Presets: one file a run, each a value of the `Config` of its experiment."""
