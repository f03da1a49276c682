"""What runs have to do with each other: paths, gradients, interventions, replicas, predictions, and the verdict on the claims."""
