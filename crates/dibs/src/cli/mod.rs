//! The command line. Each command is a file; this one is the table of contents.

mod audit;
mod broker;
mod campaign;
mod client;
mod demo;
mod kafka;
mod receipt;
mod replay;
mod rush;
mod serve;

use std::{io::IsTerminal, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};
use client::{Refused, Server};

/// First-come-first-served events that never oversell.
///
/// Start with `dibs demo`: a rush of a hundred thousand users for a thousand coupons, on this machine, checked.
///
/// Exit codes: 0 done; 1 refused, or not exact; 2 wrong arguments or configuration; 3 anything else that failed.
#[derive(Parser)]
#[command(version, about, max_term_width = 110)]
pub(crate) struct Dibs {
    #[command(subcommand)]
    command: Command,

    /// Say more on stderr; twice for everything (RUST_LOG says it precisely)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Subcommand)]
enum Command {
    /// Run a server: HTTP API, log, decider, issuer and ledger in one process
    Serve(serve::Serve),
    /// Run the embedded log alone, as a Kafka broker of one node
    Broker(broker::BrokerArgs),
    /// See it work: a server of its own, a rush of claims, and the proof that it was exact
    Demo(demo::Demo),
    /// Create, show and change campaigns
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Campaign {
        #[command(subcommand)]
        command: campaign::Campaign,
        #[command(flatten)]
        server: Server,
    },
    /// Claim a coupon
    Claim(campaign::Claim),
    /// Show, use and un-use coupons
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Coupon {
        #[command(subcommand)]
        command: campaign::Coupon,
        #[command(flatten)]
        server: Server,
    },
    /// Send the claims of many users to any server, and check from the outside that it was exact
    Rush(dibs_rush::RushArgs),
    /// Recompute all winners from the log and compare log, ledger and receipts
    Audit(audit::Audit),
    /// Rebuild a ledger from the log, into an empty database
    Replay(replay::Replay),
    /// Check receipts offline
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Receipt {
        #[command(subcommand)]
        command: receipt::Receipt,
    },
    /// Create, show, change and delete topics of any Kafka, as kafka-topics.sh does
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Topic {
        #[command(subcommand)]
        command: kafka::topic::TopicCommand,
        #[command(flatten)]
        reach: kafka::Reach,
        /// Print JSON
        #[arg(long, global = true)]
        json: bool,
    },
    /// Send lines as records to any Kafka, as kafka-console-producer.sh does
    Produce(kafka::produce::Produce),
    /// Print records of any Kafka, as kafka-console-consumer.sh does
    Consume(kafka::consume::Consume),
    /// Show, move and delete consumer groups of any Kafka, as kafka-consumer-groups.sh does
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Group {
        #[command(subcommand)]
        command: kafka::group::GroupCommand,
        #[command(flatten)]
        reach: kafka::Reach,
        /// Print JSON
        #[arg(long, global = true)]
        json: bool,
    },
    /// Measure any Kafka: throughput of producing and consuming, and latency from end to end
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Perf {
        #[command(subcommand)]
        command: kafka::perf::Perf,
        #[command(flatten)]
        reach: kafka::Reach,
        /// Print JSON
        #[arg(long, global = true)]
        json: bool,
    },
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// What a command came to, beyond an error.
pub(crate) enum Outcome {
    Done,
    /// It ran, and what it checked does not hold, or not all of it could be done.
    NotExact,
}

/// What was typed, understood; wrong arguments end the process.
pub(crate) fn parse() -> Dibs {
    let typed: Option<Vec<String>> = std::env::args_os().map(|a| a.into_string().ok()).collect();
    match typed {
        Some(typed) => Dibs::parse_from(kafka::with_kafkas_actions(typed)),
        None => Dibs::parse(),
    }
}

/// Runs the command and says how it ended.
pub(crate) fn run(dibs: Dibs) -> ExitCode {
    let quiet = !matches!(dibs.command, Command::Serve(_) | Command::Broker(_));
    log_to_stderr(dibs.verbose, quiet);
    match dispatch(dibs.command, dibs.verbose > 0) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::NotExact) => ExitCode::from(1),
        Err(error) => {
            eprintln!("dibs: {error:#}");
            ExitCode::from(match error {
                _ if error.is::<Refused>() => 1,
                _ if error.is::<serve::Misconfigured>() => 2,
                _ => 3,
            })
        }
    }
}

fn dispatch(command: Command, verbose: bool) -> anyhow::Result<Outcome> {
    match command {
        Command::Serve(serve) => serve::run(serve)?,
        Command::Broker(args) => broker::run(&args)?,
        Command::Demo(demo) => return demo::run(&demo),
        Command::Campaign { command, server } => campaign::campaign(&command, &server)?,
        Command::Claim(claim) => campaign::claim(&claim)?,
        Command::Coupon { command, server } => campaign::coupon(&command, &server)?,
        Command::Rush(args) => return rush::run(args),
        Command::Audit(audit) => return audit::run(&audit),
        Command::Replay(replay) => replay::run(replay)?,
        Command::Receipt { command } => return receipt::run(&command),
        Command::Topic { command, reach, json } => kafka::topic::run(&command, &reach, json)?,
        Command::Produce(args) => return kafka::produce::run(&args),
        Command::Consume(args) => kafka::consume::run(&args)?,
        Command::Group { command, reach, json } => return kafka::group::run(&command, &reach, json, verbose),
        Command::Perf { command, reach, json } => kafka::perf::run(&command, &reach, json)?,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Dibs::command(), "dibs", &mut std::io::stdout());
        }
    }
    Ok(Outcome::Done)
}

fn log_to_stderr(verbose: u8, quiet: bool) {
    use tracing_subscriber::EnvFilter;
    let level = match (verbose, quiet) {
        (0, true) => "warn",
        (0, false) => "info",
        (1, _) => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_target(false)
        .init();
}
