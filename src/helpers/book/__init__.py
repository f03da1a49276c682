"""Figures, explorers and pages, and the pipeline that makes them."""
