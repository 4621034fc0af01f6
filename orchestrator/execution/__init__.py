"""From a plan to committed stages: executors, scheduling, the sweep and its rows."""
