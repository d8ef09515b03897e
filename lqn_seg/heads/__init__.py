"""Frozen heads: last-layer tokens to mask and class logits."""
