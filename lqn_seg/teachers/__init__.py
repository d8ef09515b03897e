"""Frozen vision transformers that hand out their tokens at every layer."""
