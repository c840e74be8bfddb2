"""The space that a plan trains in: images are brought there before anything looks at them."""

from ddm_fed.errors import DataError
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import Plan


def require_space(data: Private[ImageSet], plan: Plan) -> None:
    """Refuses images that are not in the plan's space, such as pixels where it trains latents.

    Raises:
        DataError: naming both shapes.
    """
    found, wanted = data.reveal().shape, plan.data.shape
    if found != wanted:
        latent = "" if plan.data.latent is None else "latents of "
        raise DataError(
            f"the images are {' x '.join(map(str, found))}, and the plan trains {latent}"
            f"{' x '.join(map(str, wanted))}",
            hint="load them with the plan's [data], and encode them where it has [data.latent]",
        )
