"""A verified ensemble, or a student, as a diffusers pipeline.

This file travels with the folder. It needs `ddm-fed` installed, which has the networks, the router,
the sampler and the verification; none of them is copied here.

    pipe = DiffusionPipeline.from_pretrained(
        FOLDER, custom_pipeline=f"{FOLDER}/pipeline.py", trust_remote_code=True, root="sha256:..."
    )
    pipe(16, generator=torch.Generator().manual_seed(0)).images

`root` is the fingerprint of the federation, which a person told you.
"""

import warnings
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from PIL import Image

from ddm_fed.export.component import SignedEnsemble
from ddm_fed.flows import Solver


class DdmFedPipeline(DiffusionPipeline):
    """Samples an ensemble that verifies. The same seed gives the images of `ddm-coord sample`.

    Args:
        ensemble: The signed folder.
        root: The fingerprint of the federation. Without it nothing says whose folder it is.
        autoencoder: Folder of the plan's autoencoder, where the plan has latents.
        text_encoder: File of the plan's text encoder, where the plan has captions.
        embedder_weights: File of the embedder of the plan's centroids, if strategies ask them.
    """

    def __init__(
        self,
        ensemble: SignedEnsemble,
        root: str | None = None,
        autoencoder: str | None = None,
        text_encoder: str | None = None,
        embedder_weights: str | None = None,
    ) -> None:
        super().__init__()
        if root is None:
            warnings.warn(
                "no root is given: the folder is whole, but nothing says whose it is; give the "
                "fingerprint that a person told you, root='sha256:...'",
                stacklevel=2,
            )
        ensemble.open(
            root,
            autoencoder=autoencoder,
            text_encoder=text_encoder,
            embedder_weights=embedder_weights,
        )
        self.register_modules(ensemble=ensemble)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        *,
        generator: torch.Generator | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        class_label: str | None = None,
        prompt: str | list[str] | None = None,
        strategy: str | None = None,
        solver: Solver = "heun",
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Returns images.

        Args:
            batch_size: Number of images.
            generator: Its initial seed is the seed; without one it is 0.
            num_inference_steps: Steps of the solver.
            guidance_scale: Strength of the class or prompt; 1 is as trained.
            class_label: Name of the only class to make; by default every class, as often as the
                sites have it.
            prompt: What images are to show, under a plan with captions; they take them in turn.
            strategy: Which experts are asked; by default sticky.
            solver: Which solver.
            output_type: `pil`; `np`, `(N, H, W, C)` in [0, 1]; or `pt`, `(N, C, H, W)` in [0, 1].
            return_dict: Whether the images come in an `ImagePipelineOutput`, or a tuple.
        """
        signed: SignedEnsemble = self.ensemble
        drawn = signed.ensemble.sample(
            batch_size,
            seed=0 if generator is None else generator.initial_seed(),
            steps=num_inference_steps,
            guidance=guidance_scale,
            label=class_label,
            prompts=prompt or (),
            strategy=strategy,
            solver=solver,
        ).images
        if drawn is None:
            raise ValueError("the samples are latents: give from_pretrained an autoencoder")
        images: Any
        if output_type == "pil":
            images = [
                Image.fromarray(each[:, :, 0] if each.shape[2] == 1 else each) for each in drawn
            ]
        elif output_type == "np":
            images = drawn.astype(np.float32) / 255
        elif output_type == "pt":
            images = torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 255
        else:
            raise ValueError(f"output_type {output_type!r} is to be pil, np or pt")
        return ImagePipelineOutput(images=images) if return_dict else (images,)
