#!/bin/sh
# Fuzzes the rANS kernel under AddressSanitizer and UndefinedBehaviorSanitizer for SECONDS, half of
# them with SSE2 where there is such a thing, half with the path that other machines take: as a
# libFuzzer target where clang has it (Debian: apt-get install clang), else with inputs of its own.
# Inputs that found something new stay in runs/fuzz-rans, and so does one that found a fault.
set -eu
cd "$(dirname "$0")/../.."

seconds=$((${1:-60} / 2))
folder=runs/fuzz-rans
mkdir -p "$folder/corpus"
flags="-g -O1 -std=c11 -fno-omit-frame-pointer -fno-sanitize-recover=all -Itests/hostile/kernel"
source=tests/hostile/fuzz_rans.c
target=$folder/fuzz_rans

for path in "" "-U__SSE2__"; do
    if command -v clang >/dev/null &&
        clang $flags $path -fsanitize=fuzzer,address,undefined $source -o $target 2>/dev/null; then
        echo "libFuzzer, $(clang --version | head -n 1) $path"
        $target -max_total_time="$seconds" -len_control=0 -max_len=4096 -timeout=5 -rss_limit_mb=1024 \
            -print_final_stats=1 -artifact_prefix=$folder/ \
            $folder/corpus
    else
        ${CC:-cc} $flags $path -DSTANDALONE -fsanitize=address,undefined $source -o $target
        echo "inputs of its own: no clang with libFuzzer here"
        $target "$seconds"
    fi
done
