"""Test-time methods beside LQN, each written from its paper's facts; nothing here knows LQN.

A baseline is called with `Features` and gives class probabilities (B, C). It keeps nothing from
image to image, TDA excepted.
"""
