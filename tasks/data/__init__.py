"""Data sets: where they lie, how they are read, and how they are split between owner, attacker and test."""
