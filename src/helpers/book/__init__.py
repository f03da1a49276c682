"""Figures, explorers and pages, and the pipeline that makes them.

Last in the flow of data. `figures` and `explorers` draw what other rooms computed, `pages` lays
executed notebooks into the book, and `pipeline` tells the Snakefile what each step reads and makes.
"""
