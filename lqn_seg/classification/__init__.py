"""Teacher, student and texts joined into classification, beside the baselines."""
