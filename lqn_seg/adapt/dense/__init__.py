"""Other people's test-time methods for dense prediction, each in a file of its own."""
