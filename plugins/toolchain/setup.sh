#!/usr/bin/env bash
# Makes sure that policies can be built: that some compiler here has a standard library
# for wasm32-unknown-unknown. Quick when there is nothing to do.
#
#   rustup's toolchain has the target   use it; nothing is built
#   Debian, packages there or root      build the library once, into target/wasm-sysroot
#   neither                             say what to install, and fail
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
# shellcheck source-path=SCRIPTDIR source=debian-rust.sh
source "$here/debian-rust.sh"
cd "$root" # rustup picks the toolchain by the folder it is called in

target=wasm32-unknown-unknown
sysroot=$root/target/wasm-sysroot

# wasm-component-ld makes the linker's output a component, so there is no step after
# it. rustup ships it; other distributions of Rust may not.
have_linker() {
    local tools
    tools=$(clean_env rustc --print sysroot)/lib/rustlib/$(clean_env rustc -vV | sed -n 's/^host: //p')/bin
    [ -x "$tools/wasm-component-ld" ] || command -v wasm-component-ld >/dev/null
}

if ! have_linker; then
    cat >&2 <<TEXT
toolchain: wasm-component-ld, the linker of WASM components, is missing. Either
  use the Rust of https://rustup.rs, which has it, or
  cargo install wasm-component-ld (and have wasm-ld in PATH: Debian's package lld)
TEXT
    exit 1
fi

if [ -d "$(clean_env rustc --print target-libdir --target "$target")" ]; then
    echo "toolchain: rustc has $target"
    exit 0
fi

if ! debian_rust_install; then
    cat >&2 <<TEXT
toolchain: no Rust compiler here can build for $target. Run one of
  rustup target add $target
  apt-get update && apt-get install --no-install-recommends ${debian_packages[*]}
    (as root, on Debian, where rustup cannot fetch a target)
TEXT
    exit 1
fi

# The stamp says which compiler the library belongs to; the leading number is raised
# when this script builds it differently.
stamp="1 $("$debian_rustc" -vV | tr '\n' ' ')"
up_to_date() { [ "$(cat "$sysroot/stamp" 2>/dev/null)" = "$stamp" ]; }
if up_to_date; then
    echo "toolchain: target/wasm-sysroot is up to date"
    exit 0
fi

mkdir -p "$root/target"
exec 9>"$root/target/.wasm-sysroot.lock"
flock 9 # two builds at once: the second waits, then finds it done
if up_to_date; then exit 0; fi

echo "toolchain: building the standard library for $target (about a minute) ..." >&2
started=$SECONDS
work=$(mktemp -d "$root/target/.wasm-sysroot.XXXXXX")
trap 'rm -rf "$work"' EXIT

# Cargo builds a standard library only for the sake of some crate: here is an empty one.
mkdir -p "$work/seed/src"
echo '#![no_std]' >"$work/seed/src/lib.rs"
cat >"$work/seed/Cargo.toml" <<'TOML'
[package]
name = "seed"
version = "0.0.0"
edition = "2024"

[profile.release]
opt-level = "s"
panic = "abort"
debug = false

[workspace]
TOML

# RUSTC_BOOTSTRAP lets a stable cargo build std. With bitcode embedded beside the
# machine code, a policy may choose link-time optimisation or go without.
clean_env RUSTC_BOOTSTRAP=1 RUSTC="$debian_rustc" RUSTFLAGS=-Cembed-bitcode=yes \
    "$debian_cargo" build --quiet --release --manifest-path "$work/seed/Cargo.toml" \
    --target "$target" --target-dir "$work/build" \
    -Zbuild-std=std,panic_abort -Zbuild-std-features=optimize_for_size >&2

# A folder in the shape that `rustc --sysroot` expects. Build scripts and macros run on
# this machine and need its library as well, which Debian has installed.
host=$("$debian_rustc" -vV | sed -n 's/^host: //p')
lib=$work/sysroot/lib/rustlib
mkdir -p "$lib/$target/lib"
cp "$work/build/$target/release/deps/"*.rlib "$lib/$target/lib/"
rm -f "$lib/$target/lib/"libseed-*.rlib
ln -s "$("$debian_rustc" --print sysroot)/lib/rustlib/$host" "$lib/$host"
echo "$stamp" >"$work/sysroot/stamp"

rm -rf "$sysroot"
mv "$work/sysroot" "$sysroot"
echo "toolchain: target/wasm-sysroot is ready ($((SECONDS - started)) s)"
