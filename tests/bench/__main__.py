"""All benchmarks: ``make bench``."""

from tests.bench import bench_crops, bench_features, bench_prompts

bench_prompts.main()
print()
bench_features.main()
print()
bench_crops.main()
