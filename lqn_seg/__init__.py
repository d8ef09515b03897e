"""Test-time training by querying layers (LQN), for segmentation and classification."""

__version__ = "0.1.0"
