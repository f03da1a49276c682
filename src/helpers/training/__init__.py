"""Objectives, and the runs that minimise them.

After the table of rollouts in the flow of data, before the evaluation.
"""
