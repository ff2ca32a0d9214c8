"""All benchmarks: ``make bench``."""

from tests.bench import (
    bench_commit,
    bench_coreg,
    bench_crops,
    bench_features,
    bench_overhead,
    bench_prompts,
    bench_synthesis,
    bench_tune,
)

bench_prompts.main()
print()
bench_features.main()
print()
bench_overhead.main()
print()
bench_commit.main()
print()
bench_crops.main()
print()
bench_coreg.main()
print()
bench_synthesis.main()
print()
bench_tune.main()
