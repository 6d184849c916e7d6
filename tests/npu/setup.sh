#!/bin/sh
# Makes .npu/NAME for every toolkit named: vela, qnn, rknn. Their requirements contradict each
# other's and lic's, so each gets an environment of its own.
#
# onnxruntime-qnn and rknn-toolkit2 hold binaries under their vendors' licences; ethos-u-vela is
# Apache-2.0. About 2 GB for vela (TensorFlow), 0.5 GB for qnn, 1.5 GB for rknn.
set -eu
cd "$(dirname "$0")/../.."

python=${PYTHON:-python3}
for name in "$@"; do
    requirements=tests/npu/requirements-$name.txt
    wanted=$(cat "$requirements" tests/npu/setup.sh | cksum)
    if [ "$(cat ".npu/$name/installed" 2>/dev/null || true)" = "$wanted" ]; then
        continue
    fi
    "$python" -m venv --clear ".npu/$name"
    pip=".npu/$name/bin/python -m pip install --quiet --disable-pip-version-check"
    $pip -r "$requirements"
    if [ "$name" = rknn ]; then
        # It asks for an older torch than any that its Python needs.
        $pip --no-deps rknn-toolkit2==2.5.0
    fi
    echo "$wanted" >".npu/$name/installed"
done
