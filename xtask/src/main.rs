//! `cargo xtask`: what is done to a real `dibs serve` from outside, to see that nothing acknowledged is lost.

mod bench;
mod crash;
mod deny;
mod disk_full;
mod http;
mod judge;
mod kafka;
mod kill_broker;
mod load;
mod power_cut;
mod server;
mod stall;
mod volume;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Tests of Dibs that need a whole server, a whole disk or a whole machine
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Xtask {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Kill the server under load, again and again, on the same data
    Crash(Rounds),
    /// Kill the broker under transactions, again and again, on the same data
    KillBroker(Rounds),
    /// Stop the server for 5 s under load (SIGSTOP), and let it go on
    Stall(Common),
    /// Let the disk fill up under load, and make room again
    DiskFull(Common),
    /// Copy the disk under load as a power cut would leave it, and start a server on the copy
    PowerCut(Rounds),
    /// Hold licences and sources of all dependencies against deny.toml
    Deny,
    /// Compare side by side, in one run, on this machine
    #[command(subcommand)]
    Bench(Bench),
}

#[derive(Subcommand)]
enum Bench {
    /// Claims over HTTP against servers that answer the same few bytes to everybody
    Http(bench::http::Args),
    /// The Kafka side against Apache Kafka, under the same clients
    Broker(bench::broker::Args),
    /// The Kafka side and Apache Kafka with more and more partitions, connections and groups
    Growth(bench::growth::Args),
}

#[derive(clap::Args, Clone)]
struct Rounds {
    /// How often
    #[arg(long, default_value_t = 20)]
    rounds: u32,
    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args, Clone)]
struct Common {
    /// Decides when what is pressed and killed [default: a random one, which is printed]
    #[arg(long)]
    seed: Option<u64>,
    /// The dibs to test [default: built now, in the dev profile]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
}

impl Common {
    fn random(&self) -> fastrand::Rng {
        let seed = self.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
        println!("--seed {seed}");
        fastrand::Rng::with_seed(seed)
    }
}

fn main() -> anyhow::Result<()> {
    match Xtask::parse().command {
        Command::Crash(rounds) => crash::run(&rounds),
        Command::KillBroker(rounds) => kill_broker::run(&rounds),
        Command::Stall(common) => stall::run(&common),
        Command::DiskFull(common) => disk_full::run(&common),
        Command::PowerCut(rounds) => power_cut::run(&rounds),
        Command::Deny => deny::run(),
        Command::Bench(Bench::Http(args)) => bench::http::run(&args),
        Command::Bench(Bench::Broker(args)) => bench::broker::run(&args),
        Command::Bench(Bench::Growth(args)) => bench::growth::run(&args),
    }
}
