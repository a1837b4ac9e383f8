"""The assets: each reads, calls the domain, and returns what it did."""
