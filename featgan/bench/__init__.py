"""Benchmarks of the optimized code on this machine, against reference implementations and upper bounds.

Each `featgan bench` command calls `run_benchmark` of its module, which returns `results.BenchmarkResults`: rows with
goals, tables and notes. Variants are timed in turn (A B A B) by `timing.time_interleaved`, in this process or in one
process each (`timing.SubprocessWorker`); `timing.run_in_new_process` measures the time and peak memory of one call.
"""
