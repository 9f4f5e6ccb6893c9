"""Image preprocessing: the same, and deterministic, for every split. No augmentation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from compress.data.options import IMAGE_OPTIONS, DataOptions
from compress.errors import DataError

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL's convert("L")


@dataclass(frozen=True)
class ImagePreprocessing:
    """Scale to 0..1 (8-bit images), resize, change the channels, normalise: in this order."""

    size: int | None = None  # pixels
    channels: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @classmethod
    def of(cls, options: DataOptions) -> ImagePreprocessing:
        return cls(options.size, options.channels, options.mean, options.std)

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), uint8 0..255 or float, to float32 (N, channels, size, size)."""
        images = scaled(images)
        if self.size is not None and images.shape[2:] != (self.size, self.size):
            shape = (self.size, self.size)
            images = functional.interpolate(images, shape, mode="bilinear", align_corners=False, antialias=True)
        images = self._with_channels(images)
        if self.mean:
            images = (images - self._column(self.mean, images)) / self._column(self.std, images)
        return images

    def _with_channels(self, images: Tensor) -> Tensor:
        found = images.shape[1]
        if self.channels in (None, found):
            return images
        if (found, self.channels) == (1, 3):
            return images.repeat(1, 3, 1, 1)
        if (found, self.channels) == (3, 1):
            return (images * images.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
        shape = tuple(images.shape[1:])
        hint = " The last axis looks like the channels: save x.transpose(0, 3, 1, 2)." if shape[-1] in (1, 3) else ""
        raise DataError(
            f"samples of shape {shape} cannot become images of {self.channels} channels. Channels are the axis after "
            f"the batch; 1 can become 3 and 3 can become 1.{hint}"
        )

    def _column(self, values: tuple[float, ...], images: Tensor) -> Tensor:
        if len(values) not in (1, images.shape[1]):
            raise DataError(
                f"mean and std have {len(values)} values for {images.shape[1]} channels; give 1 or as many."
            )
        return images.new_tensor(values).view(1, -1, 1, 1)


def scaled(values: Tensor) -> Tensor:
    """8-bit values 0..255 as float32 0..1; anything else as it is."""
    return values.to(torch.float32) / 255 if values.dtype == torch.uint8 else values


def refuse_image_options(options: DataOptions, found: str) -> None:
    """Refuse image options for samples that are no images."""
    given = options.given(IMAGE_OPTIONS)
    if given:
        raise DataError(f"{found}, which is no image: {', '.join(given)} cannot be applied. Leave it out.")
