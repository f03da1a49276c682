"""Problems and their answers, templated and from public collections; grading; the tables of
rollouts."""
