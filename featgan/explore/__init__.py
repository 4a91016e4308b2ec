"""The interactive page of a run: change an image and watch the edit and the classifier's prediction change."""
