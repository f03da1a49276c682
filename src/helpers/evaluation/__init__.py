"""Answers to held-out problems, divergence from the base, and the statistics of both."""
