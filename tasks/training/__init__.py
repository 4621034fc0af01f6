"""One training loop, its schedules, precision, checkpoints and meters."""
