"""What looks at the rest: reports, studies, benchmarks, costs, figures, checks."""
