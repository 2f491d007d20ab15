//! Compiles the gRPC API with a protobuf compiler written in Rust: no protoc to install.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = "src/daemon/proto";
    let file = format!("{directory}/peel.proto");
    println!("cargo:rerun-if-changed={file}");
    let descriptors = protox::compile([&file], [directory])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
