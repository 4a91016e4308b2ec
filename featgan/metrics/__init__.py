"""Metrics: pure functions on arrays of features, outputs and images that return estimates with 95 % intervals.

To add a metric:
1. Write a function in a module of this package that returns `dict[str, Estimate]` with the metric's full name.
2. Call it in `featgan/evaluation`, once for the generator and once for each baseline.
3. Add a `MetricSpec` with its label, description and direction to the registry, `featgan/config/metric_specs.py`.
4. Test it in `tests/metrics`, with inputs whose result is known.
"""
