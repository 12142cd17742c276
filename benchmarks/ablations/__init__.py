"""Ablations on the default task: a finished pipeline run again with one thing changed.

    python -m benchmarks.ablations RUN [--out DIR] [--only ARM ...]

reference.py reads the run, learning.py trains, arms.py says what is changed, figures.py what is
measured, tables.py makes docs/experiments.md's part of it (python -m benchmarks.experiments
--ablations DIR). An arm leaves one file, DIR/seedN/ARM.json; one that has it is not run again.
"""
