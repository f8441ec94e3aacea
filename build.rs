//! Compiles `engine/llama/shim.cpp`, which catches what llama.cpp throws.

use std::path::Path;

fn main() {
    const SHIM: &str = "src/engine/llama/shim.cpp";
    println!("cargo::rerun-if-changed={SHIM}");
    // Where `llama-cpp-sys-2` has installed llama.cpp; its headers are those of the linked library.
    let root = std::env::var_os("DEP_LLAMA_ROOT").unwrap_or_default();
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .include(Path::new(&root).join("include"))
        .file(SHIM)
        .compile("sluicegate_shim");
}
