#!/bin/sh
# Fuzzes container and entropy decoder with Atheris for SECONDS. Atheris gets an environment of its
# own, .fuzz, with lic's run time beside it. Inputs that found something new stay in
# runs/fuzz-container, and so does one that found a fault.
set -eu
cd "$(dirname "$0")/../.."

seconds=${1:-60}
folder=runs/fuzz-container
requirements=tests/hostile/requirements-fuzz.txt
kernel=codec/lic/codec/entropy
wanted=$(cat $requirements pyproject.toml hatch_build.py $kernel/_rans.c $kernel/_contexts.h | cksum)
if [ "$(cat .fuzz/installed 2>/dev/null || true)" != "$wanted" ]; then
    "${PYTHON:-python3}" -m venv --clear .fuzz
    .fuzz/bin/python -m pip install --quiet --disable-pip-version-check -r $requirements -e .
    echo "$wanted" >.fuzz/installed
fi
# The seeds anew, as the code has it now; what was found before is tried again with them.
rm -rf $folder/kinds
mkdir -p $folder/corpus
.fuzz/bin/python -m tests.hostile.kinds $folder/kinds
exec .fuzz/bin/python -m tests.hostile.fuzz_container $folder/kinds \
    -max_total_time="$seconds" -max_len=20000 -timeout=10 -rss_limit_mb=2048 \
    -artifact_prefix=$folder/ -print_final_stats=1 $folder/corpus $folder/kinds/files
