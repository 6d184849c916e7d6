#!/bin/sh
# The entropy coder's tests, and those of claims and mutations, with the kernel that Python loads
# built by gcc with AddressSanitizer and UndefinedBehaviorSanitizer; then those of contexts with the
# path that machines without SSE2 take. Python takes all memory from malloc then, so that the
# sanitizer knows where each array ends.
set -eu
cd "$(dirname "$0")/../.."

python=${PYTHON:-python3}
folder=runs/sanitize
mkdir -p $folder
include=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')

# sanitized PATH TESTS: PATH is a flag of the compiler, or nothing.
sanitized() {
    path=$1
    shift
    gcc $path -g -O1 -std=c11 -fPIC -shared -fno-omit-frame-pointer -fno-sanitize-recover=all \
        -fsanitize=address,undefined -I"$include" codec/lic/codec/entropy/_rans.c \
        -o $folder/_rans.abi3.so
    # Python itself leaks at its end. Memory limits and times are those of other tests.
    LD_PRELOAD=$(gcc -print-file-name=libasan.so) \
        ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1 \
        PYTHONMALLOC=malloc LIC_KERNEL=$folder/_rans.abi3.so \
        "$python" -m pytest -p tests.hostile.sanitized_kernel -p no:cacheprovider \
        --deselect tests/codec/entropy/test_build.py \
        -k "not deadline and not allocations and not limit" "$@"
}

sanitized "" tests/codec/entropy tests/hostile/test_claims.py tests/hostile/test_mutations.py "$@"
sanitized -U__SSE2__ tests/codec/entropy/test_contexts.py \
    tests/codec/entropy/test_context_cases.py tests/codec/entropy/test_kernel_safety.py "$@"
