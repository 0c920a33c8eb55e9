//! Tells this crate's tests and examples where libmlx.so lies. The path comes from what
//! host/mlx-setup wrote; on macOS MLX is linked statically and there is none.
//! It becomes a RUNPATH, so that `LD_LIBRARY_PATH` can put MLX's CUDA build in its place.

#[expect(clippy::disallowed_methods, reason = "what cargo tells a build script is no setting")]
fn main() {
    println!("cargo::rerun-if-env-changed=DEP_MLX_LIB");
    if let Ok(folder) = std::env::var("DEP_MLX_LIB") {
        println!("cargo::rustc-link-arg=-Wl,--enable-new-dtags,-rpath,{folder}");
    }
}
