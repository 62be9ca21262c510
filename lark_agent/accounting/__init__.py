"""From kernel counters to durable usage records."""
