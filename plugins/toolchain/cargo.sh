#!/usr/bin/env bash
# cargo for WASM guests: `cargo.sh build --release --manifest-path PATH` emits a
# component, with whichever compiler setup.sh found fit.
#
# What it builds goes to target/guest-build. It can be called from anywhere, also from
# within another cargo (a test, a build script), whose settings it sheds.
set -euo pipefail

if [ $# = 0 ]; then
    echo "usage: cargo.sh COMMAND [ARGUMENT...]   (COMMAND: build, check, ...)" >&2
    exit 2
fi

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
# shellcheck source-path=SCRIPTDIR source=debian-rust.sh
source "$here/debian-rust.sh"

target=wasm32-unknown-unknown
sysroot=$root/target/wasm-sysroot

# Asked in the root: rustup picks the toolchain by folder, and ours is pinned there.
ask_rustc() { (cd "$root" && clean_env rustc "$@"); }
toolchain=$(ask_rustc --print sysroot)
settings=()

if [ ! -d "$toolchain/lib/rustlib/$target/lib" ]; then
    if [ ! -f "$sysroot/stamp" ]; then
        echo "cargo.sh: no standard library for $target; run plugins/toolchain/setup.sh first" >&2
        exit 1
    fi
    settings+=("RUSTC=$debian_rustc" "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS=--sysroot=$sysroot")
fi

# The linker is rustup's in either case. It calls wasm-ld, which lies in a folder of
# its own next to it.
tools=$toolchain/lib/rustlib/$(ask_rustc -vV | sed -n 's/^host: //p')/bin
if [ -x "$tools/wasm-component-ld" ]; then
    settings+=("PATH=$tools/gcc-ld:$PATH" "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=$tools/wasm-component-ld")
else
    settings+=("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=wasm-component-ld")
fi

# rustup would pick another toolchain in a guest's folder outside the repository.
command=$1
shift
if channel=$(sed -n 's/^channel = "\(.*\)"$/\1/p' "$root/rust-toolchain.toml") && command -v rustup >/dev/null; then
    settings+=("RUSTUP_TOOLCHAIN=$channel")
fi
clean_env "${settings[@]}" cargo "$command" --target "$target" --target-dir "$root/target/guest-build" "$@"
