#!/bin/sh
# Everything that wants a GPU, in one call, some ten minutes; each part leaves its JSON as soon as it is done.
# Chunk latencies have the same network's captured ddpm, ddim10 and ddim5 in them, with a compiler ("ddim10, compiled")
# and without ("ddim10, captured"), as rivals and as bases of ratios.
#   sh benchmarks/gpu.sh [python] [output folder to copy the results to]
python=${1:-python3}
out=${2:-}
cd "$(dirname "$0")/.." || exit 1
failed=0
part() {
  "$python" "$@" || { echo "failed: $*" >&2; failed=1; }
  if [ -n "$out" ]; then mkdir -p "$out" && cp -r benchmarks/results/latency benchmarks/results/rounds \
    benchmarks/results/scaling benchmarks/results/acceptance "$out" 2>/dev/null; fi
}
"$python" -c 'import torch, sys; sys.exit(0 if torch.cuda.is_available() else "no CUDA device here")' || exit 1
"$python" -m pytest -q tests/speculative/test_compiled.py -k cuda || failed=1
part benchmarks/profile_rounds.py --channels 256 512 1024 --device cuda --calls 100
part benchmarks/profile_rounds.py square --device cuda --calls 100
part benchmarks/bench_chunk_latency.py square --device cuda --calls 50 --batches 8 64
# the network that Diffusion Policy publishes, at the acceptance of a trained one
part benchmarks/bench_chunk_latency.py square --widen 4 --device cuda --calls 30 --batches 8 --only ddpm ddim10 ddim5 \
  "free block, window 24" "linear block, window 40" "linear recycled, window 40" "linear recycled, window 99" \
  "linear block, K = 20, window 12" "linear recycled, K = 20, window 12"
part benchmarks/bench_chunk_latency.py tool_hang --device cuda --calls 50 --batches 8 64
# Transport's network is Tool Hang's, its event twice as large
part benchmarks/bench_chunk_latency.py transport --device cuda --calls 50 --batches --only ddpm ddim10 ddim5 \
  "linear block, window 40" "linear recycled, window 99" "linear recycled, K = 20, window 12"
part benchmarks/bench_scaling.py --device cuda --calls 50
exit $failed
