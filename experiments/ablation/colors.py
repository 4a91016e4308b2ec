"""Count color photographs and measure brightness in the training images, by label and by the classifier's prediction.

python experiments/ablation/colors.py shards/faces48 --feature-cache wh16
"""

import click
import numpy as np

MIN_CHANNEL_RANGE = 8
"""Mean range of a pixel's channels, of 255, above which an image is a color photograph."""

COLUMNS = (
    "class",
    "labeled",
    "in color, of labeled",
    "brightness, of labeled",
    "recall, color",
    "recall, gray",
    "predicted",
    "in color, of predicted",
    "brightness, of predicted",
)


@click.command()
@click.argument("shards")
@click.option("--feature-cache", default="wh16", show_default=True, help="Name of the feature cache.")
def main(shards: str, feature_cache: str) -> None:
    """Print a Markdown row for each class."""
    from featgan.data.feature_cache.cache import FeatureCache
    from featgan.data.shards.shard_set import ShardSet

    shard_set = ShardSet.open(shards)
    split = shard_set.get_split("train")
    rows = np.arange(len(split))
    images = split.decode(rows).numpy().astype(np.int16)
    is_color = np.ptp(images, 1).mean((1, 2)) > MIN_CHANNEL_RANGE
    brightness = images.mean((1, 2, 3)) / 255
    predictions = FeatureCache.open(shard_set, feature_cache).outputs("train", rows).argmax(1)
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|")
    for code, name in enumerate(shard_set.classes):
        labeled, predicted = split.expression == code, predictions == code
        recalls = [mean_of(predicted, labeled & chosen) for chosen in (is_color, ~is_color)]
        cells = [str(labeled.sum()), mean_of(is_color, labeled), mean_of(brightness, labeled), *recalls]
        cells += [str(predicted.sum()), mean_of(is_color, predicted), mean_of(brightness, predicted)]
        print(f"| {name} | " + " | ".join(cells) + " |")


def mean_of(values: np.ndarray, chosen: np.ndarray) -> str:
    """Format the mean of the chosen values; empty if there are none."""
    return f"{values[chosen].mean():.2f}" if chosen.any() else ""


if __name__ == "__main__":
    main()
