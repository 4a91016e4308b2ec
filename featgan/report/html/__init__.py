"""The HTML page of a report: its sentences, cards, templates and files."""
