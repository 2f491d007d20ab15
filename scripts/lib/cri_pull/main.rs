//! Pulls an image as the kubelet does, through containerd's CRI: for `scripts/bench-start`.

use std::{path::PathBuf, process::ExitCode};

#[path = "../../../tests/support/cri.rs"]
#[expect(dead_code, unreachable_pub, reason = "the tests use the rest of it")]
mod cri;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [socket, image] = arguments.as_slice() else {
        eprintln!("error: expected a socket and an image");
        return ExitCode::from(2);
    };
    let mut cri = cri::Cri::connect(&PathBuf::from(socket)).await;
    match cri.pull(image).await {
        Ok(id) => {
            println!("{id}");
            ExitCode::SUCCESS
        }
        Err(status) => {
            eprintln!("error: {}", status.message());
            ExitCode::FAILURE
        }
    }
}
