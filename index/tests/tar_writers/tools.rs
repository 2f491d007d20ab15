//! The programs that pack.

use std::{
    io,
    path::Path,
    process::{Command, Stdio},
};

/// The output of a command; `None`, and a word about it, where there is no such program.
pub(crate) fn output(command: &mut Command) -> Option<Vec<u8>> {
    let result = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    match result {
        Ok(output) => {
            assert!(output.status.success(), "{command:?}: {}", output.status);
            Some(output.stdout)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            missing(&format!("{:?}", command.get_program()));
            None
        }
        Err(error) => panic!("{command:?}: {error}"),
    }
}

pub(crate) fn missing(what: &str) {
    if std::env::var_os("PEEL_REQUIRE_TOOLS").is_some_and(|value| value == "1") {
        panic!("required by PEEL_REQUIRE_TOOLS=1, missing: {what}");
    }
    eprintln!("SKIPPED, missing: {what}");
}

pub(crate) fn gnu_tar(root: &Path, options: &[&str]) -> Option<Vec<u8>> {
    let mut command = Command::new("tar");
    command.env("LC_ALL", "C").args(options).arg("-C").arg(root).args(["-cf", "-", "."]);
    output(&mut command)
}

pub(crate) fn bsd_tar(root: &Path, options: &[&str]) -> Option<Vec<u8>> {
    let mut command = Command::new("bsdtar");
    command.env("LC_ALL", "C.UTF-8").args(options).arg("-C").arg(root).args(["-cf", "-", "."]);
    output(&mut command)
}

pub(crate) fn python_tar(root: &Path, arguments: &str) -> Option<Vec<u8>> {
    let script = format!(
        "import sys, tarfile\n\
         with tarfile.open(fileobj=sys.stdout.buffer, mode='w|', {arguments}) as archive:\n\
         \x20   archive.add(sys.argv[1], arcname='.')\n"
    );
    output(Command::new("python3").env("PYTHONUTF8", "1").arg("-c").arg(script).arg(root))
}
