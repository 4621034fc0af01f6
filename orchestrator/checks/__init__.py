"""Contract checks of methods and attacks: what `assay check` runs."""
