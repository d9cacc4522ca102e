#!/bin/sh
# Everything that wants a GPU, in one call, some ten minutes; each part leaves its JSON as soon as it is done.
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
part benchmarks/where_does_a_round_go.py --channels 256 512 1024 --device cuda --calls 100
part benchmarks/where_does_a_round_go.py square --device cuda --calls 100
part benchmarks/latency_of_a_chunk.py square --device cuda --calls 50 --batches 8 64
part benchmarks/latency_of_a_chunk.py tool_hang --device cuda --calls 50 --batches 8 64
part benchmarks/latency_of_a_chunk.py transport --device cuda --calls 50 --batches
part benchmarks/how_it_scales.py --device cuda --calls 50
exit $failed
