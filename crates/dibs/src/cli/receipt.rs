//! `dibs receipt verify`: proof without a server.

use std::io::Read;

use clap::Subcommand;
use dibs_flow::receipt::verify;

use super::Outcome;

/// `dibs receipt …`
#[derive(Subcommand)]
pub(crate) enum Receipt {
    /// Check a receipt with the public key alone, and print what it says
    Verify {
        /// The receipt; - reads it from standard input
        receipt: String,
        /// The installation's public key, as /v1/keys shows it
        #[arg(long, env = "DIBS_PUBLIC_KEY", value_name = "HEX")]
        public_key: String,
    },
}

pub(crate) fn run(command: &Receipt) -> anyhow::Result<Outcome> {
    let Receipt::Verify { receipt, public_key } = command;
    let mut text = receipt.clone();
    if text == "-" {
        text.clear();
        std::io::stdin().read_to_string(&mut text)?;
    }
    match verify(&text, public_key) {
        Ok(win) => {
            println!("{}", serde_json::to_string(&win)?);
            Ok(Outcome::Done)
        }
        Err(error) => {
            eprintln!("dibs: {error}");
            Ok(Outcome::NotExact)
        }
    }
}
