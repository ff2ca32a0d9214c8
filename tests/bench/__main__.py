"""All benchmarks: ``make bench``."""

from tests.bench import bench_features, bench_prompts

bench_prompts.main()
print()
bench_features.main()
