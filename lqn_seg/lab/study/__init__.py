"""Sweeps over presets, seeds and teachers."""
