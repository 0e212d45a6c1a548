//! `codchifs`: every Codchi code machine as a directory.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    codchifs::cli::main()
}
