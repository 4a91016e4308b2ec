"""The live page of a run: move a component, and see the picture and the box's answer change."""
