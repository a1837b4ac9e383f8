"""The lake: landing files, and hive-style Parquet partitions that are replaced whole or not at all."""
