"""The study of the book, in rooms by the flow of data; a module imports only what comes before it.

`profiles` (settings) and `store` (artefacts) come first, then `models` (weights, sampling,
log-probabilities), `data` (problems, grading, rollouts), `training` (objectives, runs),
`evaluation` (answers, statistics), `analysis` (replicas, gradients, verdict), `cluster` (GPUs) and
`book` (figures, pages, pipeline). What knows of adapters alone is the package `adapter_geometry`.
"""
