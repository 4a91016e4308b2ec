"""What `featgan render` writes: labeled grids, animations, and a self-contained HTML page that explains a run."""
