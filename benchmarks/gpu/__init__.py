"""The CUDA backend on a GPU: what has to be shown on hardware, in five parts of less than eight minutes.

    python -m benchmarks.gpu --part build|test|sanitize|bench|peers --out DIR [--quick] [--minutes M]

build      compiles for all targets: warnings, registers, spills, symbols; the GPU can be opened
test       the CUDA tests on the GPU; E1's gap on whole models; two training runs, bit for bit
sanitize   compute-sanitizer's memcheck and racecheck over the op tests
bench      every figure of speed beside its bar, as a share of ceilings measured in the same run
peers      the same work in transformers with PyTorch, eager and compiled

Each writes DIR/PART.json, anew after every row: who is cut off has what was found. A piece that fails is
recorded with its error and the next one goes on. The exit code is 0 if no piece failed and 1 otherwise; a bar
that is missed is a figure, no failure. Times are the host's: a call is repeated until it takes long
enough, behind a warm-up, and a download at the end waits for the GPU. docs/cuda.md says how to run it.
"""
