"""How many of the training pictures are in colour, and how light they are, by their label and by the box's answer.

python docs/ablation/colours.py shards/faces48 --features wh16
"""

import click
import numpy as np

COLOUR = 8
"""Mean distance of a pixel's largest and smallest channel, of 255, from which a photograph counts as in colour."""


@click.command()
@click.argument("shards")
@click.option("--features", default="wh16", show_default=True)
def main(shards: str, features: str) -> None:
    """A Markdown row for each class."""
    from featgan.data.feature_cache.cache import FeatureCache
    from featgan.data.shards.shard_set import ShardSet

    opened = ShardSet.open(shards)
    split, rows = opened.split("train"), np.arange(len(opened.split("train")))
    images = split.decode(rows).numpy().astype(np.int16)
    is_colour = np.ptp(images, 1).mean((1, 2)) > COLOUR
    light = images.mean((1, 2, 3)) / 255
    answers = FeatureCache.open(opened, features).outputs("train", rows).argmax(1)
    titles = ("class", "labelled", "in colour", "light", "told, colour", "told, grey", "answered", "in colour", "light")
    print("| " + " | ".join(titles) + " |")
    print("|---" * len(titles) + "|")
    for code, name in enumerate(opened.classes):
        labelled, answered = split.expression == code, answers == code
        told = [share(answered, labelled & one) for one in (is_colour, ~is_colour)]
        cells = [str(labelled.sum()), share(is_colour, labelled), share(light, labelled), *told]
        cells += [str(answered.sum()), share(is_colour, answered), share(light, answered)]
        print(f"| {name} | " + " | ".join(cells) + " |")


def share(values: np.ndarray, chosen: np.ndarray) -> str:
    """The mean of the chosen ones."""
    return f"{values[chosen].mean():.2f}".removeprefix("0") if chosen.any() else ""


if __name__ == "__main__":
    main()
