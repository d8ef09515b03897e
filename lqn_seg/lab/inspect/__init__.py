"""Figures of one image and diagnoses of a fit."""
