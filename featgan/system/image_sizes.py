"""Image sizes that the networks can handle."""

GENERATOR_STRIDE = 4
"""The generator downsamples twice, each time by 2."""


def explain_generator_size(image_size: int) -> str:
    """Return why the generator cannot handle images of this size, with sizes that work, or ""."""
    if image_size % GENERATOR_STRIDE == 0:
        return ""
    smaller = image_size // GENERATOR_STRIDE * GENERATOR_STRIDE
    sizes = " or ".join(str(size) for size in (smaller, smaller + GENERATOR_STRIDE) if size >= 2 * GENERATOR_STRIDE)
    return (
        f"image size {image_size}: the generator downsamples twice, so it must be a multiple of {GENERATOR_STRIDE}; "
        f"pack the images with --image-size {sizes}"
    )


def explain_discriminator_size(image_size: int, num_layers: int) -> str:
    """Return why a discriminator with `num_layers` layers cannot handle images of this size, with what works, or ""."""
    if image_size >= 2**num_layers:
        return ""
    return (
        f"image size {image_size}: {num_layers} downsampling layers need at least {2**num_layers} pixels; "
        f"use larger images or discriminator.num_layers up to {image_size.bit_length() - 1}"
    )
