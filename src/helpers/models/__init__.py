"""Models of a profile: loading, log-probabilities, sampling.

After the profiles and the store in the flow of data, before the problems and everything that is
written, scored or trained.
"""
