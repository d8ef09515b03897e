"""The depth explorer: a page on this machine that shows a fit from inside (`tools/explore.py`).

Python's own HTTP server and one HTML file, nothing else: no package to install, no content delivery
network, no telemetry. (Gradio has no linked zoom and hover over several masks, and its page asks
for fonts and scripts elsewhere unless it is told not to.) Nothing of a visitor stays on disk.
"""
