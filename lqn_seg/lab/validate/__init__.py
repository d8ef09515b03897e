"""Checks of a data set against reference implementations."""
