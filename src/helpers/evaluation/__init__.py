"""Answers to held-out problems, divergence from the base, and the statistics of both.

After the runs in the flow of data, before the analysis.
"""
