"""Speed of the student and of its competitors, in ratios measured in one run."""
