"""Data sets, architectures, schedules and the one training loop."""
