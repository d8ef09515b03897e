"""The depth explorer: a page on this machine that shows a fit from inside (`tools/explore.py`).

Python's own HTTP server and one HTML file: no package to install, no content delivery network, no
telemetry. Nothing of a visitor stays on disk.
"""
