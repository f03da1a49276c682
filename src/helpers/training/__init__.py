"""Objectives, and the runs that minimise them."""
