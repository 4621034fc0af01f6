"""Abstract methods that several schemes share."""
