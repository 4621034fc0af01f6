"""One stage at work: what it has at hand, what it measures, what it records."""
