#!/usr/bin/env bash
# Fetches packages that ship chat templates, and asks Jinja2 what it makes of them, for the test
# `judged` of interlock-text: target/templates/judged.json. Quick when there is nothing to do.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=tests/templates
place=target/templates
python=${PYTHON:-python3}
unset PYTHONPATH PYTHONHOME
export PYTHONUTF8=1 PYTHONNOUSERSITE=1

mkdir -p $place
made=$(cat $here/* | cksum)
if [ -f $place/judged.json ] && [ "$(cat $place/made-of 2>/dev/null)" = "$made" ]; then
  echo "templates: target/templates/judged.json is there"
  exit
fi
"$python" -m venv --clear $place/venv || {
  echo "python's venv module is missing: apt-get install python3-venv (Debian)" >&2
  exit 1
}
pip=($place/venv/bin/pip --quiet --disable-pip-version-check)
"${pip[@]}" install -r $here/requirements.txt
rm -rf $place/wheels
"${pip[@]}" download --no-deps --only-binary :all: --require-hashes -r $here/packages.txt -d $place/wheels
$place/venv/bin/python $here/judge.py $place/wheels $place/judged.json
rm -rf $place/venv $place/wheels
echo "$made" >$place/made-of
