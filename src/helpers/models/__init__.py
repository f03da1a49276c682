"""Models of a profile: loading, log-probabilities, sampling."""
