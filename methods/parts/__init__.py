"""What several methods share: statistics of verification, keys from signatures, triggers, mixing, calibration."""
