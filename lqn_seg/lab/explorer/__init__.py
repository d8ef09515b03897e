"""The depth explorer: a page on this machine that shows a fit from inside (`lqn-seg explore`)."""
