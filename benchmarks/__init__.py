"""Measurements of the package; scripts, run from the root of a checkout."""
