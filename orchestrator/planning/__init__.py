"""From a grid to a plan: parsing, plugins, cells and stages, estimates."""
