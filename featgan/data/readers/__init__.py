"""Readers of data set layouts: each one converts a folder of images and labels to a list of records.

How to add a data set layout
----------------------------

1. Write a reader function in a module of this package, and name it after the layout::

       def read_my_layout(source: Path, images: str = "") -> DatasetListing:

   `source` is the folder of the data set. Every further parameter is an option of the layout: the user sets it with
   `--layout-option NAME=VALUE`, so it must accept a string and have a default.
2. In the function, create a `RecordCollector(source)` (records.py). Call `add_image(path, split, labels)` for every
   image and `count_skipped(reason)` for every image that is left out. Return `build_listing(class_names)`.
   `split` is "train", "validation", "test", or "" if the layout has no splits.
3. Read text files with `TextTable` or `read_lines` (text_tables.py), and labels and paths with the functions in
   parsing.py. They raise a UserError that names the file and the line. A reader never unpickles a file.
4. Register the function in `LAYOUT_READERS` (registry.py), and add the name to `LAYOUT_NAMES` in featgan/cli/main.py,
   which does not import the readers so that `--help` starts fast.
5. Add tests to tests/data/test_readers.py: a complete data set, each option, skipped images, and one case per error.
   Add the name to `test_registered_layouts_are_the_documented_ones`. The tests that are parametrized by
   `LAYOUT_READERS` cover the new layout without changes.
6. Describe the files, columns and options of the layout in docs/data.md.
"""
