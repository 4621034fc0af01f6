"""The shipped YAML grids."""
