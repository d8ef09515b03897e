"""The native engine: configuration, evaluation with resume, and teacher training."""
