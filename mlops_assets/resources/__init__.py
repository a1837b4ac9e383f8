"""The outside world: a module per system, its embedded and its real form side by side; `environment` chooses."""
