"""Jobs for a cluster: submit, watch and look after training, evaluation and rendering."""
