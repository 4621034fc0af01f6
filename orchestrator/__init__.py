"""Grid, plan, store, Tune driver and command line."""
