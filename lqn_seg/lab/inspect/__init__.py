"""Figures of one image."""
