"""What runs in the pod: clicks from Kafka in, P(install) out, exactly once. Only what the image holds is imported."""
