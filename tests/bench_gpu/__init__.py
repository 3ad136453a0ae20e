"""What one CUDA device makes of the library: rates, shares of its own peak, memory, bits; nothing here is a test.

    make bench-gpu        # or: python -m tests.bench_gpu [--minutes 8] [--target bench_gpu] [row ...]

It needs neither network nor data, and of the packages neither DVC nor MLflow: models have random weights, photographs
are drawn at COCO's size. It ends by itself before its minutes are over; after each row `bench_gpu.json` and
`bench_gpu.md` are whole, an error is the row's, and the next one goes on. `--toy` runs all rows on a CPU, tiny.
"""
