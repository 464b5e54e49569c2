"""A run's measurements as one HTML page."""
