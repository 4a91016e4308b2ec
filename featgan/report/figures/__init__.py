"""Image grids, animations and charts of a report."""
