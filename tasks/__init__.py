"""Data sets, architectures, schedules and the one training loop."""

VERSION = 1  # raise it when the same schedule may give other weights; part of every unmarked model's key
