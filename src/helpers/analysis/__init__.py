"""What the trained updates have to do with each other, and the verdict on the paper's claims.

Gradients at step 0, edited updates and interventions, paths, replicas over seeds, predictions.
After `evaluation`, before the notebooks and `book`.
"""
