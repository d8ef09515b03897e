"""The depth explorer: a page on this machine that shows a fit from inside (`tools/explore.py`)."""
