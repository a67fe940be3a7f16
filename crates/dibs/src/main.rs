//! `dibs`: first-come-first-served events that never oversell.
//!
//! The binary is the only place that knows HTTP, the command line and configuration. Errors are typed in the
//! libraries; here they become words and exit codes.

mod cli;
mod config;
mod data;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    // The allocator touches a few pages in each of its areas; huge ones would make them megabytes at rest.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    cli::run(cli::parse())
}
