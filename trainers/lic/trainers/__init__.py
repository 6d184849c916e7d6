"""Training: one loop, several objectives."""
