"""What `featgan render` draws: labelled grids, animations, and the self-contained page that explains a run."""
