//! Compiles the gRPC APIs, peel's own and containerd's, with a protobuf compiler written in Rust: no protoc to install.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = "src/daemon/proto";
    println!("cargo:rerun-if-changed={directory}");
    let files =
        ["peel.proto", "containerd.proto", "diff.proto"].map(|file| format!("{directory}/{file}"));
    let descriptors = protox::compile(files, [directory])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
