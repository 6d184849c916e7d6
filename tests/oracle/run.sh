#!/bin/sh
# Sets up the oracle's environment where need be and runs its tests; arguments go to pytest.
set -eu
cd "$(dirname "$0")/../.."

sh tests/oracle/setup.sh
# Warnings of CompressAI and of what it imports are not lic's to fix.
LIC_ORACLE=1 PYTHONPATH="$PWD/codec" exec .oracle/bin/python -m pytest tests/oracle \
    -W "ignore::DeprecationWarning" -W "ignore::FutureWarning" "$@"
