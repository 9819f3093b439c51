"""The photometric augmentations in PyTorch, on the device and for a batch at a time.

As in byol_jax/augment/image.py, except for the order of the jitter operations, which is random
there: here it is fixed, which is cheapest and suits torch.compile.
"""

import torch

from byol_jax.augment import image as image_augment


def gray(x: torch.Tensor) -> torch.Tensor:
    """Luma in one channel."""
    red, green, blue = image_augment.LUMA
    return red * x[:, :1] + green * x[:, 1:2] + blue * x[:, 2:]


def contrast(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Scales about the mean of each channel."""
    mean = x.mean((2, 3), keepdim=True)
    return mean + factor * (x - mean)


def saturation(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Scales the saturation of HSV."""
    value, least = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    chroma = value - least
    wanted = torch.minimum(chroma * factor, value)
    return value - (value - x) * wanted / chroma.clamp_min(1e-12)


def hue(x: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Rotates the hue of HSV."""
    red, green, blue = x.unbind(1)
    value = x.amax(1)
    chroma = value - x.amin(1)
    scale = 1 / (6 * chroma).clamp_min(1e-12)
    angle = torch.where(
        red == value,
        (green - blue) * scale,
        torch.where(green == value, (blue - red) * scale + 2 / 6, (red - green) * scale + 4 / 6),
    )
    offsets = torch.tensor([5 / 6, 3 / 6, 1 / 6], device=x.device)[:, None, None]
    sixths = 6 * torch.remainder(angle[:, None] + delta + offsets, 1.0)
    return value[:, None] - chroma[:, None] * torch.minimum(sixths, 4 - sixths).clamp(0, 1)


def blur(x: torch.Tensor, sigma: torch.Tensor, divider: float) -> torch.Tensor:
    """Gaussian blur as two matrix products, with a sigma for each image."""
    size = x.shape[-1]
    radius = int(size / divider / 2)
    pixels = torch.arange(size, device=x.device)
    offset = pixels[:, None] - pixels[None, :]
    weight = torch.exp(-(offset**2) / (2 * sigma[:, None, None] ** 2)) * (offset.abs() <= radius)
    taps = torch.arange(-radius, radius + 1, device=x.device)
    weight = weight / torch.exp(-(taps**2) / (2 * sigma[:, None] ** 2)).sum(1)[:, None, None]
    return torch.einsum("bxi,bcyi->bcyx", weight, torch.einsum("byi,bciw->bcyw", weight, x))


def jitter(x: torch.Tensor, amounts: torch.Tensor, view: image_augment.View) -> torch.Tensor:
    """Brightness, contrast, saturation and hue, clipped to 0..1 after each.

    Args:
      x: float32 (batch, 3, height, width).
      amounts: float32 (4, batch) in 0..1: position of each strength in its range.
      view: the ranges.
    """
    drawn = (2 * amounts - 1)[..., None, None, None]
    x = (x + view.brightness * drawn[0]).clamp(0, 1)
    x = contrast(x, 1 + view.contrast * drawn[1]).clamp(0, 1)
    x = saturation(x, 1 + view.saturation * drawn[2]).clamp(0, 1)
    return hue(x, view.hue * drawn[3]).clamp(0, 1)


def augment(
    view: image_augment.View, images: torch.Tensor, policy: image_augment.Policy
) -> torch.Tensor:
    """One view of a batch, normalised.

    Args:
      view: probabilities and strengths.
      images: uint8 (batch, height, width, 3).
      policy: mean and standard deviation.

    Returns:
      float32 (batch, 3, height, width), channels last in memory.
    """
    x = images.permute(0, 3, 1, 2).float() / 255
    u = torch.rand((9, len(x)), device=x.device)

    def where(draw: torch.Tensor, prob: float, changed: torch.Tensor) -> torch.Tensor:
        return torch.where((draw < prob)[:, None, None, None], changed, x)

    if view.jitter_prob > 0:
        x = where(u[4], view.jitter_prob, jitter(x, u[:4], view))
    if view.gray_prob > 0:
        x = where(u[5], view.gray_prob, gray(x).expand_as(x))
    if view.blur_prob > 0:
        low, high = view.blur_sigma_min, view.blur_sigma_max
        x = where(u[6], view.blur_prob, blur(x, low + (high - low) * u[7], view.blur_divider))
    if view.solarize_prob > 0:
        x = where(u[8], view.solarize_prob, torch.where(x < view.solarize_threshold, x, 1 - x))
    mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (policy.mean, policy.std))
    x = (x.clamp(0, 1) - mean) / std
    return x.contiguous(memory_format=torch.channels_last)
