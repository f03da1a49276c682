"""The weights that a study's updates are added to, as far as the analysis needs them."""

from collections.abc import Iterable

from adapter_geometry import updates
from adapter_geometry.spectra import BaseWeights
from helpers.models import loading
from helpers.profiles import Profile


def norms_of_base(profile: Profile, modules: Iterable[str]) -> dict[str, float]:
    """{module: Frobenius norm of W0} of a profile's base model."""
    where = loading.source(profile, "base")
    if where == "random":
        return updates.norms_of(updates.weights_of(loading.load_model(profile), modules))
    return BaseWeights(loading.folder(where)).norms(modules)
