# Debian's own Rust, for what rustup's cannot do where it cannot fetch anything: a
# standard library for another platform, compiled from source. Sourced, never run.
#
# Debian ships a compiler of its choice under /usr/bin together with the library
# source that belongs to it. The two must match: building that source with rustup's
# compiler fails. It lives beside rustup's, which stays first in PATH.
# shellcheck shell=bash

debian_rustc=/usr/bin/rustc
debian_cargo=/usr/bin/cargo
debian_packages=(rustc-web cargo-web rust-web-src)

# Whether compiler, cargo and library source are all there. The source is looked for
# where -Zbuild-std will.
debian_rust_present() {
    [ -x "$debian_rustc" ] && [ -x "$debian_cargo" ] || return 1
    [ -f "$("$debian_rustc" --print sysroot)/lib/rustlib/src/rust/library/Cargo.lock" ]
}

# Installs the packages if that is possible without taking anything away. Says nothing
# about failure: what to tell a person depends on what they wanted.
debian_rust_install() {
    debian_rust_present && return 0
    command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] || return 1
    echo "toolchain: installing ${debian_packages[*]} ..." >&2
    export DEBIAN_FRONTEND=noninteractive
    # --no-remove: they exclude Debian's older rustc, which someone may rely on.
    local log
    if ! log=$(apt-get update 2>&1 &&
        apt-get install -y --no-remove --no-install-recommends "${debian_packages[@]}" 2>&1); then
        printf '%s\n' "$log" | tail -n 15 >&2
        return 1
    fi
    debian_rust_present
}

# Runs a command free of what an outer cargo (`cargo test`, a build script) or a
# person's settings for the main build would impose on it.
clean_env() {
    env -u RUSTC -u RUSTDOC -u RUSTC_WRAPPER -u RUSTC_WORKSPACE_WRAPPER \
        -u CARGO_BUILD_RUSTC -u CARGO_BUILD_RUSTC_WRAPPER -u CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER \
        -u RUSTFLAGS -u RUSTDOCFLAGS -u CARGO_ENCODED_RUSTFLAGS -u CARGO_ENCODED_RUSTDOCFLAGS \
        -u CARGO_BUILD_RUSTFLAGS -u CARGO_BUILD_TARGET -u CARGO_TARGET_DIR -u CARGO_BUILD_TARGET_DIR \
        -u CARGO -u RUSTUP_TOOLCHAIN -u RUSTC_BOOTSTRAP -u LD_LIBRARY_PATH \
        "$@"
}
