#!/bin/sh
# Makes .oracle/, an environment apart from lic's own in which CompressAI can be imported.
#
# CompressAI wants numpy < 2, torchvision, torch-geometric and pandas; a plain install would replace
# a CPU build of torch and bring some fifty packages. So it is installed without its dependencies,
# and conftest.py stands in for those that its image models never use.
set -eu
cd "$(dirname "$0")/../.."

python=${PYTHON:-python3}
wanted=$(cat tests/oracle/requirements.txt tests/oracle/setup.sh | cksum)
if [ "$(cat .oracle/installed 2>/dev/null || true)" = "$wanted" ]; then
    exit 0
fi
"$python" -c 'import sys
if sys.version_info[:2] not in ((3, 11), (3, 12)):
    sys.exit("CompressAI 1.2.8 has wheels up to Python 3.12 and lic needs 3.11: "
             "set PYTHON to a 3.11 or 3.12 interpreter")'
"$python" -m venv --clear .oracle
.oracle/bin/python -m pip install --quiet -r tests/oracle/requirements.txt
.oracle/bin/python -m pip install --quiet --no-deps compressai==1.2.8
echo "$wanted" >.oracle/installed
