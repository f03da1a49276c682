"""The models that a study's updates are added to, as the analysis needs them.

After `models`, before `connectivity` and `interventions`, which put updates into them; the
notebooks on norms set the updates' norms against those of W0. Only reads.
"""

from collections.abc import Iterable

from adapter_geometry import updates
from adapter_geometry.base_weights import BaseWeights
from adapter_geometry.language_models import CausalModel
from helpers.models import loading
from helpers.profiles import Profile


def float32_model(profile: Profile, name: str) -> CausalModel:
    """The model `name` of a profile in float32: bfloat16 would round a short update away."""
    model: CausalModel = loading.load_model(profile, name)
    return model.float()


def norms_of_base(profile: Profile, modules: Iterable[str]) -> dict[str, float]:
    """{module: Frobenius norm of W0} of a profile's base model."""
    source = loading.source_of(profile, "base")
    if source == "random":
        return updates.norms_of(updates.weights_of(loading.load_model(profile), modules))
    return BaseWeights(loading.local_folder(source)).norms(modules)
