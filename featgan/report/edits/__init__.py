"""The edits of a report: which source images are edited toward which conditions, and the edited images."""
