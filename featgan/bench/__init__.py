"""What the fast paths are worth on this machine: plain and fast in turn, against a ceiling, as a table and as JSON.

`featgan bench NAME` imports `featgan.bench.NAME` when it runs and calls its `run(..., repeats=N) -> Bench`, with the
sub-command's own options as further keywords. A bench measures with `timing.in_turn` (seconds, A B A B), in this
process or by `timing.Elsewhere` with each side in one of its own, or with `timing.in_new_process` (seconds and peak
memory of one call), and returns a `results.Bench`: rows of `Costs` (smaller is better) with goals, tables of where the
time goes, remarks. Printing, Markdown rows for docs/performance.md, JSON, and the description of the machine are the
command's.
"""
