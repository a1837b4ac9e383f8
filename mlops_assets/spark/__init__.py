"""The Spark applications."""
