//! Tells the binary where libmlx.so lies. The path comes from what host/mlx-setup wrote; on macOS
//! MLX is linked statically and there is none.
//! It becomes a RUNPATH, so that `LD_LIBRARY_PATH` can put MLX's CUDA build in its place.

fn main() {
    println!("cargo::rerun-if-env-changed=DEP_MLX_LIB");
    if let Some(folder) = std::env::var_os("DEP_MLX_LIB") {
        println!("cargo::rustc-link-arg-bins=-Wl,--enable-new-dtags,-rpath,{}", folder.display());
    }
}
