"""Pictures as arrays and files: one palette, overlays, difference maps, panels, plots.

Nothing runs a model, opens a window or depends on the time: the same input gives the same pixels.
"""
