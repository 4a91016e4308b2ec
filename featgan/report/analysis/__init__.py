"""What the edited images show: the classifier's predictions, visible changes, and the ranking of components."""
