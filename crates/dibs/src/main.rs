//! `dibs`: first-come-first-served events that never oversell.
//!
//! The binary is the only place that knows HTTP, the command line and configuration. Errors are typed in the
//! libraries; here they become words and exit codes.

mod cli;
mod config;
mod data;
mod http;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cli::run(cli::Dibs::parse())
}
