"""Schema, Parquet, MLflow mirror and tables; reads and writes results only."""
