"""The depth explorer: a page on this machine that shows a fit from inside (`tools/explore.py`).

Python's own HTTP server and one HTML file, nothing else: no package to install, no content delivery
network, no telemetry. Names under the pointer and a zoom that several pictures share need scripts
of one's own in any case: Gradio's images report clicks, not movements (gradio-app/gradio#4507).
Nothing of a visitor stays on disk.
"""
