"""Limits for files that featgan reads; each is checked before memory is allocated for the content."""

MAX_JSON_BYTES = 16 << 20
"""Size of a JSON file in bytes. The largest are manifests that list 100,000 skipped images."""

MAX_JSON_VALUES = 500_000
"""Values and keys in a JSON file. Each needs about 100 bytes of memory, however short it is in the file."""

MAX_LABEL_BYTES = 1 << 20
"""Size of the labels of one image in bytes."""

MAX_YAML_BYTES = 1 << 20
"""Size of a YAML file in bytes; a complete configuration has 5,000."""

MAX_YAML_VALUES = 50_000
"""Values and keys in a YAML file after every alias is replaced by its value."""

MAX_DEPTH = 64
"""Nested lists and mappings in a JSON or YAML file; files of featgan have at most 8. Parsers recurse into them."""

MAX_NUMBER_DIGITS = 100
"""Digits of a number in a JSON or YAML file. Exact decimal forms of usual floats have 60; Python rejects 4,300."""

MAX_LOG_BYTES = 256 << 20
"""Size of a file with one JSON object per line, such as metrics.jsonl, in bytes: about a million entries."""

MAX_LINE_BYTES = 1 << 20
"""Size of one line of such a file in bytes; an entry of metrics.jsonl has 2,000."""

MAX_TABLE_BYTES = 2 << 30
"""Size of a text table in bytes; it is read row by row. The labels of ten million images have 1 GB."""

MAX_TABLE_LINES = 20_000_000
"""Lines of a text table, each of which can become the record of an image; ImageNet-21k has 14 million images."""

MAX_SHARDS = 30_000
"""Shards of a data set: 30 million images by default. Manifests list 9 values for each, and feature caches 12."""

MAX_CLASSES = 32_767
"""Classes of a data set; the index of the shards has 16 bits for a class."""

MAX_ZIP_DIRECTORY_BYTES = 16 << 20
"""Size of the list of members of a zip archive in bytes, for about 150,000 members."""

MAX_ARRAY_HEADER_BYTES = 10_000
"""Size of the header of a NumPy array in bytes; NumPy uses the same limit."""

MAX_IMAGE_BYTES = 256 << 20
"""Size of an image file in bytes: an uncompressed image of 80 million pixels."""

MAX_IMAGE_PIXELS = 100_000_000
"""Width times height of an image. Decoding needs 4 bytes per pixel, and an image file of 1 MB can contain them all."""

MAX_PROGRESSIVE_PIXELS = 33_000_000
"""Width times height of a progressive JPEG, whose coefficients need 6 more bytes per pixel before the first error."""

MAX_IMAGE_SIDE = 65_535
"""Width or height of an image in pixels, which is JPEG's own limit. Other formats allow images of 8 x 12,000,000."""

MAX_TENSOR_HEADER_BYTES = 8 << 20
"""Size of the header of a safetensors file in bytes: about 80,000 tensors, each of which needs a kilobyte of memory."""

MAX_PICKLE_BYTES = 8 << 20
"""Size of the list of tensors in a .pth file in bytes, which is read in Python: about 50,000 tensors."""

MAX_PICKLE_INSTRUCTIONS = 1_500_000
"""Instructions in the list of tensors; a tensor needs 36. Each takes a microsecond and up to 64 bytes."""

MAX_PICKLE_CALLS = 150_000
"""Tensors, views and other objects that the list creates; a tensor needs 3. Each takes up to 700 bytes."""

MAX_SCALAR_BYTES = 4096
"""Size of a NumPy scalar in a .pth file in bytes."""

MAX_IMAGE_SIZE = 1024
"""Width and height of packed images and of the input of a network in pixels."""

MAX_PARAMETERS = 1_000_000_000
"""Parameters of a network: 4 GB in float32. The largest preset has 180 million."""

MAX_CONDITION_DIM = 65_536
"""Values of the condition, with the mask of two data sets."""

MAX_FEATURES = 16_384
"""Features or outputs of a classifier. Principal components need a matrix of this width and height."""

MAX_COUNT = 1_000_000_000
"""Steps, images and other numbers in a configuration; they are multiplied with each other in 64-bit integers."""

MIN_IMAGE_BYTES = 2048
"""Size of an image in a shard in bytes: two headers, one block of JPEG data and one block of labels."""

MIN_FOREIGN_IMAGE_BYTES = 1024
"""Size of an image in a tar of another program in bytes: a header and a block of data."""

MAX_JPEG_BYTES_PER_PIXEL = 6
"""Size of a packed JPEG in bytes per pixel, twice that of the uncompressed image, without the headers."""

MAX_JPEG_HEADER_BYTES = 1 << 20
"""Size of the headers of a packed JPEG in bytes."""

MAX_KEY_BYTES = 4096
"""Length of the key of an image in bytes."""

MAX_BATCH_PIXELS = 1 << 24
"""Pixels of the images that a classifier runs at a time: 64 images of 512 x 512 pixels."""
