#!/bin/sh
# Fuzzes the rANS kernel under AddressSanitizer and UndefinedBehaviorSanitizer for SECONDS: as a
# libFuzzer target where clang has it (Debian: apt-get install clang), else with inputs of its own.
# Inputs that found something new stay in runs/fuzz-rans, and so does one that found a fault.
set -eu
cd "$(dirname "$0")/../.."

seconds=${1:-60}
folder=runs/fuzz-rans
mkdir -p "$folder/corpus"
include=$("${PYTHON:-python3}" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
flags="-g -O1 -std=c11 -fno-omit-frame-pointer -fno-sanitize-recover=all -I$include"
source=tests/hostile/fuzz_rans.c
target=$folder/fuzz_rans

if command -v clang >/dev/null &&
    clang $flags -fsanitize=fuzzer,address,undefined $source -o $target 2>/dev/null; then
    echo "libFuzzer, $(clang --version | head -n 1)"
    exec $target -max_total_time="$seconds" -max_len=4096 -timeout=5 -rss_limit_mb=1024 \
        -print_final_stats=1 -artifact_prefix=$folder/ \
        $folder/corpus
fi
${CC:-cc} $flags -DSTANDALONE -fsanitize=address,undefined $source -o $target
echo "inputs of its own: no clang with libFuzzer here"
exec $target "$seconds"
