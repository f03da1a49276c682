"""What checks annotations while tests run (pyproject.toml names it): beartype, for which, as for
mypy, an int is good where a float is asked for."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
