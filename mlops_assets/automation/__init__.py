"""The schedule, the sensors and the operators' jobs."""
